"""What all adapters of a step do at one linear module: the ops of `adapters/site_ops.py` in their order.

Low-rank updates of all rows go together (`lora_kernel.py`); every other op acts on the rows of its own
adapter, in place, which are neighbours in the packed batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from finetuned_service.adapters.geometry import HEAD
from finetuned_service.adapters.site_ops import MapOutput, ScaleInput, ScaleOutput
from finetuned_service.engine.adapter_weights import ScaleProduct
from finetuned_service.engine.lora_bank import LoraBanks
from finetuned_service.engine.lora_kernel import LoraKernel, LoraRows, build_kernels
from finetuned_service.engine.module_change import (
    RowChange,
    RowOps,
    bottleneck,
    substituted,
    with_parameters,
)
from finetuned_service.engine.place import AdapterPlace
from finetuned_service.engine.sites import SiteTable


@dataclass(frozen=True, slots=True)
class RowRun:
    """Neighbouring rows of the packed batch with one adapter."""

    start: int
    end: int
    place: AdapterPlace


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """Which rows of a step belong to which adapter. Equal ones have equal kernels."""

    lora: LoraRows
    runs: tuple[RowRun, ...]
    """Of adapters that have other ops than low-rank updates."""
    head_runs: tuple[RowRun, ...] = ()
    """The same, counted over the rows whose logits are computed."""


@final
class LinearKernel:
    """See `sites.SiteKernel`."""

    __slots__ = ("_changes", "_lora")

    def __init__(self, lora: LoraKernel | None, changes: Sequence[RowOps]) -> None:
        self._lora = lora
        self._changes = changes

    def __call__(self, base: nn.Module, inputs: Tensor) -> Tensor:
        inputs = self._scaled(inputs)
        outputs: Tensor = base(inputs)
        for rows, ops in self._changes:
            if parameters := substituted(ops):
                outputs[0, rows] = with_parameters(base, inputs[0, rows], parameters)
        if self._lora is not None:
            self._lora(inputs[0], outputs[0])
        for rows, ops in self._changes:
            for op in ops:
                match op:
                    case ScaleProduct(gain):
                        _scale_product(outputs[0, rows], gain, base)
                    case ScaleOutput(gain):
                        outputs[0, rows].mul_(gain)
                    case MapOutput():
                        outputs[0, rows] += bottleneck(op, outputs[0, rows])
                    case _:
                        pass
        return outputs

    def _scaled(self, inputs: Tensor) -> Tensor:
        gains = [(rows, op.gain) for rows, ops in self._changes for op in ops if isinstance(op, ScaleInput)]
        if gains:
            inputs = inputs.clone()  # other modules read the same ones
            for rows, gain in gains:
                inputs[0, rows].mul_(gain)
        return inputs


def _scale_product(outputs: Tensor, gain: Tensor, base: nn.Module) -> None:
    bias = getattr(base, "bias", None)
    if bias is None:
        outputs.mul_(gain)
    else:
        outputs.sub_(bias).mul_(gain).add_(bias)


def build_site_kernels(banks: LoraBanks, rows: AdaptedRows) -> list[LinearKernel | None]:
    """The kernels of a step, by site index; None where no adapter of the step acts."""
    lora = build_kernels(banks, rows.lora)
    changes = changes_by_module(rows.runs)
    kernels: list[LinearKernel | None] = []
    for site, name in enumerate(banks.table.names):
        here = changes.get(name, ())
        acts = here or lora[site] is not None
        kernels.append(LinearKernel(lora[site], here) if acts else None)
    return kernels


def build_module_changes(table: SiteTable, rows: AdaptedRows) -> dict[str, RowChange]:
    """What the adapters of a step do at modules that are no sites, by name."""
    sites = frozenset(table.names)
    changes = {name: here for name, here in changes_by_module(rows.runs).items() if name not in sites}
    changes.pop(HEAD, None)  # it sees fewer rows
    changes |= {name: here for name, here in changes_by_module(rows.head_runs).items() if name == HEAD}
    return {name: RowChange(here) for name, here in changes.items()}


def changes_by_module(runs: Iterable[RowRun]) -> Mapping[str, list[RowOps]]:
    """For each module that the adapters of these rows change: where, and what."""
    changes: dict[str, list[RowOps]] = {}
    for run in runs:
        rows = slice(run.start, run.end)
        for module, ops in run.place.ops.items():
            changes.setdefault(module, []).append((rows, ops))
    return changes
