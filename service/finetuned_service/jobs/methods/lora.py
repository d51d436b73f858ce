"""LoRA, rsLoRA and DoRA: settings resolved and checked. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeVar

from finetuned_service.adapters.lora_config import LoraConfig, is_end
from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.jobs.methods.base import BaseFacts, is_any_end, quoted, unknown_targets
from finetuned_service.jobs.methods.saved import saved_refusals
from finetuned_service.jobs.specs import LoraSettings

T = TypeVar("T")

_STABLE_ALPHA = 8.0
"""Of rsLoRA: at the usual rank of 16 its updates count as much as LoRA's of any rank, which usual rates are for."""


def lora_config(settings: LoraSettings) -> LoraConfig:
    """What the files of an adapter trained with resolved settings will say."""
    return LoraConfig(
        rank=settings.rank,
        alpha=_alpha(settings),
        rank_stabilized=settings.rank_stabilized,
        decomposed=settings.decomposed,
        rank_pattern=settings.rank_pattern,
        alpha_pattern=settings.alpha_pattern,
        target_modules=settings.target_modules,
        modules_to_save=settings.modules_to_save,
    )


def resolve_lora(lora: LoraSettings, base: BaseFacts) -> LoraSettings:
    """The same settings with the defaults written back."""
    return lora.model_copy(
        update={
            "alpha": _alpha(lora),
            "target_modules": tuple(sorted(set(lora.target_modules))) or base.linear_kinds,
            "rank_pattern": longest_first(lora.rank_pattern),
            "alpha_pattern": longest_first(lora.alpha_pattern),
            "modules_to_save": tuple(sorted(set(lora.modules_to_save))),
        }
    )


def _alpha(lora: LoraSettings) -> float:
    """Usually what makes updates count twice, at any rank; of rsLoRA one for all ranks, as its paper has it: divided by
    their square root, twice the rank would make them count eight times at 16, and training with usual rates goes astray
    (docs/decisions/2026-11-28-a-head-has-a-rate-of-its-own.md).
    """
    if lora.alpha is not None:
        return lora.alpha
    return _STABLE_ALPHA if lora.rank_stabilized else 2.0 * lora.rank


def lora_refusals(lora: LoraSettings, base: BaseFacts, max_rank: int, path: str) -> Iterator[FinetunedError]:
    """What of resolved settings does not fit the base.

    `max_rank` is the largest that will be served; `path` leads to the settings.
    """
    yield from unknown_targets(f"{path}.target_modules", lora.target_modules, base)
    targeted = [name for name in base.linear_modules if is_any_end(lora.target_modules, name)]
    for field, pattern in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        unused = [key for key in pattern if not any(is_end(key, name) for name in targeted)]
        if unused:
            yield InvalidField.one(
                f"{path}.{field}",
                f"names {quoted(unused)}, which no target module has as its name or a dotted end of it; leave it "
                f"out, or add it to target_modules",
            )
    yield from saved_refusals(lora.modules_to_save, lora.target_modules, base, path)
    for field, rank in (
        ("rank", lora.rank),
        *((f"rank_pattern.{key}", r) for key, r in lora.rank_pattern.items()),
    ):
        if rank > max_rank:
            yield InvalidField.one(
                f"{path}.{field}", f"is {rank}; this server serves ranks of 1 to {max_rank}"
            )


def lora_elements(settings: LoraSettings, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers in an adapter with resolved settings; `shapes` are those of weights, (out, in, ...), by module."""
    config = lora_config(settings)
    return sum(
        config.rank_of(name) * (shape[0] + math.prod(shape[1:])) + shape[0] * config.decomposed
        for name, shape in shapes.items()
        if config.targets(name) and not is_any_end(settings.modules_to_save, name)
    )


def longest_first(pattern: Mapping[str, T]) -> dict[str, T]:
    """The first that fits counts, here and in PEFT; a map on the wire has no order."""
    return {name: pattern[name] for name in sorted(pattern, key=lambda name: (-len(name), name))}
