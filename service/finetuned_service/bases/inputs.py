"""What a base expects beside its weights: the pooling of a text encoder, the form of an image. Torch-free.

Both change what is computed, so they lie in the base's own config.json, under keys that transformers does not
have, and count for its digest. They are read once, when the base comes in, from the files that
sentence-transformers and transformers' image processors write.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from finetuned_service.bases.family import family_of
from finetuned_service.bases.json_files import read_object
from finetuned_service.bases.processor import IMAGE_FILE, image_settings
from finetuned_service.bases.sentence import sentence_pooling
from finetuned_service.errors import InvalidField
from finetuned_service.vocabulary import Family, Pooling, Value

POOLING_KEY, IMAGE_KEY = "pooling", "image_input"

IMAGE_TYPES: Mapping[str, str] = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/gif": "GIF",
}
"""Media types of images that are trained on and served, and Pillow's names for them."""
MAX_IMAGE_BYTES = 16 * 1024 * 1024
MAX_IMAGE_PIXELS = 32 * 1024 * 1024
"""A decoded image takes 4 bytes for each."""

Side = Annotated[int, Field(ge=1, le=4096)]


class ImageInput(Value):
    """How an image becomes the numbers that a vision base takes: channels, then rows, then columns."""

    channels: int = Field(ge=1, le=4)
    height: Side
    width: Side
    shortest_edge: Side | None = None
    """Resized to it first and then cut out of the middle; None resizes to height and width, whatever the shape."""
    resample: int = Field(default=3, ge=0, le=5)
    """Pillow's number of the filter: 0 nearest, 2 bilinear, 3 bicubic."""
    mean: tuple[float, ...]
    """Of each channel, taken from values of 0 to 1."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """Of each channel, what remains is divided by it."""

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean and std have {len(self.mean)} and {len(self.std)} values, channels {self.channels}"
            )
        return self


def base_inputs(config: Mapping[str, Any]) -> tuple[Pooling, ImageInput | None]:
    """What the config.json of a base in the store says: the usual pooling, and the image's form for vision."""
    image = config.get(IMAGE_KEY)
    return Pooling(config.get(POOLING_KEY, Pooling.MEAN)), image and ImageInput.model_validate(image)


def declare_inputs(source: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is added to the config.json of a base that comes from the directory `source`.

    Raises:
        InvalidField: an encoder makes its vectors otherwise than they are made here; a vision model does not say how its
            images are prepared, or says what is not served.
    """
    match family_of(config):
        case Family.DECODER:
            return {}
        case Family.ENCODER:
            return {POOLING_KEY: str(config.get(POOLING_KEY) or sentence_pooling(source))}
        case Family.VISION:
            given = config.get(IMAGE_KEY)
            return {IMAGE_KEY: given or _image_input(source, config).model_dump(mode="json")}


def _image_input(source: Path, config: Mapping[str, Any]) -> ImageInput:
    path = source / IMAGE_FILE
    if not path.is_file():
        raise InvalidField.one(
            "source",
            f"it has no {IMAGE_FILE}, which says how images are prepared; write it with "
            "`AutoImageProcessor.from_pretrained(directory).save_pretrained(directory)`",
        )
    try:
        return ImageInput.model_validate(
            image_settings(read_object(path), int(config.get("num_channels", 3)))
        )
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise InvalidField.one("source", f"its {IMAGE_FILE} cannot be used: {said}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InvalidField.one("source", f"its {IMAGE_FILE} cannot be used: {error}") from error
