"""Settings of preprocessor_config.json: images come out as transformers' own processors make them, or the base is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuned_service.bases.images import prepare_image
from finetuned_service.bases.inputs import ImageInput
from finetuned_service.bases.processor import image_settings
from finetuned_service.errors import InvalidField
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    ViTImageProcessorPil,
)

CONVNEXT, VIT, BIT = "ConvNextImageProcessor", "ViTImageProcessor", "BitImageProcessor"
PROCESSORS: dict[str, Any] = {
    CONVNEXT: ConvNextImageProcessorPil,
    VIT: ViTImageProcessorPil,
    BIT: BitImageProcessorPil,
    "CLIPImageProcessor": CLIPImageProcessorPil,
}
EDGE_28 = {"size": {"shortest_edge": 28}}
SQUARE_28 = {"size": {"height": 28, "width": 28}}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resample": 2, **IMAGENET},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [124, 116, 104], "image_std": [58, 57, 57]},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
        {"do_rescale": None, "do_normalize": None, "do_pad": None},
    ],
)
def test_what_a_processor_fills_in_and_values(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    assert_alike({"image_processor_type": name, **settings}, tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        # Below 384 ConvNext's processor enlarges and cuts, from there on it squeezes.
        {"image_processor_type": CONVNEXT, **EDGE_28, "crop_pct": 0.7},
        {"image_processor_type": CONVNEXT, **EDGE_28},
        {"image_processor_type": CONVNEXT, "size": {"shortest_edge": 383}},
        {"image_processor_type": CONVNEXT, "size": {"shortest_edge": 384}, "crop_pct": 0.875},
        {"image_processor_type": CONVNEXT, "size": 400, "crop_pct": None, "do_center_crop": None},
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 28, "crop_pct": 0.875},
        {"image_processor_type": CONVNEXT, **EDGE_28, "crop_size": {"height": 20, "width": 20}},
        {"image_processor_type": "ViTImageProcessorFast", "size": 24},
        {"image_processor_type": VIT, "size": {"height": 24, "width": 40}},
        {"image_processor_type": VIT, "size": [24, 40], "crop_pct": 0.5},
        {"image_processor_type": VIT, **EDGE_28, "do_center_crop": True, "crop_size": 20},
        {"image_processor_type": BIT, **EDGE_28, "crop_size": {"height": 24, "width": 20}},
        {"image_processor_type": BIT, **EDGE_28, "crop_size": 33},
        {"image_processor_type": BIT, "size": 28, "crop_size": 24, "crop_pct": 0.5},
        {"image_processor_type": BIT, **SQUARE_28, "do_center_crop": False},
        {"image_processor_type": BIT, **SQUARE_28, "crop_size": 28},
    ],
)
def test_sizes_and_crops(file: dict[str, Any], tmp_path: Path) -> None:
    assert_alike(file, tmp_path)


def assert_alike(file: dict[str, Any], directory: Path) -> None:
    """What is made of three images, by ours and by transformers' processor from the same file."""
    (directory / "preprocessor_config.json").write_text(json.dumps(file))
    named = file.get("image_processor_type", CONVNEXT).removesuffix("Fast")
    processor = PROCESSORS[named].from_pretrained(directory)
    form = ImageInput.model_validate(image_settings(file, 3))
    for height, width in ((37, 61), (55, 30), (41, 41)):
        image = Image.fromarray(
            np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
        )
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        ours = prepare_image(encoded.getvalue(), "image/png", form, "x")
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        found = np.frombuffer(ours.data, "<f4").reshape(ours.shape)
        np.testing.assert_allclose(found, theirs, rtol=1e-6, atol=1e-6 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"do_resize": False, **SQUARE_28}, "has do_resize False, which is not followed; allowed: True"),
        ({"image_processor_type": BIT, "do_resize": None}, "has do_resize None"),
        ({"do_pad": True, **SQUARE_28}, "has do_pad True, which is not followed; allowed: False"),
        (
            {"image_processor_type": BIT, "do_center_crop": False},
            "has do_center_crop False.* True with a crop_size",
        ),
        ({"do_center_crop": False, **EDGE_28, "crop_size": 20}, "has do_center_crop False"),
        ({"image_processor_type": VIT, **EDGE_28}, "has do_center_crop False"),
        ({"image_processor_type": BIT, "do_center_crop": None}, "has do_center_crop False"),
        ({"image_processor_type": BIT, "crop_size": None}, "has crop_size None"),
        ({"image_processor_type": BIT, **SQUARE_28}, r"has crop_size .*224.*allowed: the size .*28"),
        ({"image_processor_type": BIT, "crop_size": {"shortest_edge": 20}}, "allowed: height and width"),
        ({"image_processor_type": CONVNEXT, **SQUARE_28}, "has size .* allowed: a shortest_edge"),
        (
            {"image_processor_type": CONVNEXT, "do_center_crop": True, "crop_size": 20},
            "has do_center_crop True",
        ),
        ({"size": {"longest_edge": 20}}, "has size .*longest_edge"),
        ({"size": {"shortest_edge": 20, "longest_edge": 30}}, "has size .*longest_edge"),
        (
            {"image_processor_type": "EfficientNetImageProcessor"},
            "has image_processor_type 'EfficientNetImageProcessor', .* allowed: ConvNextImageProcessor, ViT.* or none",
        ),
    ],
)
def test_what_is_not_followed_is_refused(file: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidField, match=message):
        image_settings(file, 3)
