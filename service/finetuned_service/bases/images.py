"""An encoded image as a vision base takes it. Pillow and numpy, no torch.

What is decoded is bounded before it is decoded: the size of the file, its format, and the pixels that its
header announces.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from finetuned_service.bases.inputs import IMAGE_TYPES, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, ImageInput
from finetuned_service.errors import InvalidField

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """The numbers of an image."""

    data: bytes
    """float32, little endian."""
    shape: tuple[int, int, int]
    """Channels, rows, columns."""


def prepare_image(data: bytes, media_type: str | None, form: ImageInput, field: str) -> PreparedImage:
    """Decode, resize and normalise an image as `form` says; arguments and errors as of `fitted_image`."""
    return normalised_image(fitted_image(data, media_type, form, field), form)


def fitted_image(data: bytes, media_type: str | None, form: ImageInput, field: str) -> bytes:
    """Decode and resize an image as `form` says; without a media type the bytes tell it.

    Returns:
        A byte for each value, `[rows, columns, channels]`: a quarter of what `normalised_image` makes of them.

    Raises:
        InvalidField: naming `field`, for another format, too large an image, several frames, or bytes that do not
            decode.
    """
    if media_type is not None and media_type not in IMAGE_TYPES:
        raise InvalidField.one(f"{field}.media_type", f"is {media_type!r}; allowed: {', '.join(IMAGE_TYPES)}")
    formats = list(IMAGE_TYPES.values()) if media_type is None else [IMAGE_TYPES[media_type]]
    if not 0 < len(data) <= MAX_IMAGE_BYTES:
        raise InvalidField.one(
            f"{field}.data", f"has {len(data)} bytes; allowed: 1 to {MAX_IMAGE_BYTES}. Send a smaller image"
        )
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if getattr(image, "is_animated", False):
                raise InvalidField.one(f"{field}.data", "has several frames; send one of them")
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise InvalidField.one(
                    f"{field}.data",
                    f"is an image of {width} x {height} pixels; allowed: {MAX_IMAGE_PIXELS} in all. Send a smaller one",
                )
            return _fitted(_in_bytes(image).convert(_MODES[form.channels]), form).tobytes()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InvalidField.one(
            f"{field}.data",
            f"does not decode as {media_type or ', '.join(IMAGE_TYPES)}: send the bytes of a whole image",
        ) from error


def normalised_image(fitted: bytes, form: ImageInput) -> PreparedImage:
    """The numbers of what `fitted_image` returned for the same form."""
    values = np.frombuffer(fitted, np.uint8).reshape(form.height, form.width, form.channels)
    # Plane by plane: numpy takes several times as long over rows of three.
    planes = values.transpose(2, 0, 1).astype("<f4", order="C")
    planes /= 255
    planes -= np.array(form.mean, np.float32)[:, None, None]
    planes /= np.array(form.std, np.float32)[:, None, None]
    return PreparedImage(planes.tobytes(), (form.channels, form.height, form.width))


def size_at(shortest_edge: int, width: int, height: int) -> tuple[int, int]:
    """Width and height at the same proportions with exactly that shorter side, rounded as transformers rounds them."""
    longer = int(shortest_edge * max(width, height) / min(width, height))
    return (shortest_edge, longer) if width <= height else (longer, shortest_edge)


def _in_bytes(image: Image.Image) -> Image.Image:
    """With a byte for each value: of 16 bits of grey, which Pillow would cut off at 255, the upper ones; it takes those of
    16 bits of colour itself.
    """
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))


def _fitted(image: Image.Image, form: ImageInput) -> Image.Image:
    """In the form's size: the whole image squeezed, or the middle of it at its own proportions."""
    if form.shortest_edge is None:
        return image.resize((form.width, form.height), form.resample)
    width, height = image.size
    size = size_at(form.shortest_edge, width, height)
    if size[0] * size[1] > MAX_IMAGE_PIXELS:
        raise ValueError(f"a strip of {width} x {height} pixels cannot be enlarged to {size}")
    larger = image.resize(size, form.resample)
    left, top = (larger.width - form.width) // 2, (larger.height - form.height) // 2
    return larger.crop((left, top, left + form.width, top + form.height))
