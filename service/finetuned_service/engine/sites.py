"""The places of a base model where adapters act, and the modules that stand there.

`install_sites` puts an `AdapterSite` around every linear module of the base's numbered blocks. The base's
module and its weight stay as they are; the site does what the kernels of the current step say.
A kernel is what all adapters of a step do at one site, for all its rows at once (`site_kernel.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from torch import Tensor, nn

from finetuned_service.adapters.geometry import IN_BLOCK


class SiteKernel(Protocol):
    """What all adapters of a step do at one linear module, for all rows at once."""

    def __call__(self, base: nn.Module, inputs: Tensor) -> Tensor:
        """The module's outputs `[1, T, out_features]` for `inputs` `[1, T, in_features]`, which stay as they
        are; rows that asked for no adapter get what `base` makes of them.
        """
        ...


class ModuleChange(Protocol):
    """What all adapters of a step do at a module that is no site, for all rows at once."""

    def __call__(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        """Change `outputs` `[T, ...]`, which the module made of `inputs` `[T, ...]`, in place; T are packed rows, or
        images.
        """
        ...


class CurrentStep:
    """What the sites of one model do in the forward that runs now; written by the EngineModel only."""

    __slots__ = ("kernels", "modules")

    def __init__(self) -> None:
        self.kernels: Sequence[SiteKernel | None] | None = None
        """By site index; None: no adapter in this step."""
        self.modules: Mapping[str, ModuleChange] | None = None
        """By the name of a module that is no site; None: no adapter in this step."""


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
        kernels = self._current.kernels
        if kernels is None or (kernel := kernels[self._index]) is None:
            outputs: Tensor = self.base(inputs)
            return outputs
        return kernel(self.base, inputs)


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
    """Wrap every `nn.Linear` (and subclasses, such as quantized ones) inside the numbered blocks.

    Args:
        model: a transformers causal LM or text encoder; changed in place.
        current: what the sites look at in each forward.
    """
    table = find_sites(model)
    for index, name in enumerate(table.names):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, AdapterSite(model.get_submodule(name), index, current))
    return table


def find_sites(model: Any) -> SiteTable:
    """Every `nn.Linear` (and subclasses) inside the numbered blocks of a transformers model."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if IN_BLOCK.fullmatch(name) and isinstance(module, nn.Linear)
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
