"""Read a LoRA adapter in PEFT's layout into serving form, or refuse it whole.

Files were checked in full when they were imported (`adapters/files.py`); the engine still plans for
itself: every tensor meets a site of the base it holds, every pair is complete, every shape fits, and
the sites are all those that the configuration names. An adapter is applied in full or not at all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finetuned_service.engine.lora_bank import LoraWeights
from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.engine.sites import SiteTable, linear_shapes
from finetuned_service.errors import AdapterIncompatible, InvalidAdapterFiles, Unavailable, Violation

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_T = TypeVar("_T")
_TENSOR_NAME = re.compile(r"base_model\.model\.(?P<site>.+)\.lora_(?P<side>[AB])\.weight")


class _LoraConfig(BaseModel):
    """The keys that decide the numbers; all others were judged at import."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    peft_type: str
    r: int = Field(ge=1)
    lora_alpha: float = Field(strict=False)
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    lora_bias: bool = False
    target_modules: list[str]
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}

    def unsupported(self) -> str | None:
        """What this build's engine would have to ignore, if anything."""
        found = {
            "peft_type": self.peft_type != "LORA",
            "use_dora": self.use_dora,
            "fan_in_fan_out": self.fan_in_fan_out,
            "bias": self.bias != "none",
            "lora_bias": self.lora_bias,
            "modules_to_save": bool(self.modules_to_save),
        }
        return next((key for key, present in found.items() if present), None)

    def rank_of(self, site: str) -> int:
        return _matching(self.rank_pattern, site, self.r)

    def scaling_of(self, site: str) -> float:
        """Alpha / r, or alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2312.03732), by pattern."""
        rank = self.rank_of(site)
        alpha = _matching(self.alpha_pattern, site, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _matching(pattern: Mapping[str, _T], site: str, default: _T) -> _T:
    """The value of the first key that is the site's name or a dotted end of it, as PEFT chooses it."""
    return next((value for key, value in pattern.items() if _is_end(key, site)), default)


def _is_end(name: str, site: str) -> bool:
    return site == name or site.endswith(f".{name}")


class AdapterReader:
    """Reads adapters for one base: its sites and its dtype."""

    def __init__(self, table: SiteTable, dtype: torch.dtype) -> None:
        self._shapes = linear_shapes(table)
        self._locate = table.locate()
        self._dtype = dtype

    def size_bytes(self, handle: AdapterHandle) -> int:
        """At most so many bytes will the adapter have when read; looks only at the file's size.

        Raises:
            Unavailable: if the files cannot be reached.
        """
        try:
            stored = (Path(handle.directory) / WEIGHTS_FILE).stat().st_size
        except OSError as error:
            raise _unreachable(handle) from error
        return stored * self._dtype.itemsize // 2

    @torch.inference_mode()
    def read(self, handle: AdapterHandle) -> LoraWeights:
        """The whole adapter, ready to be copied into the banks.

        Raises:
            InvalidAdapterFiles: if its files are not what their configuration says.
            AdapterIncompatible: if they need a site or a feature that the engine does not have.
            Unavailable: if the files cannot be reached.
        """
        directory = Path(handle.directory)
        try:
            config = _LoraConfig.model_validate_json((directory / CONFIG_FILE).read_bytes())
            tensors: dict[str, Tensor] = load_file(directory / WEIGHTS_FILE)
        except OSError as error:
            raise _unreachable(handle) from error
        except (ValidationError, SafetensorError, json.JSONDecodeError) as error:
            raise InvalidAdapterFiles(
                f"adapter {handle.digest} is not in PEFT's LoRA layout; import it again"
            ) from error
        if (key := config.unsupported()) is not None:
            raise AdapterIncompatible(
                f"adapter {handle.digest} sets {key!r}, which this engine does not apply; "
                "it applies LoRA without bias, DoRA or saved modules",
                metadata={"adapter_digest": handle.digest, "key": key},
            )
        self._check(handle, config, tensors)
        pairs = {site: self._pair(site, config, tensors) for site in self._targets(config)}
        if not all(bool(torch.isfinite(t).all()) for pair in pairs.values() for t in pair):
            raise InvalidAdapterFiles(
                f"adapter {handle.digest} has values that are not finite in {self._dtype}; train it again "
                "with a smaller learning rate or alpha"
            )
        ranks: dict[int, int] = {}
        for site, (a, _) in pairs.items():
            kind, _ = self._locate[site]
            ranks[kind] = max(ranks.get(kind, 0), a.shape[0])
        return LoraWeights(pairs, ranks)

    def _targets(self, config: _LoraConfig) -> list[str]:
        return [site for site in self._shapes if any(_is_end(t, site) for t in config.target_modules)]

    def _check(self, handle: AdapterHandle, config: _LoraConfig, tensors: Mapping[str, Tensor]) -> None:
        targets = self._targets(config)
        expected: dict[str, tuple[int, ...]] = {}
        for site in targets:
            rank, (out_features, in_features) = config.rank_of(site), self._shapes[site]
            expected[f"base_model.model.{site}.lora_A.weight"] = (rank, in_features)
            expected[f"base_model.model.{site}.lora_B.weight"] = (out_features, rank)
        unknown = [
            name
            for name in tensors
            if (m := _TENSOR_NAME.fullmatch(name)) is None or m["site"] not in self._shapes
        ]
        absent = [t for t in config.target_modules if not any(_is_end(t, site) for site in targets)]
        if unknown or absent:
            raise AdapterIncompatible(
                f"adapter {handle.digest} changes places that this base does not have as adapter sites: "
                f"{', '.join((absent + unknown)[:3])}; sites are the linear modules of the decoder's layers",
                metadata={"adapter_digest": handle.digest},
            )
        violations = [
            Violation(name, f"is missing; expected shape {list(shape)}")
            for name, shape in expected.items()
            if name not in tensors
        ]
        violations += [
            Violation(name, f"has shape {list(tensor.shape)}; expected {_expectation(expected.get(name))}")
            for name, tensor in tensors.items()
            if tuple(tensor.shape) != expected.get(name)
        ]
        if violations:
            raise InvalidAdapterFiles(
                f"adapter {handle.digest} does not hold what its configuration says: "
                f"{len(violations)} tensors are wrong",
                violations=violations,
            )

    def _pair(self, site: str, config: _LoraConfig, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        a = tensors[f"base_model.model.{site}.lora_A.weight"]
        b = tensors[f"base_model.model.{site}.lora_B.weight"]
        scaled = b.to(torch.float32).mul(config.scaling_of(site)).t()
        return a.to(self._dtype, copy=True), scaled.to(self._dtype).contiguous()


def _expectation(shape: Any) -> str:
    return "no such tensor" if shape is None else str(list(shape))


def _unreachable(handle: AdapterHandle) -> Unavailable:
    return Unavailable(
        f"the files of adapter {handle.digest} cannot be read now; try again, or import it again",
        retry_after_seconds=5.0,
    )
