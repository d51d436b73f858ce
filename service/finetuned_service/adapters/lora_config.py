"""adapter_config.json of a LoRA adapter in PEFT's format: what is accepted of it, and what it means."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from finetuned_service.adapters.config_keys import ConfigKeys, load_config

MAX_ALPHA = 1e9

_PLAIN_INITIALIZATIONS = (True, False, "gaussian", "orthogonal")
"""Those that leave the base's weights alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA train against a
changed base, so that A and B alone are not the adapter."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What decides the numbers of a LoRA adapter."""

    rank: int
    alpha: float
    rank_stabilized: bool = False
    decomposed: bool = False
    """DoRA: a magnitude for each output beside A and B."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    """Other ranks, by module name or dotted end of it; the first that fits counts."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    target_modules: tuple[str, ...] | None = None
    """Module names or dotted ends of them; None if the file gives a pattern instead of names."""
    modules_to_save: tuple[str, ...] = ()
    """Ends of names of modules that the adapter replaces whole: see `layouts/saved.py`."""
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
        """Whether the adapter has an update for the module; None where only its tensors tell."""
        if self.target_modules is None:
            return None
        if not _names_of(self.target_modules).intersection(dotted_ends(module)):
            return False
        return None if self.selected_further else True

    def spelled_out(self, updated: Iterable[str], saved: Iterable[str]) -> dict[str, object]:
        """The same configuration with every module by its full name, as JSON values in PEFT's keys.

        Equal for configurations that mean the same, however their files spell it.
        """
        names, whole = sorted(updated), sorted(saved)
        ranks = {name: self.rank_of(name) for name in names}
        alphas = {name: self.alpha_of(name) for name in names}
        spelled: dict[str, object] = {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": plain_number(self.alpha),
            "use_rslora": self.rank_stabilized,
            "rank_pattern": {name: rank for name, rank in ranks.items() if rank != self.rank},
            "alpha_pattern": {
                name: plain_number(alpha) for name, alpha in alphas.items() if alpha != self.alpha
            },
            "target_modules": names,
            "bias": "none",
        }
        # Only where they are on: the digest of an adapter without one is as old as the key is new.
        if self.decomposed:
            spelled["use_dora"] = True
        return spelled | {"modules_to_save": whole} if whole else spelled


def parse_lora_config(raw: bytes) -> LoraConfig:
    """Read the bytes of an adapter_config.json.

    Raises:
        InvalidAdapterFiles: with a violation for every key that is missing, wrong or not supported.
    """
    return read_lora_config(ConfigKeys(load_config(raw)))


def read_lora_config(keys: ConfigKeys) -> LoraConfig:
    """See `parse_lora_config`."""
    config = LoraConfig(
        rank=keys.number("r", read_rank, "an integer of at least 1", 1),
        alpha=keys.number("lora_alpha", read_alpha, _ALPHA, 1.0),
        rank_stabilized=keys.boolean("use_rslora"),
        decomposed=keys.boolean("use_dora"),
        rank_pattern=keys.pattern("rank_pattern", read_rank, "an integer of at least 1"),
        alpha_pattern=keys.pattern("alpha_pattern", read_alpha, _ALPHA),
        target_modules=keys.target_modules(),
        modules_to_save=keys.modules_to_save(),
        selected_further=keys.further_selection(),
    )
    keys.one_of("peft_type", ("LORA",))
    keys.one_of("bias", ("none",), default="none")
    keys.task_type()
    # How the base's own weight lies in its file; A and B lie the same way either way.
    keys.boolean("fan_in_fan_out")
    keys.one_of(
        "init_lora_weights",
        _PLAIN_INITIALIZATIONS,
        default=True,
        remedy="save it with PEFT's path_initial_model_for_weight_conversion, which makes it plain LoRA",
    )
    keys.auto_mapping()
    keys.others_are_off()
    keys.refuse_if_wrong()
    return config


_ALPHA = f"a number above 0, at most {MAX_ALPHA:g}"


def read_rank(value: object) -> int | None:
    """An integer of at least 1, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def read_alpha(value: object) -> float | None:
    """A number above 0 and at most MAX_ALPHA, else None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if 0 < value <= MAX_ALPHA else None


def is_end(name: str, module: str) -> bool:
    """Whether `name` is one of the module's `dotted_ends`."""
    return module == name or module.endswith(f".{name}")


def dotted_ends(module: str) -> Iterator[str]:
    """The module's name and its dotted ends: what may stand for it in a configuration."""
    while module:
        yield module
        module = module.partition(".")[2]


@lru_cache(maxsize=256)
def _names_of(target_modules: tuple[str, ...]) -> frozenset[str]:
    """To look a name up among thousands."""
    return frozenset(target_modules)


def plain_number(value: float) -> float:
    """16.0 as 16, so that one value has one spelling in JSON."""
    return int(value) if value.is_integer() else value


def _first_match(pattern: Mapping[str, _T], module: str, default: _T) -> _T:
    """As PEFT chooses: the first key that matches the module's name or an end of it behind a dot."""
    return next((value for key, value in pattern.items() if _compiled(key).match(module)), default)


@lru_cache(maxsize=4096)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.*\.)?(?:{key})$")
