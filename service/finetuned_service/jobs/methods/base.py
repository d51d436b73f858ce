"""What the settings of a method are checked against in a base. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.lora_config import is_end
from finetuned_service.bases.family import context_of, family_of, untrained_methods, width_of
from finetuned_service.bases.inputs import base_inputs
from finetuned_service.bases.manifest import read_config
from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.vocabulary import Family, Method, Pooling

_ANY_TOKENS = 2**20


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What the defaults of a TrainSpec depend on in a base."""

    hidden_size: int
    context_tokens: int
    linear_modules: tuple[str, ...]
    """Full names of the linear modules in the numbered layers, or of a vision base's convolutions, sorted."""
    pooling: Pooling | None = None
    """A text encoder's own; None for others."""
    sublayers: tuple[str, ...] = ()
    """Where bottlenecks can stand, by full names: see `BaseGeometry`."""
    parameters: tuple[str, ...] = ()
    """Full names of its weights and biases."""
    layers: tuple[str, ...] = ()
    """Full names of its repeated layers, in their order."""
    convolves: bool = False
    """Its `linear_modules` are convolutions."""
    untrained: Mapping[Method, str] = field(default_factory=dict[Method, str])
    """Methods that others of its family train with, and why it does not."""
    architecture: str = ""
    """Its model_type."""

    @classmethod
    def of_directory(cls, directory: Path) -> BaseFacts:
        """Read config.json and the header of model.safetensors."""
        config, geometry = read_config(directory), BaseGeometry.of_files(directory)
        family = family_of(config)
        return cls(
            hidden_size=width_of(config),
            # Images have no length.
            context_tokens=_ANY_TOKENS if family is Family.VISION else context_of(config),
            linear_modules=tuple(sorted(geometry.adapted)),
            pooling=base_inputs(config)[0] if family is Family.ENCODER else None,
            sublayers=tuple(geometry.sublayers),
            parameters=tuple(geometry.parameters),
            layers=geometry.layers,
            convolves=bool(geometry.convolutions),
            untrained=untrained_methods(config),
            architecture=str(config.get("model_type")),
        )

    @property
    def adapts(self) -> str:
        """For people: what its `linear_modules` are."""
        return "convolutions" if self.convolves else "linear modules"

    @property
    def linear_kinds(self) -> tuple[str, ...]:
        """Last parts of their names, sorted."""
        return tuple(sorted({name.rpartition(".")[2] for name in self.linear_modules}))

    def has(self, end: str) -> bool:
        """Whether a linear module has this name, or it as a dotted end."""
        return any(is_end(end, name) for name in self.linear_modules)


def unknown_targets(field: str, targets: Iterable[str], base: BaseFacts) -> Iterator[FinetunedError]:
    """A refusal of the target modules that match nothing."""
    unknown = sorted(target for target in targets if not base.has(target))
    if unknown:
        yield InvalidField.one(
            field,
            f"names {quoted(unknown)}; the base's {base.adapts} are "
            f"{', '.join(base.linear_kinds)} (leave it empty for the default)",
        )


def is_any_end(ends: Iterable[str], name: str) -> bool:
    """Whether one of `ends` is the module's name or a dotted end of it."""
    return any(is_end(end, name) for end in ends)


def quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
