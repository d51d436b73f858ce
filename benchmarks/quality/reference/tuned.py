"""The reference as its users run it: the method's own beginning, the Trainer's own schedule, order and dropout."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import set_seed

from benchmarks.quality.reference.batches import Row
from benchmarks.quality.reference.bottleneck import add_bottlenecks, near_identity
from benchmarks.quality.reference.loops import Learner, Objective, train
from benchmarks.quality.reference.model import peft_config, peft_parameters
from benchmarks.quality.reference.trained import Trained

ALPHA = 32


def lora_config(lora: Mapping[str, Any], task_type: str | None = None) -> LoraConfig:
    """PEFT's LoRA on the modules that ours has by default, of its rank, with an alpha of its users."""
    return LoraConfig(
        r=lora["rank"],
        lora_alpha=ALPHA,
        target_modules=list(lora["target_modules"]),
        task_type=task_type,
        use_rslora=lora["rank_stabilized"],
        use_dora=lora["decomposed"],
    )


def with_method(model: Any, spec: Mapping[str, Any]) -> tuple[Any, dict[str, nn.Parameter]]:
    """The model with the method of a resolved spec on the modules that ours has, as its library or its paper begins it;
    and what trains.
    """
    set_seed(spec["optimization"]["seed"])
    match spec["method"]:
        case "LORA" | "IA3":
            lora = spec["method"] == "LORA"
            config = lora_config(spec["lora"]) if lora else peft_config(spec, spec["task"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = get_peft_model(model, config)
            return model, peft_parameters(model)
        case "BOTTLENECK":
            bottleneck = spec["bottleneck"]
            sizes = (model.config.hidden_size, bottleneck["width"])
            begun = {
                f"{name}.{part}": array
                for name in bottleneck["target_modules"]
                for part, array in near_identity(*sizes).items()
            }
            return model, add_bottlenecks(model, begun)
        case "LAYERS":
            for number in spec["layers"]["layers"]:
                layers_of(model)[number].requires_grad_(requires_grad=True)
        case _:
            model.requires_grad_(requires_grad=True)
    return model, {name: p for name, p in model.named_parameters() if p.requires_grad}


def layers_of(model: Any) -> Sequence[nn.Module]:
    """What our LAYERS counts: those of an encoder, the stages of a ResNet."""
    encoder = model.encoder
    return encoder.layer if hasattr(encoder, "layer") else encoder.stages


def tuned_loop(
    objective: Objective,
    modules: Sequence[torch.nn.Module],
    rows: Sequence[Row],
    settings: Mapping[str, float],
    *,
    batch_rows: int,
    seed: int,
    directory: str,
    dropout: bool,
) -> Trained:
    """`settings`: as `tuned_arguments`; the rest is TrainingArguments' own."""
    return train(
        Learner(objective, modules, dropout=dropout),
        rows,
        directory,
        **tuned_arguments(settings, batch_rows, seed),
    )


def tuned_arguments(settings: Mapping[str, float], batch_rows: int, seed: int) -> dict[str, Any]:
    """TrainingArguments of `settings`: `learning_rate` and `epochs`; `max_steps` where it ends before."""
    return {
        "learning_rate": settings["learning_rate"],
        "num_train_epochs": settings["epochs"],
        "max_steps": int(settings.get("max_steps", -1)),
        "per_device_train_batch_size": batch_rows,
        "seed": seed,
    }
