"""An adapter in PEFT's layout: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from finetuned_service.adapters.files import CONFIG_FILE, WEIGHTS_FILE, check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.jobs.values import LoraSettings

MAX_RANK = 1024
"""More than any TrainJob may ask for; what a server serves is its own decision."""

_PREFIX = "base_model.model."
"""PEFT wraps the model twice before it names its modules."""
_PARAMETER_NAMES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}


def write_adapter(
    directory: Path, parameters: Mapping[str, Tensor], settings: LoraSettings, base: str, dtype: torch.dtype
) -> None:
    """Write an adapter's two files into a directory that exists.

    Args:
        directory: where to write.
        parameters: as `AdaptedModel.named_parameters` names them.
        settings: resolved.
        base: the base's resource name, for the reader of the file.
        dtype: the base's: training computed with the parameters rounded to it, so nothing is lost, and
            two runs of one job give the same bytes.
    """
    tensors = {_peft_name(name): value.detach().to(dtype).contiguous() for name, value in parameters.items()}
    save_file(dict(sorted(tensors.items())), directory / WEIGHTS_FILE, metadata={"format": "pt"})
    config = json.dumps(_config(settings, base), indent=2, sort_keys=True)
    (directory / CONFIG_FILE).write_text(config + "\n")


def adapter_handle(directory: Path, base_directory: Path) -> AdapterHandle:
    """What the engine is told of an adapter, after its files have been checked as an import would be.

    Raises:
        InvalidAdapterFiles: they do not fit the base.
    """
    facts = check_adapter(directory, BaseGeometry.of_directory(base_directory), MAX_RANK)
    return AdapterHandle(facts.digest, str(directory))


def _peft_name(parameter: str) -> str:
    module, _, kind = parameter.rpartition(".")
    return f"{_PREFIX}{module}.{_PARAMETER_NAMES[kind]}"


def _config(settings: LoraSettings, base: str) -> dict[str, object]:
    alpha = settings.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": int(alpha) if alpha is not None and alpha == int(alpha) else alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rank_stabilized,
        "target_modules": sorted(settings.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
