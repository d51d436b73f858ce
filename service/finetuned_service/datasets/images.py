"""Whether an image decodes, asked before it is stored.

Pillow is imported when it is needed: most datasets hold text.
"""

from __future__ import annotations

import io

from finetuned_service.bases.inputs import IMAGE_TYPES
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidData

FORMATS = tuple(IMAGE_TYPES.values())


def check_image(data: bytes, limits: DataLimits) -> None:
    """Decode an image once, and refuse what does not.

    Raises:
        InvalidData: it is too large, of another format, has several frames, or does not decode.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - see above

    if len(data) > limits.max_image_bytes:
        raise InvalidData(f"image has {len(data)} bytes; allowed: {limits.max_image_bytes}. Scale it down")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > limits.max_image_pixels:
                raise _too_many_pixels(f"{image.width} x {image.height} = {pixels} pixels", limits)
            if getattr(image, "is_animated", False):
                raise InvalidData("image has several frames; save one of them")
            image.load()
    except InvalidData:
        raise
    except UnidentifiedImageError:
        raise InvalidData(f"image is of no known format; allowed: {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels("far more pixels", limits) from None
    except Exception as error:
        raise InvalidData(f"image does not decode ({error}); save it again") from error


def _too_many_pixels(found: str, limits: DataLimits) -> InvalidData:
    return InvalidData(f"image has {found}; allowed: {limits.max_image_pixels}. Scale it down")
