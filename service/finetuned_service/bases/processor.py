"""What the preprocessor_config.json of transformers' image processors says, in the terms of `ImageInput`. Torch-free.

A processor that is named fills in what the file leaves out and gives some settings a meaning of its own; a file that names
none says what it says. Order as there: resize, crop, rescale, normalise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetuned_service.errors import InvalidField

IMAGE_FILE = "preprocessor_config.json"

_STANDARD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_CLIP: Mapping[str, Any] = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_CONVNEXT = "ConvNextImageProcessor"
_SQUARE = "ViTImageProcessor"
_USUAL: Mapping[str, Mapping[str, Any]] = {
    "": {"resample": 3, "image_mean": [0.5], "image_std": [0.5]},
    _CONVNEXT: {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256, "resample": 3, **_STANDARD},
    _SQUARE: {"size": {"height": 224, "width": 224}, "resample": 2, **_STANDARD},
    "BitImageProcessor": _CLIP,
    "CLIPImageProcessor": _CLIP,
}
"""Processors that are followed, and what each takes where a file says nothing."""
_SQUEEZED_FROM = 384
"""From this size on ConvNext's processor squeezes an image and cuts nothing off."""
_LARGEST_VALUE = 255


def image_settings(file: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The settings of a file as fields of an `ImageInput`, not yet validated.

    Raises:
        InvalidField: a setting changes pixels in a way that is not followed.
    """
    name = _named(file)
    # As in transformers null takes away what is usual: a flag is off, a size is none.
    settings = {**_USUAL[name], **file}
    for key, allowed in (("do_resize", True), ("do_pad", False)):
        if bool(settings.get(key, allowed)) is not allowed:
            raise _refused(key, settings[key], f"{allowed}: all images of a base have one size")
    mean, std = _levels(settings, channels)
    return {
        **_shape(settings, name),
        "channels": channels,
        "resample": settings["resample"],
        "mean": mean,
        "std": std,
    }


def _named(file: Mapping[str, Any]) -> str:
    key = next((key for key in ("image_processor_type", "feature_extractor_type") if file.get(key)), None)
    if key is None:
        return ""
    # Names of earlier versions, and of the same processor on other libraries.
    name = (
        str(file[key]).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    )
    if name not in _USUAL:
        allowed = ", ".join(filter(None, _USUAL))
        raise _refused(key, file[key], f"{allowed}, or none and a size with height and width")
    return name


def _levels(settings: Mapping[str, Any], channels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of values of 0 to 1, whatever the file's are rescaled to before."""
    mean, std = [0.0], [1.0]
    if settings.get("do_normalize", True):
        mean, std = settings["image_mean"], settings["image_std"]
    mean, std = (values if len(values) == channels else values * channels for values in (mean, std))
    factor = settings.get("rescale_factor", 1 / _LARGEST_VALUE) if settings.get("do_rescale", True) else 1.0
    scale = factor * _LARGEST_VALUE
    return [value / scale for value in mean], [value / scale for value in std]


def _shape(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Height and width, and the shortest edge where they are cut out."""
    size = _sides(settings, "size", square=name == _SQUARE)
    edge = size.get("shortest_edge")
    said = not name and edge is not None and settings.get("crop_size") is not None
    cuts = bool(settings.get("do_center_crop", said))
    if name == _CONVNEXT or (not name and settings.get("crop_pct") is not None):
        if cuts:
            raise _refused("do_center_crop", cuts, "False, where crop_pct says what is cut off")
        return _cut_by_share(edge, settings)
    crop = _sides(settings, "crop_size", square=True) if cuts else {}
    if "shortest_edge" in crop:
        raise _refused("crop_size", settings["crop_size"], "height and width")
    if edge is None:
        if cuts and crop != size:
            allowed = (
                f"the size {size}, or size as a shortest_edge: an image is squeezed to a size and not cut"
            )
            raise _refused("crop_size", crop, allowed)
        return size
    if cuts:
        return {"shortest_edge": edge, **crop}
    if name or "do_center_crop" in settings:
        allowed = "True with a crop_size, or size with height and width: all images of a base have one size"
        raise _refused("do_center_crop", cuts, allowed)
    return {"height": edge, "width": edge, "shortest_edge": edge}


def _cut_by_share(edge: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """As ConvNext's processor: an image is enlarged by crop_pct before it is cut, or squeezed whole into a large square."""
    if edge is None:
        raise _refused("size", settings["size"], "a shortest_edge, where crop_pct says what is cut off")
    square = {"height": edge, "width": edge}
    return square if edge >= _SQUEEZED_FROM else {**square, "shortest_edge": int(edge / settings["crop_pct"])}


def _sides(settings: Mapping[str, Any], key: str, *, square: bool) -> dict[str, Any]:
    """Either height and width or a shortest edge; one number stands for both of a square, else for the latter."""
    match settings.get(key):
        case int(side):
            return {"height": side, "width": side} if square else {"shortest_edge": side}
        case [height, width]:
            return {"height": height, "width": width}
        case {"shortest_edge": side, **rest} if not any(rest.values()):
            return {"shortest_edge": side}
        case {"height": height, "width": width, **rest} if not any(rest.values()):
            return {"height": height, "width": width}
        case _:
            raise _refused(key, settings.get(key), "height and width, or shortest_edge")


def _refused(key: str, value: Any, allowed: str) -> InvalidField:
    return InvalidField.one(
        "source", f"its {IMAGE_FILE} has {key} {value!r}, which is not followed; allowed: {allowed}"
    )
