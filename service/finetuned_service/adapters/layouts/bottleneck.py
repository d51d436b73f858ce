"""Bottleneck adapters at layers or their sublayers. A layout of our own; PEFT has none."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from finetuned_service.adapters.config_keys import ConfigKeys
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.layouts.layout import PREFIX, Shape
from finetuned_service.adapters.lora_config import is_end, plain_number, read_alpha, read_rank
from finetuned_service.adapters.site_ops import Activation, MapOutput, SiteOp
from finetuned_service.vocabulary import Method

DOWN, DOWN_BIAS = "adapter_down.weight", "adapter_down.bias"
UP, UP_BIAS = "adapter_up.weight", "adapter_up.bias"

_TENSOR = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.(?P<part>adapter_(?:down|up)\.(?:weight|bias))")


@dataclass(frozen=True, slots=True)
class BottleneckLayout:
    """See `Layout`."""

    target_modules: tuple[str, ...]
    """Layers or sublayers, by their names or dotted ends of them."""
    width: int
    activation: Activation
    scaling: float = 1.0
    parallel: bool = False
    task_type: str | None = "CAUSAL_LM"
    """Said as in PEFT's files; nothing reads it."""
    method = Method.BOTTLENECK
    head = None
    tensors_expected = (
        f"is no tensor of a bottleneck; expected {PREFIX}MODULE.{DOWN}, {DOWN_BIAS}, {UP} or {UP_BIAS}"
    )

    @classmethod
    def read(cls, keys: ConfigKeys) -> BottleneckLayout:
        """Raises: InvalidAdapterFiles, with a violation for every key that is wrong or not supported."""
        keys.get("peft_type")
        task_type = keys.task_type()
        targets = keys.names("target_modules")
        if not targets:
            keys.wrong("target_modules", targets, "expected a list of names of layers or sublayers")
        layout = cls(
            target_modules=targets,
            width=keys.number("width", read_rank, "an integer of at least 1", 1),
            activation=keys.number(
                "activation", _activation, f"one of {', '.join(Activation)}", Activation.GELU
            ),
            scaling=keys.number("scaling", read_alpha, "a number above 0", 1.0),
            parallel=keys.boolean("parallel"),
            task_type=task_type,
        )
        keys.others_are_off()
        keys.refuse_if_wrong()
        return layout

    def split(self, tensor: str) -> tuple[str, str] | None:
        found = _TENSOR.fullmatch(tensor)
        return None if found is None else (found["module"], found["part"])

    def shapes(self, module: str, base: BaseGeometry) -> Mapping[str, Shape] | None:
        hidden = base.sublayers.get(module)
        if hidden is None or (self.parallel and module in base.linear_shapes):
            return None  # beside one product stands nothing: it reads what lies between two
        return {
            DOWN: (self.width, hidden),
            DOWN_BIAS: (self.width,),
            UP: (hidden, self.width),
            UP_BIAS: (hidden,),
        }

    def changeable(self, base: BaseGeometry) -> Iterable[str]:
        return base.sublayers

    @property
    def named_targets(self) -> Mapping[str, tuple[str, ...]]:
        return {"target_modules": self.target_modules}

    def targets(self, module: str) -> bool | None:
        return any(is_end(target, module) for target in self.target_modules)

    def rank_of(self, module: str) -> int:
        return 0

    def ops(self, module: str, parts: Collection[str], base: BaseGeometry) -> tuple[SiteOp[str], ...]:
        down, down_bias, up, up_bias = (f"{PREFIX}{module}.{part}" for part in (DOWN, DOWN_BIAS, UP, UP_BIAS))
        return (MapOutput(down, down_bias, up, up_bias, self.activation, self.scaling, self.parallel),)

    def spelled_out(self, modules: Iterable[str]) -> dict[str, object]:
        return {
            "peft_type": "BOTTLENECK",
            "target_modules": sorted(modules),
            "width": self.width,
            "activation": str(self.activation),
            "scaling": plain_number(self.scaling),
            "parallel": self.parallel,
        }

    def written(self, modules: Iterable[str]) -> dict[str, object]:
        return {**self.spelled_out(modules), "task_type": self.task_type, "inference_mode": True}


def _activation(value: object) -> Activation | None:
    return Activation(value) if isinstance(value, str) and value in set(Activation) else None
