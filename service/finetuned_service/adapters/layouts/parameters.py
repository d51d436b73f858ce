"""LAYERS, FULL and the HEAD of a decoder: parameters of the base, whole, under the base's own names. A layout of our own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from finetuned_service.adapters.config_keys import ConfigKeys
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.layouts.layout import PREFIX, Shape
from finetuned_service.adapters.site_ops import SiteOp, SubstituteParameter
from finetuned_service.vocabulary import Method

PARAMETERS_TYPE = "PARAMETERS"
"""What `peft_type` says."""
METHODS = (Method.HEAD, Method.LAYERS, Method.FULL)


@dataclass(frozen=True, slots=True)
class ParametersLayout:
    """See `Layout`."""

    method: Method
    parameters: tuple[str, ...]
    """Full names, as in the base's file; a head's also where the base ties it to the embedding."""
    tied: Mapping[str, tuple[str, ...]]
    """Parameter → modules of the base that share it, and change with it."""
    task_type: str | None = "CAUSAL_LM"
    """Said as in PEFT's files; nothing reads it."""
    head = None
    tensors_expected = f"is not a parameter of the base; expected {PREFIX}MODULE.weight or bias"

    @classmethod
    def read(cls, keys: ConfigKeys) -> ParametersLayout:
        """Raises: InvalidAdapterFiles, with a violation for every key that is wrong or not supported."""
        keys.get("peft_type")
        keys.one_of("method", tuple(map(str, METHODS)))
        task_type = keys.task_type()
        parameters = keys.names("parameters")
        if not parameters:
            keys.wrong("parameters", parameters, "expected a list of names of parameters of the base")
        tied = keys.pattern("tied", _names, "a list of module names")
        for name in tied.keys() - set(parameters):
            keys.wrong("tied", name, "expected names from parameters")
        keys.others_are_off()
        keys.refuse_if_wrong()
        return cls(Method(keys.get("method")), tuple(sorted(set(parameters))), tied, task_type)

    def split(self, tensor: str) -> tuple[str, str] | None:
        if not tensor.startswith(PREFIX):
            return None
        module, _, parameter = tensor.removeprefix(PREFIX).rpartition(".")
        return (module, parameter) if module else None

    def shapes(self, module: str, base: BaseGeometry) -> Mapping[str, Shape] | None:
        return parameter_shapes(module, self._parts(module), base, self.tied)

    def changeable(self, base: BaseGeometry) -> Iterable[str]:
        return dict.fromkeys(map(_module, base.parameters))

    @property
    def named_targets(self) -> Mapping[str, tuple[str, ...]]:
        return {
            "parameters": tuple(map(_module, self.parameters)),
            "tied": tuple(module for modules in self.tied.values() for module in modules),
        }

    def targets(self, module: str) -> bool | None:
        return bool(self._parts(module))

    def rank_of(self, module: str) -> int:
        return 0

    def ops(self, module: str, parts: Collection[str], base: BaseGeometry) -> tuple[SiteOp[str], ...]:
        return substitutions(module, parts, self.tied)

    def spelled_out(self, modules: Iterable[str]) -> dict[str, object]:
        spelled: dict[str, object] = {
            "peft_type": PARAMETERS_TYPE,
            "method": str(self.method),
            "parameters": list(self.parameters),
        }
        return spelled | {"tied": {name: list(self.tied[name]) for name in sorted(self.tied)}}

    def written(self, modules: Iterable[str]) -> dict[str, object]:
        return {**self.spelled_out(modules), "task_type": self.task_type, "inference_mode": True}

    def _parts(self, module: str) -> list[str]:
        return [name.rpartition(".")[2] for name in self.parameters if _module(name) == module]


def parameter_shapes(
    module: str, parts: Iterable[str], base: BaseGeometry, tied: Mapping[str, tuple[str, ...]]
) -> Mapping[str, Shape] | None:
    """Part → shape of a module's substituted parameters; None where the base has not all of them."""
    shapes: dict[str, Shape] = {}
    for part in parts:
        shape = base.parameters.get(f"{module}.{part}")
        sharing = (base.parameters.get(f"{other}.{part}") for other in tied.get(f"{module}.{part}", ()))
        if shape is None or any(other != shape for other in sharing):
            return None
        shapes[part] = shape
    return shapes or None


def substitutions(
    module: str, parts: Iterable[str], tied: Mapping[str, tuple[str, ...]], *, turned: bool = False
) -> tuple[SiteOp[str], ...]:
    """The ops of a module's substituted parameters; `turned` is how its weight lies in the file."""
    return tuple(
        SubstituteParameter(
            part, f"{PREFIX}{module}.{part}", tied.get(f"{module}.{part}", ()), turned and part == "weight"
        )
        for part in sorted(parts)
    )


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _names(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return tuple(value)
