"""The files of a trained adapter: adapter_config.json and adapter_model.safetensors, in PEFT's layout where it has one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from finetuned_service.adapters.files import CONFIG_FILE, WEIGHTS_FILE, check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.layouts import PREFIX
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.errors import InvalidField
from finetuned_service.jobs.methods import MAX_RANK
from finetuned_service.training.methods import Installed
from finetuned_service.training.trainable import Parameters

ENCODER_TASK_TYPE = "FEATURE_EXTRACTION"
"""What PEFT is told of adapters over text encoders: its other classes have heads with layers of their own. Of those over
vision models it is told none: this class asks for token ids.
"""


def write_adapter(
    directory: Path, method: Installed, base: str, dtype: torch.dtype, *, task_type: str | None = "CAUSAL_LM"
) -> None:
    """Write an adapter's two files into a directory that exists.

    Args:
        directory: where to write.
        method: what was trained.
        base: the base's resource name, for the reader of the file.
        dtype: the base's: training computed with the parameters rounded to it, so nothing is lost, and
            two runs of one job give the same bytes.
        task_type: which class of PEFT's reads the files; None is its plain one.
    """
    tensors = {
        PREFIX + name: value.detach().to(dtype).contiguous() for name, value in method.parameters.items()
    }
    save_file(dict(sorted(tensors.items())), directory / WEIGHTS_FILE, metadata={"format": "pt"})
    common = {"task_type": task_type, "base_model_name_or_path": base, "inference_mode": True}
    # What lies deeper keeps its order: of a pattern's keys the first that fits a module counts.
    config = json.dumps(dict(sorted({**method.config, **common}.items())), indent=2)
    (directory / CONFIG_FILE).write_text(config + "\n")


def read_adapter(directory: Path, model: Parameters) -> None:
    """Put the tensors of an adapter's files into the parameters of a model, which are of the same names.

    Raises:
        InvalidField: names or shapes differ; nothing is changed.
    """
    wanted = {PREFIX + name: parameter for name, parameter in model.named_parameters()}
    with safe_open(directory / WEIGHTS_FILE, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        shapes = {name: tuple(parameter.shape) for name, parameter in wanted.items()}
        different = sorted(
            name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name)
        )
        if different:
            raise InvalidField.one(
                "spec.continue_from",
                f"has other tensors than this job trains: {len(different)} differ, the first is {different[0]!r}. "
                "Use the settings that it was made with",
            )
        with torch.no_grad():
            # One at a time: the files of FULL are as large as the base.
            for name, parameter in wanted.items():
                parameter.copy_(file.get_tensor(name))


def adapter_handle(directory: Path, base_directory: Path) -> AdapterHandle:
    """What the engine is told of an adapter, after its files have been checked as an import would be.

    Raises:
        InvalidAdapterFiles: they do not fit the base.
    """
    facts = check_adapter(directory, BaseGeometry.of_directory(base_directory), MAX_RANK)
    return AdapterHandle(facts.digest, str(directory))
