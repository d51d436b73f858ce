"""What a LoRA adapter's configuration means: ranks, scalings and the modules it names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What decides the numbers of a LoRA adapter."""

    rank: int
    alpha: float
    rank_stabilized: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    """Other ranks, by module name or dotted end of it; the first that fits counts."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    target_modules: tuple[str, ...] | None = None
    """Module names or dotted ends of them; None if the file gives a pattern instead of names."""
    selected_further: bool = False
    """Whether `exclude_modules` or `layers_to_transform` takes some of them away."""

    def rank_of(self, module: str) -> int:
        """The rank of a module's matrices; `module` is its full name."""
        return _first_match(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        return _first_match(self.alpha_pattern, module, self.alpha)

    def scaling_of(self, module: str) -> float:
        """The factor of B A x: alpha / r, for rsLoRA alpha / sqrt(r) (Kalajdzievski 2023)."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.rank_stabilized else rank)

    def targets(self, module: str) -> bool | None:
        """Whether the adapter changes the module; None where only its tensors tell."""
        if self.target_modules is None:
            return None
        if not _names_of(self.target_modules).intersection(dotted_ends(module)):
            return False
        return None if self.selected_further else True

    def spelled_out(self, modules: Iterable[str]) -> dict[str, object]:
        """The same configuration with every module by its full name, as JSON values in PEFT's keys.

        Equal for configurations that mean the same, however their files spell it.
        """
        names = sorted(modules)
        ranks = {name: self.rank_of(name) for name in names}
        alphas = {name: self.alpha_of(name) for name in names}
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": _plain_number(self.alpha),
            "use_rslora": self.rank_stabilized,
            "rank_pattern": {name: rank for name, rank in ranks.items() if rank != self.rank},
            "alpha_pattern": {
                name: _plain_number(alpha) for name, alpha in alphas.items() if alpha != self.alpha
            },
            "target_modules": names,
            "bias": "none",
        }


def dotted_ends(module: str) -> Iterator[str]:
    """The module's name and its dotted ends: what may stand for it in a configuration."""
    while module:
        yield module
        module = module.partition(".")[2]


@lru_cache(maxsize=256)
def _names_of(target_modules: tuple[str, ...]) -> frozenset[str]:
    """To look a name up among thousands."""
    return frozenset(target_modules)


def _plain_number(value: float) -> float:
    """16.0 as 16, so that one value has one spelling in JSON."""
    return int(value) if value.is_integer() else value


def _first_match(pattern: Mapping[str, _T], module: str, default: _T) -> _T:
    """As PEFT chooses: the first key that matches the module's name or an end of it behind a dot."""
    return next((value for key, value in pattern.items() if _compiled(key).match(module)), default)


@lru_cache(maxsize=4096)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.*\.)?(?:{key})$")
