"""What one layout of adapter files says: which tensors there are, and which site ops they become. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.head import Head
from finetuned_service.adapters.site_ops import SiteOp
from finetuned_service.vocabulary import Method

PREFIX = "base_model.model."
"""In front of every module's name in a file: PEFT wraps a model twice before it names its modules."""

Shape = tuple[int, ...]


class Layout(Protocol):
    """One adapter's configuration, read and checked as far as it goes without tensors."""

    @property
    def method(self) -> Method: ...

    @property
    def head(self) -> Head | None:
        """What its outputs mean; None if it leaves the base's own."""
        ...

    @property
    def tensors_expected(self) -> str:
        """For people: what a tensor's name looks like."""
        ...

    def split(self, tensor: str) -> tuple[str, str] | None:
        """A tensor's name as (module of the base, which part of the layout it is there); None if it is none."""
        ...

    def shapes(self, module: str, base: BaseGeometry) -> Mapping[str, Shape] | None:
        """Part → shape of every tensor that a changed module has; None if the base's cannot be changed so."""
        ...

    def changeable(self, base: BaseGeometry) -> Iterable[str]:
        """All modules of the base for which `shapes` is not None."""
        ...

    @property
    def named_targets(self) -> Mapping[str, tuple[str, ...]]:
        """Key of the configuration → names or dotted ends in it that must be modules of the base."""
        ...

    def targets(self, module: str) -> bool | None:
        """Whether the adapter changes a changeable module; None where only its tensors tell."""
        ...

    def rank_of(self, module: str) -> int:
        """Of the module's update, 0 without one."""
        ...

    def ops(self, module: str, parts: Collection[str], base: BaseGeometry) -> tuple[SiteOp[str], ...]:
        """What happens at a changed module of the base that has these parts; arrays are names of tensors."""
        ...

    def spelled_out(self, modules: Iterable[str]) -> dict[str, object]:
        """The configuration with every changed module by its full name, as JSON values.

        Equal for configurations that mean the same, however their files spell it: the digest is over it.
        """
        ...

    def written(self, modules: Iterable[str]) -> dict[str, object]:
        """`spelled_out`, with what other readers of the file want and what says nothing here."""
        ...
