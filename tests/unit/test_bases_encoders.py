"""Encoders and vision models become bases: without their heads, with what they expect of their inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from finetuned_service.bases.convert import convert_packaged, import_directory
from finetuned_service.bases.inputs import (
    base_inputs,
)
from finetuned_service.bases.manifest import canonical_config, compute_digest, read_config
from finetuned_service.errors import InvalidField, Unimplemented
from finetuned_service.vocabulary import Family, Pooling
from tiny_encoders import save_encoder
from transformers import BertConfig, BertForMaskedLM, BertModel


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


def test_positions_after_padding_count_for_the_digest() -> None:
    bert, roberta = {"model_type": "bert", "pad_token_id": 1}, {"model_type": "roberta", "pad_token_id": 1}
    assert "first_position" not in canonical_config(bert)
    assert canonical_config(roberta)["first_position"] == 2
