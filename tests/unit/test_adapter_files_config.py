"""adapter_config.json: the allowlist, and the meaning of what passes against PEFT's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetuned_service.adapters.config_keys import MAX_CONFIG_BYTES
from finetuned_service.adapters.lora_config import LoraConfig, dotted_ends, parse_lora_config
from finetuned_service.errors import InvalidAdapterFiles
from tiny_adapters import peft_model, read_adapter, save_adapter

PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
}


def parse(**changes: Any) -> LoraConfig:
    return parse_lora_config(json.dumps(PLAIN | changes).encode())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 8}},
        {"alpha_pattern": {"^model.layers.0.mlp.up_proj": 3, "up_proj": 5, r"layers\.1\.mlp.down_proj": 0.5}},
        {"rank_pattern": {"proj": 8, "self_attn": 2, "model": 3, "q_proj": 6}},
    ],
)
def test_ranks_and_scalings_are_pefts(tmp_path: Path, settings: dict[str, Any]) -> None:
    from peft.tuners.lora import LoraLayer

    directory = save_adapter(peft_model(**settings), tmp_path / "adapter")
    # Read back, because PEFT sorts the keys of a pattern when it writes them and their order counts.
    model = read_adapter(directory)
    config = parse_lora_config((directory / "adapter_config.json").read_bytes())
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    assert len(layers) == 14
    expected = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers.items()}
    assert expected == {name: (config.rank_of(name), config.scaling_of(name)) for name in layers}
    assert all(config.targets(name) for name in layers)


def test_spelled_out_means_the_same() -> None:
    modules = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
    config = parse(
        rank_pattern={"layers.1.q_proj": 2, "elsewhere": 9},
        alpha_pattern={"layers.0.q_proj": 3.5, "layers.1.q_proj": 8.0},
        target_modules=["q_proj"],
    )
    spelled = config.spelled_out(reversed(modules), [])
    assert spelled == {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": False,
        "rank_pattern": {"model.layers.1.q_proj": 2},
        "alpha_pattern": {"model.layers.0.q_proj": 3.5},
        "target_modules": modules,
        "bias": "none",
    }
    again = parse_lora_config(json.dumps(spelled).encode())
    assert spelled == again.spelled_out(modules, [])
    assert [config.scaling_of(m) for m in modules] == [again.scaling_of(m) for m in modules] == [0.875, 4.0]


def test_dora_is_spelled_out_only_where_it_is_on() -> None:
    assert parse(use_dora=True).decomposed
    decomposed = parse(use_dora=True).spelled_out(["q"], [])
    assert decomposed == parse().spelled_out(["q"], []) | {"use_dora": True}


def test_names_end_at_dots() -> None:
    assert list(dotted_ends("layers.10.q_proj")) == ["layers.10.q_proj", "10.q_proj", "q_proj"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (True, False)),
        ({"target_modules": ["model.layers.0.q_proj"]}, (True, False)),
        ({"target_modules": "all-linear"}, (None, None)),
        ({"exclude_modules": ["k_proj"]}, (None, False)),
        ({"layers_to_transform": 0}, (None, False)),
        ({"layers_to_transform": [], "layers_pattern": None, "exclude_modules": ""}, (True, False)),
    ],
)
def test_targets(changes: dict[str, Any], expected: tuple[bool | None, bool | None]) -> None:
    config = parse(**changes)
    assert expected == (config.targets("model.layers.0.q_proj"), config.targets("model.layers.0.k_proj"))


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model_name_or_path": "any/thing", "revision": "main", "peft_version": "0.99"},
        {"inference_mode": False, "lora_dropout": 0.5, "megatron_core": "megatron.core"},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"fan_in_fan_out": True},
        {"fan_in_fan_out": False, "loftq_config": {}, "modules_to_save": None, "use_dora": False},
        {"modules_to_save": [], "some_future_key": None, "another": False},
        {"auto_mapping": None},
        {
            "auto_mapping": {
                "base_model_class": "LlamaForCausalLM",
                "parent_library": "transformers.models.llama.modeling_llama",
            },
            "task_type": None,
        },
        {"rank_pattern": None, "alpha_pattern": {}, "use_rslora": None},
    ],
)
def test_harmless_keys_pass(changes: dict[str, Any]) -> None:
    assert parse(**changes) == parse()


@pytest.mark.parametrize(
    ("changes", "key", "found"),
    [
        ({"peft_type": "IA3"}, "peft_type", "is 'IA3'; allowed: \"LORA\""),
        ({"peft_type": None}, "peft_type", "is None"),
        ({"task_type": "SEQ_CLS"}, "task_type", 'is \'SEQ_CLS\'; allowed: "CAUSAL_LM", "FEATURE_EXTRACTION"'),
        ({"r": 0}, "r", "is 0; expected an integer of at least 1"),
        ({"r": "16"}, "r", "is '16'; expected an integer"),
        ({"r": True}, "r", "is True; expected an integer"),
        ({"r": 8.0}, "r", "is 8.0; expected an integer"),
        ({"r": None}, "r", "is None; expected an integer"),
        ({"lora_alpha": 0}, "lora_alpha", "is 0; expected a number above 0"),
        ({"lora_alpha": "8"}, "lora_alpha", "is '8'; expected a number above 0"),
        ({"lora_alpha": 10**400}, "lora_alpha", "expected a number above 0, at most 1e+09"),
        ({"use_rslora": 1}, "use_rslora", "is 1; expected true or false"),
        ({"bias": "all"}, "bias", "is 'all'; allowed: \"none\""),
        ({"bias": None}, "bias", 'is None; allowed: "none"'),
        ({"lora_bias": True}, "lora_bias", "only null, false or empty is supported"),
        ({"use_dora": 1}, "use_dora", "is 1; expected true or false"),
        ({"modules_to_save": "lm_head"}, "modules_to_save", "is 'lm_head'; expected a list of module names"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication", "only null"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out", "expected true or false"),
        ({"target_parameters": ["experts.up"]}, "target_parameters", "only null"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices", "only null"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens", "only null"),
        ({"use_qalora": True}, "use_qalora", "only null"),
        ({"corda_config": {"cache_file": "x"}}, "corda_config", "only null"),
        ({"eva_config": {"rho": 2.0}}, "eva_config", "only null"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config", "only null"),
        ({"megatron_config": {"a": 1}}, "megatron_config", "only null"),
        ({"some_future_key": 0}, "some_future_key", "is 0; only null, false or empty"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights", "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "init_lora_weights", "is 'olora'; allowed: true, false"),
        ({"init_lora_weights": 1}, "init_lora_weights", "is 1; allowed: true, false"),
        ({"auto_mapping": {"parent_library": "os"}}, "auto_mapping", "remove it"),
        ({"auto_mapping": {"parent_library": "transformers_evil"}}, "auto_mapping", "remove it"),
        ({"auto_mapping": {"base_model_class": "X"}}, "auto_mapping", "remove it"),
        ({"target_modules": None}, "target_modules", "is None; expected a list of module names"),
        ({"target_modules": []}, "target_modules", "is []; expected a list of module names"),
        ({"target_modules": ["q_proj", 3]}, "target_modules", "expected a list of module names"),
        ({"target_modules": {"q_proj": 1}}, "target_modules", "expected a list of module names"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj", "is 0; expected an integer"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern", "expected an object of at most 2048 modules"),
        ({"rank_pattern": {str(n): 1 for n in range(2049)}}, "rank_pattern", "at most 2048 modules"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern", "is '(a+)+$'; expected module names as keys"),
        ({"alpha_pattern": {".*q_proj": 4}}, "alpha_pattern", "not regular expressions"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern.q_proj", "is -1; expected a number above 0"),
    ],
)
def test_what_would_change_the_numbers_is_refused(changes: dict[str, Any], key: str, found: str) -> None:
    with pytest.raises(InvalidAdapterFiles) as caught:
        parse(**changes)
    (violation,) = caught.value.violations
    assert violation.field == f"adapter_config.json: {key}"
    assert found in violation.description


def test_all_wrong_keys_are_listed() -> None:
    with pytest.raises(InvalidAdapterFiles) as caught:
        parse(r=0, lora_bias=True, bias="all")
    assert [violation.field for violation in caught.value.violations] == [
        "adapter_config.json: r",
        "adapter_config.json: bias",
        "adapter_config.json: lora_bias",
    ]


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"", "is not JSON"),
        (b"\x80\x04\x95", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"r": 4, "r": 8}', "the key 'r' stands there twice"),
        (b'{"lora_alpha": NaN}', "NaN is not a JSON number"),
        (b'{"lora_alpha": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * (MAX_CONFIG_BYTES + 1), "has 1048577 bytes; allowed: 1048576"),
    ],
)
def test_files_that_are_no_configuration_are_refused(raw: bytes, found: str) -> None:
    with pytest.raises(InvalidAdapterFiles, match=found):
        parse_lora_config(raw)


def test_refusals_stay_short_whatever_the_file_holds() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(InvalidAdapterFiles) as caught:
        parse(**{"k" * 100_000: "v" * 100_000, "deep": deep, "\ud800": 1})
    assert len(caught.value.message) < 500
    assert all(len(v.field) + len(v.description) < 500 for v in caught.value.violations)
    assert caught.value.message.encode()
