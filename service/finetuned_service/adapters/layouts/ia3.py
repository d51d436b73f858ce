"""IA3 as PEFT writes it: one vector a module, on the input of feed-forward modules and the output of others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from finetuned_service.adapters.config_keys import ConfigKeys
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.layouts.layout import PREFIX, Shape
from finetuned_service.adapters.layouts.saved import SavedModules
from finetuned_service.adapters.lora_config import is_end
from finetuned_service.adapters.site_ops import ScaleInput, ScaleOutput, SiteOp
from finetuned_service.vocabulary import Method

VECTOR = "ia3_l"

_TENSOR = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.(?P<part>ia3_l)")


@dataclass(frozen=True, slots=True)
class Ia3Layout:
    """See `Layout`."""

    target_modules: tuple[str, ...] | None
    """Module names or dotted ends of them; None if the file gives a pattern."""
    feedforward_modules: tuple[str, ...]
    """Those of them whose input is scaled."""
    saved: SavedModules = field(default_factory=SavedModules)
    """Whole modules beside them."""
    selected_further: bool = False
    task_type: str | None = "CAUSAL_LM"
    """For PEFT alone."""
    fan_in_fan_out: bool = False
    """For PEFT alone: the base's own weights lie as [in, out]; the vector is the same either way."""
    method = Method.IA3
    head = None
    tensors_expected = f"is not an IA3 vector; expected {PREFIX}MODULE.{VECTOR}"

    @classmethod
    def read(cls, keys: ConfigKeys) -> Ia3Layout:
        """Raises: InvalidAdapterFiles, with a violation for every key that is wrong or not supported."""
        layout = cls(
            target_modules=keys.target_modules(),
            feedforward_modules=keys.names("feedforward_modules"),
            saved=SavedModules(keys.modules_to_save()),
            selected_further=keys.further_selection(),
            task_type=keys.task_type(),
            fan_in_fan_out=keys.boolean("fan_in_fan_out"),
        )
        keys.one_of("peft_type", ("IA3",))
        keys.auto_mapping()
        keys.others_are_off()
        keys.refuse_if_wrong()
        return layout

    def split(self, tensor: str) -> tuple[str, str] | None:
        found = _TENSOR.fullmatch(tensor)
        return self.saved.split(tensor) if found is None else (found["module"], found["part"])

    def shapes(self, module: str, base: BaseGeometry) -> Mapping[str, Shape] | None:
        if self.saved.has(module):
            return self.saved.shapes(module, base)
        shape = base.linear_shapes.get(module)
        if shape is None:
            return None
        out_features, in_features = shape
        return {VECTOR: (1, in_features) if self._scales_input(module) else (out_features, 1)}

    def changeable(self, base: BaseGeometry) -> Iterable[str]:
        return dict.fromkeys((*base.linear_shapes, *self.saved.changeable(base)))

    @property
    def named_targets(self) -> Mapping[str, tuple[str, ...]]:
        return {
            "target_modules": self.target_modules or (),
            "feedforward_modules": self.feedforward_modules,
            "modules_to_save": self.saved.names,
        }

    def targets(self, module: str) -> bool | None:
        if self.saved.has(module):
            return self.saved.targets(module)
        if self.target_modules is None:
            return None
        if not any(is_end(target, module) for target in self.target_modules):
            return False
        return None if self.selected_further else True

    def rank_of(self, module: str) -> int:
        return 0

    def ops(self, module: str, parts: Collection[str], base: BaseGeometry) -> tuple[SiteOp[str], ...]:
        if self.saved.has(module):
            return self.saved.ops(module, parts, base)
        name = f"{PREFIX}{module}.{VECTOR}"
        return (ScaleInput(name) if self._scales_input(module) else ScaleOutput(name),)

    def spelled_out(self, modules: Iterable[str]) -> dict[str, object]:
        names, saved = self.saved.divided(modules)
        spelled: dict[str, object] = {
            "peft_type": "IA3",
            "target_modules": names,
            "feedforward_modules": [name for name in names if self._scales_input(name)],
        }
        # Only where there are some: the digest of an adapter without any is older than the key.
        return spelled | {"modules_to_save": saved} if saved else spelled

    def written(self, modules: Iterable[str]) -> dict[str, object]:
        for_peft = {
            "task_type": self.task_type,
            "inference_mode": True,
            "fan_in_fan_out": self.fan_in_fan_out,
        }
        return {**self.spelled_out(modules), **for_peft}

    def _scales_input(self, module: str) -> bool:
        return any(is_end(name, module) for name in self.feedforward_modules)
