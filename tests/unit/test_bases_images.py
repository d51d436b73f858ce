"""Images as vision bases take them: the form that a base declares, and what is made of an image in it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from finetuned_service.bases.convert import import_directory
from finetuned_service.bases.images import prepare_image, size_at
from finetuned_service.bases.inputs import (
    IMAGE_TYPES,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    ImageInput,
    base_inputs,
)
from finetuned_service.bases.manifest import read_config, read_manifest
from finetuned_service.datasets.images import FORMATS as DATASET_FORMATS
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidField
from finetuned_service.settings import Settings
from finetuned_service.vocabulary import Family
from PIL import Image
from pydantic import ValidationError
from tiny_encoders import IMAGE_SETTINGS, png, save_resnet
from transformers import AutoModel
from transformers.image_transforms import get_resize_output_image_size


def test_a_vision_base_needs_no_tokenizer_and_says_how_images_are_prepared(tmp_path: Path) -> None:
    source = save_resnet(tmp_path / "source")
    manifest = import_directory(source, tmp_path / "base")
    assert (manifest.family, manifest.architecture, manifest.context_tokens) == (
        Family.VISION,
        "ResNetModel",
        1,
    )
    assert (
        read_manifest(tmp_path / "base").recipe == "without its head (classifier.1.bias, classifier.1.weight)"
    )
    _, image = base_inputs(read_config(tmp_path / "base"))
    assert image == ImageInput(channels=1, height=16, width=16, resample=2, mean=(0.5,), std=(0.25,))
    assert AutoModel.from_pretrained(tmp_path / "base").__class__.__name__ == "ResNetModel"
    (source / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidField, match=r"has no preprocessor_config\.json, which says how images"):
        import_directory(source, tmp_path / "other")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"shortest_edge": 28}, "crop_pct": 0.875}, (28, 28, 32)),
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 20}}, (24, 20, 32)),
        ({"size": 24, "do_normalize": False}, (24, 24, 24)),
    ],
)
def test_settings_of_transformers_processors(
    tmp_path: Path, settings: dict[str, object], expected: tuple[int, int, int]
) -> None:
    save_resnet(tmp_path / "source", images=settings)
    import_directory(tmp_path / "source", tmp_path / "base")
    _, image = base_inputs(read_config(tmp_path / "base"))
    assert image is not None
    assert (image.height, image.width, image.shortest_edge) == expected
    assert (image.mean, image.std) == (((0.0,), (1.0,)) if "do_normalize" in settings else ((0.5,), (0.5,)))


def test_settings_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    save_resnet(tmp_path / "source", images={**IMAGE_SETTINGS, "image_mean": [0.1, 0.2, 0.3]})
    with pytest.raises(InvalidField, match=r"preprocessor_config\.json cannot be used:.*channels 1"):
        import_directory(tmp_path / "source", tmp_path / "base")


FORM = ImageInput(channels=3, height=8, width=8, resample=0, mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 0.25))


def test_an_image_becomes_channels_of_normalised_numbers() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 8))
    image = prepare_image(png(grey), "image/png", FORM, "inputs[0]")
    found = np.frombuffer(image.data, "<f4").reshape(image.shape)
    for channel, (mean, std) in enumerate(zip(FORM.mean, FORM.std, strict=True)):
        np.testing.assert_allclose(found[channel], (grey / 255 - mean) / std, atol=1e-6)


def test_the_middle_is_cut_out_at_the_image_s_own_proportions() -> None:
    wide = np.tile(np.arange(32), (16, 1)) * 8
    form = ImageInput(channels=1, height=8, width=8, shortest_edge=16, resample=0, mean=(0.0,), std=(1.0,))
    image = prepare_image(png(wide), "image/png", form, "x")
    found = np.frombuffer(image.data, "<f4").reshape(8, 8) * 255
    np.testing.assert_allclose(found, wide[4:12, 12:20])


def test_sides_are_rounded_as_transformers_rounds_them() -> None:
    for edge in (28, 224, 256, 384):
        for short in range(1, 3000):
            for long in (short, short + 1, 2 * short + short // 3):
                theirs = get_resize_output_image_size(
                    np.broadcast_to(np.uint8(0), (1, short, long)),
                    edge,
                    default_to_square=False,
                    input_data_format="channels_first",
                )
                assert size_at(edge, long, short) == theirs[::-1]
                assert size_at(edge, short, long) == theirs


def test_no_border_is_left_where_the_side_does_not_divide() -> None:
    form = ImageInput(channels=1, height=224, width=224, shortest_edge=224, mean=(0.0,), std=(1.0,))
    for side in (55, 71, 110):  # int(side * (224 / side)) is 223
        image = prepare_image(png(np.full((side, side), 255)), "image/png", form, "x")
        assert np.frombuffer(image.data, "<f4").min() == 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_of_16_bits_of_grey_the_upper_ones_count(channels: int) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    form = ImageInput(
        channels=channels, height=8, width=8, resample=0, mean=(0.0,) * channels, std=(1.0,) * channels
    )
    image = prepare_image(file.getvalue(), "image/png", form, "x")
    found = np.frombuffer(image.data, "<f4").reshape(channels, 8, 8) * 255
    np.testing.assert_allclose(found, np.broadcast_to(values >> 8, (channels, 8, 8)), atol=1e-3)


def test_no_setting_lets_a_dataset_have_images_that_no_base_takes() -> None:
    assert (DataLimits().max_image_bytes, DataLimits().max_image_pixels) == (
        MAX_IMAGE_BYTES,
        MAX_IMAGE_PIXELS,
    )
    assert (Settings().max_image_bytes, Settings().max_image_pixels) == (MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS)
    for name, most in (("max_image_bytes", MAX_IMAGE_BYTES), ("max_image_pixels", MAX_IMAGE_PIXELS)):
        with pytest.raises(ValidationError, match=f"less than or equal to {most}"):
            Settings.model_validate({name: most + 1})


def strip(width: int) -> bytes:
    return png(np.zeros((1, width)))


@pytest.mark.parametrize(
    ("data", "media_type", "message"),
    [
        (b"", "image/png", "has 0 bytes"),
        (b"not an image", "image/png", "does not decode as image/png"),
        (png(np.zeros((8, 8)))[:40], "image/png", "does not decode"),
        (png(np.zeros((8, 8)), "image/jpeg"), "image/png", "does not decode as image/png"),
        (
            png(np.zeros((8, 8))),
            "image/tiff",
            "'image/tiff'; allowed: image/png, image/jpeg, image/webp, image/bmp, image/gif",
        ),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, media_type: str, message: str) -> None:
    with pytest.raises(InvalidField, match=message):
        prepare_image(data, media_type, FORM, "inputs[3].image")


@pytest.mark.parametrize("media_type", [*IMAGE_TYPES, None])
def test_every_type_that_datasets_take_is_served(media_type: str | None) -> None:
    grey = np.full((8, 8), 255)
    image = prepare_image(png(grey, media_type or "image/bmp"), media_type, FORM, "x")
    assert np.frombuffer(image.data, "<f4")[0] == pytest.approx(0.5, abs=0.02)
    assert tuple(IMAGE_TYPES.values()) == DATASET_FORMATS


def test_several_frames_are_refused() -> None:
    file = io.BytesIO()
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidField, match="has several frames; send one of them"):
        prepare_image(file.getvalue(), "image/gif", FORM, "x")


def test_an_image_that_announces_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetuned_service.bases.images.MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InvalidField, match="40 x 40 pixels; allowed: 1000 in all"):
        prepare_image(png(np.zeros((40, 40))), "image/png", FORM, "inputs[0].image")


def test_a_strip_is_not_enlarged_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetuned_service.bases.images.MAX_IMAGE_PIXELS", 1000)
    form = FORM.model_copy(update={"shortest_edge": 32})
    with pytest.raises(InvalidField, match="does not decode"):
        prepare_image(strip(500), "image/png", form, "x")
