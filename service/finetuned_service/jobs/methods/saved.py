"""Modules of the base that train whole beside what a method adds (`modules_to_save`). No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.lora_config import is_end
from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.jobs.methods.base import BaseFacts, is_any_end, quoted


def saved_refusals(
    names: Iterable[str], targets: Iterable[str], base: BaseFacts, path: str
) -> Iterator[FinetunedError]:
    """What of resolved `modules_to_save` does not fit the base, or the target modules beside them; `path` leads to the
    settings.
    """
    owners = {name.rpartition(".")[0] for name in base.parameters}
    strays = [name for name in names if not any(is_end(name, owner) for owner in owners)]
    if strays:
        kinds = sorted({owner.rpartition(".")[2] for owner in owners})
        yield InvalidField.one(
            f"{path}.modules_to_save",
            f"names {quoted(strays)}; the base's modules with parameters are {', '.join(kinds)}",
        )
    both = [name for name in base.linear_modules if is_any_end(names, name) and is_any_end(targets, name)]
    if both:
        yield InvalidField.one(
            f"{path}.modules_to_save",
            f"names modules that are targets, too: {quoted(both[:3])}; leave them out here or in target_modules",
        )


def saved_parameters(names: Iterable[str], parameters: Iterable[str]) -> list[str]:
    """Full names of the parameters that are of resolved `modules_to_save`."""
    return [name for name in parameters if is_any_end(names, name.rpartition(".")[0])]


def saved_elements(names: Iterable[str], geometry: BaseGeometry) -> int:
    """Numbers in them."""
    return sum(math.prod(geometry.parameters[name]) for name in saved_parameters(names, geometry.parameters))
