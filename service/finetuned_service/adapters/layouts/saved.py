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
    """Ends of module names. PEFT asks for no dot before them: "norm" means each `input_layernorm`, too."""

    def has(self, module: str) -> bool:
        """Whether the module, by its full name, may be one of them."""
        return module.endswith(self.names)

    def targets(self, module: str) -> bool | None:
        """Whether it is; None where only its tensors tell. Adapters that are trained here mean names and dotted ends alone."""
        if any(is_end(name, module) for name in self.names):
            return True
        return None if self.has(module) else False

    def divided(self, modules: Iterable[str]) -> tuple[list[str], list[str]]:
        """The changed modules that are none of them, and those that are, sorted."""
        names = sorted(modules)
        return [name for name in names if not self.has(name)], [name for name in names if self.has(name)]

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
