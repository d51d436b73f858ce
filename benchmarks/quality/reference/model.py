"""transformers' model of a base with a method on it, which begins as our run does."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from benchmarks.quality.reference.bottleneck import add_bottlenecks
from benchmarks.quality.reference.packed import is_packed, load_packed, rest

GENERATION, IMAGES = "text-generation", "image-classification"
_CLASSIFIER = "classifier."


def load(base: Path, task: str, *, dropout: bool = False) -> Any:
    """Frozen. Without dropout, which our training has not, unless it is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if task == GENERATION and is_packed(base):
            model: Any = load_packed(base)
        elif task == GENERATION:
            model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        elif task == IMAGES:
            model = AutoModel.from_pretrained(base)
        else:
            off = {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            model = AutoModel.from_pretrained(base, add_pooling_layer=False, **off)
    rest(model.requires_grad_(requires_grad=False))
    return model


def peft_config(spec: Mapping[str, Any], task: str) -> LoraConfig | IA3Config:
    """PEFT's words for resolved settings."""
    task_type = "CAUSAL_LM" if task == GENERATION else None
    if spec["method"] == "IA3":
        ia3 = spec["ia3"]
        return IA3Config(
            task_type=task_type,
            target_modules=list(ia3["target_modules"]),
            feedforward_modules=list(ia3["feedforward_modules"]),
        )
    lora = spec["lora"]
    return LoraConfig(
        task_type=task_type,
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=list(lora["target_modules"]),
        use_rslora=lora["rank_stabilized"],
        use_dora=lora["decomposed"],
    )


def put_method(
    model: Any, spec: Mapping[str, Any], initial: Mapping[str, Tensor]
) -> tuple[Any, dict[str, nn.Parameter]]:
    """The model with the method of a resolved spec, and what trains of it, by its name in an adapter's file.

    Args:
        model: as `load` gives it.
        spec: of the run that is repeated.
        initial: what trains begins with; a head over the model is left out.

    Raises:
        ValueError: other parameters train than in the run that is repeated.
    """
    begun = {name: value for name, value in initial.items() if not name.startswith(_CLASSIFIER)}
    match spec["method"]:
        case "LORA" | "QLORA" | "IA3":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = get_peft_model(model, peft_config(spec, spec["task"]))
            trained = peft_parameters(model)
        case "BOTTLENECK":
            trained = add_bottlenecks(model, begun)
        case _:
            if "lm_head.weight" in begun:
                # It shares the embedding's weight, which stays as it is.
                model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
            trained = {name: model.get_parameter(name) for name in begun}
    begin(trained, begun)
    return model, trained


def peft_parameters(model: Any) -> dict[str, nn.Parameter]:
    """What trains of a model with PEFT's layers, by its name in an adapter's file."""
    return {_stored(name): p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def begin(trained: Mapping[str, nn.Parameter], initial: Mapping[str, Tensor]) -> None:
    """Let what trains begin with these numbers.

    Raises:
        ValueError: they are of other parameters.
    """
    if trained.keys() != initial.keys():
        raise ValueError(f"other parameters train: {sorted(trained.keys() ^ initial.keys())[:4]}")
    for name, parameter in trained.items():
        parameter.requires_grad_(requires_grad=True).copy_(initial[name])


def _stored(name: str) -> str:
    """As PEFT itself writes it into a file, but for its prefix."""
    bare = name.removeprefix("base_model.model.").replace(".default", "")
    return bare.removesuffix(".weight") if "magnitude_vector" in bare else bare
