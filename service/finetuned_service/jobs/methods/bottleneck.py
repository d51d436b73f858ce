"""Bottleneck adapters: settings resolved and checked. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from finetuned_service.adapters.layouts.bottleneck import BottleneckLayout
from finetuned_service.adapters.lora_config import is_end
from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.jobs.methods.base import BaseFacts, quoted
from finetuned_service.jobs.specs import BottleneckSettings, Placement

ATTENTIONS = ("self_attn", "attn")
"""What the architectures served call the first of a layer's two sublayers."""


def resolve_bottleneck(settings: BottleneckSettings, base: BaseFacts) -> BottleneckSettings:
    """The same settings with the defaults written back, every module by its full name."""
    asked = settings.target_modules
    targets = [name for name in base.sublayers if any(is_end(end, name) for end in asked)]
    if not asked:
        targets = [name for name in base.sublayers if is_usual(settings.placement, name, base)]
    # What matches nothing stays, to be refused.
    strays = [end for end in asked if not any(is_end(end, name) for name in base.sublayers)]
    return settings.model_copy(
        update={
            "target_modules": tuple(sorted({*targets, *strays})),
            "width": settings.width or reduced_width(base.hidden_size, settings.reduction_factor),
        }
    )


def bottleneck_refusals(settings: BottleneckSettings, base: BaseFacts) -> Iterator[FinetunedError]:
    """What of resolved settings does not fit the base."""
    strays = sorted(set(settings.target_modules) - set(base.sublayers))
    if strays:
        kinds = sorted({_part(name) for name in base.sublayers if not _is_layer(name)})
        yield InvalidField.one(
            "spec.bottleneck.target_modules",
            f"names {quoted(strays)}; allowed are the base's layers ({_example(base)}) and their parts: "
            f"{', '.join(kinds)} (leave it empty for those of the placement)",
        )
    products = [name for name in settings.target_modules if name in base.linear_modules]
    if products and settings.placement is Placement.PARALLEL:
        yield InvalidField.one(
            "spec.bottleneck.target_modules",
            f"names {quoted(products[:3])}, of which PARALLEL cannot read the input: what goes in is not of the "
            f"base's width; name layers ({_example(base)}), or choose HOULSBY or PFEIFFER",
        )
    if settings.width is not None and settings.width > base.hidden_size:
        yield InvalidField.one(
            "spec.bottleneck.width",
            f"is {settings.width}; a bottleneck is no wider than the base: 1 to {base.hidden_size}",
        )
    if not settings.target_modules:
        because = "name some in target_modules"
        if settings.placement is Placement.PARALLEL:
            because = (
                "what its feed-forward reads and what that returns belong to two. Choose HOULSBY or PFEIFFER, or name "
                "layers in target_modules"
            )
        yield InvalidField.one(
            "spec.bottleneck.placement",
            f"is {settings.placement}, and this base has no module for it: {because}",
        )


def bottleneck_elements(settings: BottleneckSettings, hidden_size: int) -> int:
    """Numbers in an adapter with resolved settings."""
    width = settings.width or hidden_size
    return len(settings.target_modules) * (2 * width * hidden_size + width + hidden_size)


def bottleneck_layout(settings: BottleneckSettings) -> BottleneckLayout:
    """What the files of an adapter trained with resolved settings will say."""
    return BottleneckLayout(
        target_modules=settings.target_modules,
        width=settings.width or 1,
        activation=settings.activation,
        scaling=settings.scaling,
        parallel=settings.placement is Placement.PARALLEL,
    )


def _is_layer(name: str) -> bool:
    return name.rpartition(".")[2].isdecimal()


def _part(name: str) -> str:
    """A module's name within its layer."""
    return re.split(r"\.\d+\.", name)[-1]


def _example(base: BaseFacts) -> str:
    layers = [name for name in base.sublayers if _is_layer(name)]
    return ".".join(layers[0].split(".")[-2:]) if layers else ""


def reduced_width(hidden_size: int, reduction_factor: float) -> int:
    """Of the bottleneck, at least 1."""
    return max(1, round(hidden_size / reduction_factor))


def is_usual(placement: Placement, name: str, base: BaseFacts) -> bool:
    """Whether a layer or sublayer has a bottleneck where no modules are named."""
    match placement:
        case Placement.HOULSBY:
            return not _is_layer(name)
        case Placement.PFEIFFER:
            return _is_layer(name)
        case Placement.PARALLEL:
            parts = not _is_layer(name) and name not in base.linear_modules
            return parts and name.rpartition(".")[2] not in ATTENTIONS
