"""Writes a quantized base: every weight encoded one by one, and what the source says about itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from finetuned_service.bases.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    BaseManifest,
    describe_base,
    read_config,
    write_manifest,
)
from finetuned_service.names import BaseName
from finetuned_service.quantization.formats import FORMATS, Format
from finetuned_service.quantization.plan import Plan
from finetuned_service.vocabulary import WeightFormat

_ALIGNMENT = 64
"""In bytes: of the widest vectors."""


def store_quantized(
    source: Path,
    target: Path,
    plan: Plan,
    weight_format: WeightFormat,
    name: BaseName,
    on_module: Callable[[], None],
) -> BaseManifest:
    """Write the quantized base into the empty directory `target`; nothing of it depends on chance.

    Args:
        source: an unquantized base in the store.
        target: a scratch directory.
        plan: which modules change format.
        weight_format: one of `FORMATS`.
        name: of the new base.
        on_module: called after each weight that was encoded; may raise to stop.
    """
    manifest = BaseManifest.model_validate_json((source / MANIFEST_FILE).read_bytes())
    chosen = FORMATS[weight_format]
    dtype = _encode_all(source, target, plan, chosen, on_module)
    config: dict[str, Any] = read_config(source) | {
        "quantization_config": chosen.configuration(dtype, plan.kept)
    }
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in source.iterdir():
        if path.name not in {CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE}:
            shutil.copyfile(path, target / path.name)
    derived = describe_base(
        target,
        name=name,
        weight_format=weight_format,
        source=manifest.name,
        parameters=manifest.parameters,
        root_digest=manifest.root_digest,
        recipe=f"{chosen.recipe}; torch {version('torch')}",
        lineage_note=manifest.lineage_note,
    )
    write_manifest(target, derived)
    return derived


def _encode_all(
    source: Path, target: Path, plan: Plan, chosen: Format, on_module: Callable[[], None]
) -> torch.dtype:
    """Write model.safetensors; returns the dtype of what was encoded."""
    encoded_weights = {f"{name}.weight": name for name in plan.stored}
    tensors: dict[str, torch.Tensor] = {}
    dtype = torch.get_default_dtype()
    with safe_open(source / WEIGHTS_FILE, framework="pt") as file:
        for key in sorted(file.keys()):
            tensor: torch.Tensor = file.get_tensor(key)
            if key not in encoded_weights:
                tensors[key] = tensor
                continue
            dtype, module = tensor.dtype, encoded_weights[key]
            weight = tensor.T.contiguous() if module in plan.turned else tensor
            for part, encoded in chosen.encode(weight).items():
                tensors[f"{module}.{part}"] = encoded
            on_module()
        save_file(tensors, target / WEIGHTS_FILE, {"format": "pt"})
    align(target / WEIGHTS_FILE)
    return dtype


def align(path: Path) -> None:
    """Let the tensors of a safetensors file begin at a multiple of `_ALIGNMENT`: they are mapped from it, kernels want them there,
    and the library sees to multiples of 8. The format lets spaces follow the header.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        missing = -(8 + length) % _ALIGNMENT
        if not missing:
            return
        aligned = path.with_suffix(".aligned")
        with aligned.open("wb") as copy:
            copy.write((length + missing).to_bytes(8, "little") + file.read(length) + b" " * missing)
            shutil.copyfileobj(file, copy)
    aligned.replace(path)
