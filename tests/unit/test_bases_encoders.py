"""Encoders and vision models become bases: without their heads, with what they expect of their inputs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from finetuned_service.bases.convert import convert_packaged, import_directory
from finetuned_service.bases.images import prepare_image
from finetuned_service.bases.inputs import (
    IMAGE_TYPES,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    ImageInput,
    base_inputs,
)
from finetuned_service.bases.manifest import canonical_config, compute_digest, read_config, read_manifest
from finetuned_service.datasets.images import FORMATS as DATASET_FORMATS
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidField, Unimplemented
from finetuned_service.settings import Settings
from finetuned_service.vocabulary import Family, Pooling
from PIL import Image
from pydantic import ValidationError
from tiny_encoders import IMAGE_SETTINGS, png, save_encoder, save_resnet
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel


def test_the_packaged_encoder_is_the_one_that_sentence_transformers_serves(tmp_path: Path) -> None:
    manifest = convert_packaged("all-minilm-l6-v2", tmp_path / "base")
    assert (manifest.family, manifest.architecture, manifest.context_tokens) == (
        Family.ENCODER,
        "BertModel",
        512,
    )
    assert manifest.digest == compute_digest(tmp_path / "base")
    assert manifest.digest == "sha256:1357b3106f058070a29828e9a95c681849b3025ceaf2774ac97d2b3ffd2cae66"
    assert base_inputs(read_config(tmp_path / "base")) == (Pooling.MEAN, None)


def test_a_head_is_left_behind_and_told(tmp_path: Path) -> None:
    source = save_encoder(tmp_path / "source")
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**json.loads((source / "config.json").read_text())))
    model.save_pretrained(source)
    manifest = import_directory(source, tmp_path / "base")
    assert manifest.architecture == "BertModel"
    assert manifest.recipe.startswith("without its head (cls.predictions")
    stored = BertModel.from_pretrained(tmp_path / "base", add_pooling_layer=False).state_dict()
    assert all(torch.equal(value, model.bert.state_dict()[name]) for name, value in stored.items())


def save_pooling(source: Path, settings: dict[str, object]) -> None:
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "CLS"),
        ({"pooling_mode_lasttoken": True}, "LAST"),
        ({"pooling_mode_mean_tokens": True}, "MEAN"),
        # As version 6 writes it.
        ({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}, "CLS"),
        ({"embedding_dimension": 32, "pooling_mode": ["lasttoken"], "include_prompt": True}, "LAST"),
        ({"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True}, "MEAN"),
    ],
)
def test_the_pooling_of_sentence_transformers_counts_for_the_digest(
    tmp_path: Path, settings: dict[str, object], pooling: str
) -> None:
    source = save_encoder(tmp_path / "source")
    plain = import_directory(source, tmp_path / "plain").digest
    save_pooling(source, settings)
    digest = import_directory(source, tmp_path / "base").digest
    assert base_inputs(read_config(tmp_path / "base"))[0] == pooling
    assert (digest == plain) is (pooling == "MEAN")
    # A base that is brought in again from the store is the same base.
    assert import_directory(tmp_path / "base", tmp_path / "again").digest == digest


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["cls", "mean"]}, "cls, mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls, mean"),
    ],
)
def test_a_pooling_that_is_not_served_is_refused(
    tmp_path: Path, settings: dict[str, object], chosen: str
) -> None:
    source = save_encoder(tmp_path / "source")
    save_pooling(source, settings)
    with pytest.raises(InvalidField, match=rf"chooses {chosen}; expected one of mean, .*pooling_mode_mean"):
        import_directory(source, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def modules(*kinds: str, pooling: str = "1_Pooling") -> str:
    package = "sentence_transformers.models"
    paths = {"Transformer": "", "Pooling": pooling}
    return json.dumps(
        [
            {"idx": place, "name": str(place), "path": paths.get(kind, f"{place}_{kind}"), "type": kind}
            | ({} if "." in kind else {"type": f"{package}.{kind}"})
            for place, kind in enumerate(kinds)
        ]
    )


def test_what_sentence_transformers_computes_beyond_the_encoder_is_refused(tmp_path: Path) -> None:
    source = save_encoder(tmp_path / "source")
    save_pooling(source, {"pooling_mode": "cls"})
    for refused, message in (
        (
            modules("Transformer", "Pooling", "Dense"),
            "has the module Dense, which is not computed here.* remove it",
        ),
        (modules("Transformer", "WeightedLayerPooling"), "has the module WeightedLayerPooling"),
        (modules("my_module.Transformer", "Pooling"), "has the module my_module.Transformer"),
        (
            modules("Transformer", "Pooling", pooling="pooled"),
            "has the pooling in 'pooled'; expected '1_Pooling'",
        ),
        ('"Transformer"', "has the module 'Transformer'"),
    ):
        (source / "modules.json").write_text(refused)
        with pytest.raises(InvalidField, match=message):
            import_directory(source, tmp_path / "base")
    (source / "modules.json").write_text(
        modules("sentence_transformers.base.modules.transformer.Transformer", "Pooling", "Normalize")
    )
    import_directory(source, tmp_path / "base")
    assert base_inputs(read_config(tmp_path / "base"))[0] is Pooling.CLS


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "mpnet"}, Unimplemented, "'mpnet' .its attention adds a bias of relative positions"),
        (
            {"model_type": "t5"},
            Unimplemented,
            "'t5' is in the contract but not in this build; available: gpt2, llama.*bert",
        ),
        ({"is_decoder": True}, Unimplemented, "BertModel as a decoder"),
        ({"position_embedding_type": "relative_key"}, Unimplemented, "'relative_key'.*absolute positions"),
        ({"architectures": ["GPT2Model"]}, InvalidField, r"has \['BertModel'\], or one with a head"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(
    tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    source = save_encoder(tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | change
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        import_directory(source, tmp_path / "base")


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


def test_positions_after_padding_count_for_the_digest() -> None:
    bert, roberta = {"model_type": "bert", "pad_token_id": 1}, {"model_type": "roberta", "pad_token_id": 1}
    assert "first_position" not in canonical_config(bert)
    assert canonical_config(roberta)["first_position"] == 2


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
