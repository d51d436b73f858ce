"""HEAD of a decoder, LAYERS and FULL: which parameters of the base train. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from finetuned_service.adapters.geometry import HEAD
from finetuned_service.adapters.lora_config import is_end
from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.jobs.methods.base import BaseFacts, quoted
from finetuned_service.jobs.specs import LayersSettings, TrainSpec
from finetuned_service.vocabulary import Method

USUAL_SHARE = 4
"""One of so many layers trains where nobody says which."""


class Parameters(Protocol):
    """A base as its files tell it (`adapters.geometry.BaseGeometry`)."""

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def tied(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def layers(self) -> tuple[str, ...]: ...


def resolve_layers(settings: LayersSettings, base: BaseFacts) -> LayersSettings:
    """The same settings with the numbers of the layers written back."""
    last, layers = settings.last, len(base.layers)
    if last is None and not settings.layers and not settings.modules:
        last = max(1, layers // USUAL_SHARE)
    numbers = set(settings.layers)
    if last is not None:
        numbers |= set(range(max(0, layers - last), layers))
    return settings.model_copy(
        update={
            "last": last,
            "layers": tuple(sorted(numbers)),
            "modules": tuple(sorted(set(settings.modules))),
        }
    )


def layers_refusals(settings: LayersSettings, base: BaseFacts) -> Iterator[FinetunedError]:
    """What of resolved settings does not fit the base."""
    layers = len(base.layers)
    if settings.last is not None and settings.last > layers:
        yield InvalidField.one(
            "spec.layers.last", f"is {settings.last}; the base has {layers} layers: 1 to {layers}"
        )
    unknown = [number for number in settings.layers if number >= layers]
    if unknown:
        yield InvalidField.one(
            "spec.layers.layers",
            f"names {', '.join(map(str, unknown))}; the base's layers are 0 to {layers - 1}",
        )
    strays = [name for name in settings.modules if not any(_is_in(name, p) for p in base.parameters)]
    if strays:
        kinds = sorted({parameter.split(".")[-2] for parameter in base.parameters})
        yield InvalidField.one(
            "spec.layers.modules",
            f"names {quoted(strays)}; the base's modules with parameters are {', '.join(kinds)}",
        )


def chosen_parameters(spec: TrainSpec, base: Parameters) -> tuple[str, ...]:
    """Names of the parameters that a resolved spec of one of the three methods trains; a tied head is not named
    beside the embedding that it shares.
    """
    match spec.method:
        case Method.HEAD:
            return tuple(name for name in base.parameters if _module(name) == HEAD)
        case Method.LAYERS:
            modules = (*(base.layers[number] for number in spec.layers.layers), *spec.layers.modules)
            chosen = [name for name in base.parameters if any(_is_in(module, name) for module in modules)]
        case _:
            chosen = list(base.parameters)
    shared = {f"{module}.weight" for name, others in base.tied.items() if name in chosen for module in others}
    return tuple(name for name in chosen if name not in shared)


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _is_in(module: str, parameter: str) -> bool:
    """Whether a parameter belongs to a module, or to one inside it; `module` may be a dotted end."""
    owner = _module(parameter)
    while owner:
        if is_end(module, owner):
            return True
        owner = _module(owner)
    return False
