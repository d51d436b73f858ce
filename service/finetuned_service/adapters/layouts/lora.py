"""LoRA, rsLoRA and DoRA as PEFT writes them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.layouts.layout import PREFIX, Shape
from finetuned_service.adapters.layouts.saved import SavedModules
from finetuned_service.adapters.lora_config import LoraConfig
from finetuned_service.adapters.site_ops import AddLowRank, ScaleRows, SiteOp
from finetuned_service.vocabulary import Method

A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"

_PLAIN_TENSOR = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.(?P<part>lora_[AB]\.weight)")
_DECOMPOSED_TENSOR = re.compile(
    rf"{re.escape(PREFIX)}(?P<module>.+)\.(?P<part>lora_[AB]\.weight|lora_magnitude_vector)"
)


@dataclass(frozen=True, slots=True)
class LoraLayout:
    """See `Layout`."""

    config: LoraConfig
    task_type: str | None = "CAUSAL_LM"
    """For PEFT alone."""
    fan_in_fan_out: bool = False
    """For PEFT alone: the base's own weights lie as [in, out]; A and B lie the same way either way."""
    method = Method.LORA
    head = None

    @property
    def saved(self) -> SavedModules:
        """Whole modules beside the updates."""
        return SavedModules(self.config.modules_to_save)

    @property
    def tensors_expected(self) -> str:
        expected = f"is not a LoRA matrix; expected {PREFIX}MODULE.{A} and lora_B"
        return f"{expected}, and {MAGNITUDE}" if self.config.decomposed else expected

    def split(self, tensor: str) -> tuple[str, str] | None:
        pattern = _DECOMPOSED_TENSOR if self.config.decomposed else _PLAIN_TENSOR
        found = pattern.fullmatch(tensor)
        if found is not None:
            return found["module"], found["part"]
        return self.saved.split(tensor)

    def shapes(self, module: str, base: BaseGeometry) -> Mapping[str, Shape] | None:
        if self.saved.has(module):
            return self.saved.shapes(module, base)
        shape = base.linear_shapes.get(module) or base.convolutions.get(module)
        if shape is None:
            return None
        out_features, in_features, *kernel = shape
        rank = self.config.rank_of(module)
        # A convolution's A is one of the same kernel, and its B one of a single point.
        points = (1,) * len(kernel)
        shapes: dict[str, Shape] = {A: (rank, in_features, *kernel), B: (out_features, rank, *points)}
        if not self.config.decomposed:
            return shapes
        return shapes | {MAGNITUDE: (1, out_features, *points) if kernel else (out_features,)}

    def changeable(self, base: BaseGeometry) -> Iterable[str]:
        return dict.fromkeys((*base.linear_shapes, *base.convolutions, *self.saved.changeable(base)))

    @property
    def named_targets(self) -> Mapping[str, tuple[str, ...]]:
        return {
            "target_modules": self.config.target_modules or (),
            "modules_to_save": self.saved.names,
        }

    def targets(self, module: str) -> bool | None:
        return self.saved.targets(module) if self.saved.has(module) else self.config.targets(module)

    def rank_of(self, module: str) -> int:
        return 0 if self.saved.has(module) else self.config.rank_of(module)

    def ops(self, module: str, parts: Collection[str], base: BaseGeometry) -> tuple[SiteOp[str], ...]:
        if self.saved.has(module):
            return self.saved.ops(module, parts, base)
        name = f"{PREFIX}{module}."
        add = AddLowRank(name + A, name + B, self.config.scaling_of(module))
        return (add, ScaleRows(name + MAGNITUDE)) if self.config.decomposed else (add,)

    def spelled_out(self, modules: Iterable[str]) -> dict[str, object]:
        updated, saved = self.saved.divided(modules)
        return self.config.spelled_out(updated, saved)

    def written(self, modules: Iterable[str]) -> dict[str, object]:
        for_peft = {
            "task_type": self.task_type,
            "inference_mode": True,
            "fan_in_fan_out": self.fan_in_fan_out,
        }
        return {**self.spelled_out(modules), **for_peft}
