"""Modules that an adapter of PEFT's replaces whole, beside what it changes otherwise (`modules_to_save`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.layouts.layout import PREFIX, Shape
from finetuned_service.adapters.layouts.parameters import parameter_shapes, substitutions
from finetuned_service.adapters.lora_config import is_end
from finetuned_service.adapters.site_ops import SiteOp


@dataclass(frozen=True, slots=True)
class SavedModules:
    """The part of a layout that says which they are, and what they become."""

    names: tuple[str, ...] = ()
    """Module names or dotted ends of them."""

    def has(self, module: str) -> bool:
        """Whether the module, by its full name, is one of them."""
        return any(is_end(name, module) for name in self.names)

    def split(self, tensor: str) -> tuple[str, str] | None:
        """See `Layout.split`."""
        module, _, part = tensor.removeprefix(PREFIX).rpartition(".")
        return (module, part) if tensor.startswith(PREFIX) and self.has(module) else None

    def shapes(self, module: str, base: BaseGeometry) -> Mapping[str, Shape] | None:
        """See `Layout.shapes`."""
        parts = [part for part in ("weight", "bias") if f"{module}.{part}" in base.parameters]
        shapes = parameter_shapes(module, parts, base, {})
        if shapes is None or not base.saved_turned(module):
            return shapes
        return {part: shape[::-1] for part, shape in shapes.items()}

    def changeable(self, base: BaseGeometry) -> Iterable[str]:
        """Those that the base has."""
        owners = dict.fromkeys(name.rpartition(".")[0] for name in base.parameters)
        return [module for module in owners if self.has(module)]

    def ops(self, module: str, parts: Collection[str], base: BaseGeometry) -> tuple[SiteOp[str], ...]:
        """See `Layout.ops`."""
        return substitutions(module, parts, {}, turned=base.saved_turned(module))
