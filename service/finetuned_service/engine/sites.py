"""The places of a base model where adapters act, and the modules that stand there.

`install_sites` puts an `AdapterSite` around every linear module of the decoder's layers. The base's
module and its weight stay as they are; the site adds what the kernels of the current step say.
A kernel is what one method (LoRA; others later) does at one site for all rows of the step at once.
Kernels of today change the output after the base's product (`AfterKernel`); scaled inputs,
substituted parameters and mapped outputs get phases of their own beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from torch import Tensor, nn


class AfterKernel(Protocol):
    """Acts after the base's linear product, in place, on the rows that asked for it and no others."""

    def __call__(self, inputs: Tensor, outputs: Tensor) -> None:
        """Change `outputs` `[T, out_features]` given the site's `inputs` `[T, in_features]`."""
        ...


class CurrentStep:
    """What the sites of one model do in the forward that runs now; written by the EngineModel only."""

    __slots__ = ("after",)

    def __init__(self) -> None:
        self.after: Sequence[AfterKernel | None] | None = None
        """By site index; None: no adapter in this step."""


@final
class AdapterSite(nn.Module):
    """A linear module of the base (any module that maps `[..., in]` to `[..., out]`) and its kernels."""

    def __init__(self, base: nn.Module, index: int, current: CurrentStep) -> None:
        super().__init__()
        self.base = base
        self._index = index
        self._current = current

    def forward(self, inputs: Tensor) -> Tensor:
        """`[1, T, in_features]` to `[1, T, out_features]`, rows packed."""
        outputs: Tensor = self.base(inputs)
        after = self._current.after
        if after is not None and (kernel := after[self._index]) is not None:
            kernel(inputs[0], outputs[0])
        return outputs


@dataclass(frozen=True, slots=True)
class SiteKind:
    """Sites with the same last name and shape: all `q_proj` of a model. They share one weight bank."""

    name: str
    in_features: int
    out_features: int
    sites: tuple[int, ...]
    """Indices of its sites, in the model's order."""


@dataclass(frozen=True, slots=True)
class SiteTable:
    """All sites of a base, by index; the names are those of the base's modules."""

    names: tuple[str, ...]
    kinds: tuple[SiteKind, ...]

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Site name to (out_features, in_features)."""
        return {
            self.names[site]: (kind.out_features, kind.in_features)
            for kind in self.kinds
            for site in kind.sites
        }

    def locate(self) -> dict[str, tuple[int, int]]:
        """Site name to (index of its kind, its place among the kind's sites)."""
        return {
            self.names[site]: (k, place)
            for k, kind in enumerate(self.kinds)
            for place, site in enumerate(kind.sites)
        }


def install_sites(model: Any, current: CurrentStep) -> SiteTable:
    """Wrap every `nn.Linear` (and subclasses, such as quantized ones) inside the decoder's layers.

    Args:
        model: a transformers causal LM; changed in place.
        current: what the sites look at in each forward.
    """
    table = find_sites(model)
    for index, name in enumerate(table.names):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, AdapterSite(model.get_submodule(name), index, current))
    return table


def find_sites(model: Any) -> SiteTable:
    """Every `nn.Linear` (and subclasses) inside the decoder's layers of a transformers causal LM."""
    layers = model.get_decoder().layers
    prefix = next(name for name, module in model.named_modules() if module is layers)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name.startswith(f"{prefix}.") and isinstance(module, nn.Linear)
    ]
    members: dict[tuple[str, int, int], list[int]] = {}
    for index, (name, linear) in enumerate(found):
        last = name.rpartition(".")[2]
        members.setdefault((last, linear.in_features, linear.out_features), []).append(index)
    kinds = tuple(
        SiteKind(last, in_features, out_features, tuple(sites))
        for (last, in_features, out_features), sites in members.items()
    )
    return SiteTable(tuple(name for name, _ in found), kinds)
