"""The settings of a method, read back from the files of an adapter: a job that continues it keeps them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.layouts import Layout
from finetuned_service.adapters.layouts.bottleneck import BottleneckLayout
from finetuned_service.adapters.layouts.ia3 import VECTOR, Ia3Layout
from finetuned_service.adapters.layouts.lora import LoraLayout
from finetuned_service.adapters.layouts.parameters import ParametersLayout
from finetuned_service.adapters.lora_config import is_end
from finetuned_service.adapters.site_ops import ScaleInput
from finetuned_service.jobs.methods.base import BaseFacts
from finetuned_service.jobs.methods.bottleneck import is_usual, reduced_width
from finetuned_service.jobs.methods.lora import longest_first
from finetuned_service.jobs.methods.parameters import chosen_parameters
from finetuned_service.jobs.specs import MOST_REDUCED, Placement, TrainSpec
from finetuned_service.vocabulary import Method

Meaning = Callable[[Any], object]
"""What a setting's value comes to on the base: `q_proj` and the full names of all such modules say the same."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the files of an adapter decide of its method's settings."""

    settings: Mapping[str, Any]
    """By the names that they have in the settings."""
    meanings: Mapping[str, Meaning] = field(default_factory=dict[str, Meaning])
    """Of those whose values can say the same in several ways."""

    def agrees(self, key: str, value: object) -> bool:
        """Whether a caller's value says what the files say."""
        meaning = self.meanings.get(key, lambda found: found)
        return meaning(value) == meaning(self.settings[key])


def stored_settings(layout: Layout, facts: BaseFacts, geometry: BaseGeometry) -> Stored:
    """The settings with which an adapter of this layout was made, on the base that it was made for."""
    match layout:
        case LoraLayout():
            return _lora(layout, geometry)
        case Ia3Layout():
            return _ia3(layout, geometry)
        case BottleneckLayout():
            return _bottleneck(layout, facts)
        case ParametersLayout(method=Method.LAYERS):
            return _layers(layout, geometry)
        case _:
            return Stored({})


def trains_as_stored(layout: Layout, spec: TrainSpec, geometry: BaseGeometry) -> bool:
    """Whether a resolved spec trains the parameters of the base that the files hold, where they hold such."""
    if not isinstance(layout, ParametersLayout):
        return True
    if spec.method is Method.LAYERS and max(spec.layers.layers, default=-1) >= len(geometry.layers):
        return False
    chosen = set(chosen_parameters(spec, geometry))
    # A head alone leaves the embedding that it shares as it is.
    tied = {} if spec.method is Method.HEAD else {n: m for n, m in geometry.tied.items() if n in chosen}
    return set(layout.parameters) == chosen and dict(layout.tied) == tied


def _lora(layout: LoraLayout, geometry: BaseGeometry) -> Stored:
    config, adapted = layout.config, geometry.adapted
    owners = {name.rpartition(".")[0] for name in geometry.parameters}
    saved = {module for module in owners if layout.saved.targets(module)}
    targets = {module for module in adapted if config.targets(module)} - saved

    def each(usual: object) -> Meaning:
        return lambda pattern: (
            {module: _first(pattern, module, usual) for module in targets}
            | {
                key: value
                for key, value in pattern.items()
                if not any(is_end(key, module) for module in targets)
            }
        )

    return Stored(
        {
            "rank": config.rank,
            "alpha": config.alpha,
            "rank_stabilized": config.rank_stabilized,
            "decomposed": config.decomposed,
            "rank_pattern": dict(config.rank_pattern),
            "alpha_pattern": dict(config.alpha_pattern),
            "target_modules": _short(targets, adapted),
            "modules_to_save": _short(saved, owners),
        },
        {
            "rank_pattern": each(config.rank),
            "alpha_pattern": each(config.alpha),
            "target_modules": lambda names: _matched(names, adapted),
            "modules_to_save": lambda names: _matched(names, owners),
        },
    )


def _ia3(layout: Ia3Layout, geometry: BaseGeometry) -> Stored:
    linear = geometry.linear_shapes
    owners = {name.rpartition(".")[0] for name in geometry.parameters}
    saved = {module for module in owners if layout.saved.targets(module)}
    targets = {module for module in linear if layout.targets(module)} - saved
    feedforward = {
        module
        for module in targets
        if any(isinstance(op, ScaleInput) for op in layout.ops(module, (VECTOR,), geometry))
    }
    short, last = _short(targets, linear), _short(feedforward, linear)
    if not set(last) <= set(short):
        # Settings want the second to be names of the first.
        short, last = tuple(sorted(targets)), tuple(sorted(feedforward))
    return Stored(
        {
            "target_modules": short,
            "feedforward_modules": last,
            "modules_to_save": _short(saved, owners),
        },
        {
            "target_modules": lambda names: _matched(names, linear),
            "feedforward_modules": lambda names: _matched(names, linear),
            "modules_to_save": lambda names: _matched(names, owners),
        },
    )


def _bottleneck(layout: BottleneckLayout, facts: BaseFacts) -> Stored:
    targets = {module for module in facts.sublayers if layout.targets(module)}
    placements = [p for p in Placement if (p is Placement.PARALLEL) == layout.parallel]
    usual = [
        p for p in placements if {name for name in facts.sublayers if is_usual(p, name, facts)} == targets
    ]
    placement = usual[0] if usual else placements[0]

    def placed(value: Placement) -> object:
        # Where modules were named, it only tells those beside a sublayer from those behind one.
        return value if usual else value is Placement.PARALLEL

    return Stored(
        {
            "placement": placement,
            "target_modules": tuple(sorted(targets)),
            "reduction_factor": min(MOST_REDUCED, facts.hidden_size / layout.width),
            "width": layout.width,
            "activation": layout.activation,
            "scaling": layout.scaling,
        },
        {
            "placement": placed,
            "target_modules": lambda names: _matched(names, facts.sublayers),
            "reduction_factor": lambda factor: reduced_width(facts.hidden_size, factor),
        },
    )


def _layers(layout: ParametersLayout, geometry: BaseGeometry) -> Stored:
    """Whole layers by their numbers, and other modules by their full names.

    A part of a module no settings can say: see `trains_as_stored`.
    """
    rest, numbers = set(layout.parameters), list[int]()
    for number, layer in enumerate(geometry.layers):
        inside = {name for name in geometry.parameters if name.startswith(f"{layer}.")}
        if inside <= rest:
            rest -= inside
            numbers.append(number)
    modules = {name.rpartition(".")[0] for name in rest}
    return Stored({"layers": tuple(numbers), "modules": tuple(sorted(modules))})


def _first(pattern: Mapping[str, Any], module: str, usual: object) -> object:
    return next((value for key, value in longest_first(pattern).items() if is_end(key, module)), usual)


def _matched(names: Iterable[str], modules: Iterable[str]) -> frozenset[str]:
    """The modules that names or dotted ends mean; a name that means none stands for itself."""
    known, given = list(modules), set(names)
    strays = {name for name in given if not any(is_end(name, module) for module in known)}
    return frozenset(strays | {module for module in known if any(is_end(name, module) for name in given)})


def _short(chosen: set[str], modules: Iterable[str]) -> tuple[str, ...]:
    """The last parts of the chosen modules' names where all of such a name are chosen, else full names."""
    last = {module.rpartition(".")[2] for module in chosen}
    whole = {module for module in modules if module.rpartition(".")[2] in last} == chosen
    return tuple(sorted(last if whole else chosen))
