"""adapter_config.json of a LoRA adapter: what the service accepts of PEFT's format, and what it means.

An allowlist of our own. PEFT's loader imports the module that `auto_mapping.parent_library` names and
searches with the file's regular expressions; here nothing of the file is run, imported or searched
with. A key that is not known is let through only where it is off (null, false, empty): then it
changes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

from finetuned_service.errors import InvalidAdapterFiles, Violation

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1024 * 1024
MAX_PATTERN_KEYS = 2048

_HARMLESS = frozenset({
    "base_model_name_or_path", "revision", "peft_version", "inference_mode", "lora_dropout",
    "megatron_core", "qalora_group_size",
})  # fmt: skip
"""Keys without a meaning when an adapter is served, whatever they hold."""

_PLAIN_INITIALIZATIONS = (True, False, "gaussian", "orthogonal")
"""Those that leave the base's weights alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA train against a
changed base, so that A and B alone are not the adapter."""

_PATTERN_KEY = re.compile(r"\^?(?:[\w.-]|\\\.)+")
"""Module names and dotted ends of them. In PEFT these keys are regular expressions; only those that
cannot backtrack are taken."""

_PLAIN_ONLY = "this build serves plain LoRA and rsLoRA: train without it, or merge it into a base"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What decides the numbers of a LoRA adapter."""

    rank: int
    alpha: float
    rank_stabilized: bool = False
    rank_pattern: Mapping[str, int] | None = None
    """Other ranks, by module name or dotted end of it; the first that fits counts."""
    alpha_pattern: Mapping[str, float] | None = None
    target_modules: tuple[str, ...] | None = None
    """Module names or dotted ends of them; None if the file gives a pattern instead of names."""
    selected_further: bool = False
    """Whether `exclude_modules` or `layers_to_transform` takes some of them away."""

    def rank_of(self, module: str) -> int:
        """The rank of a module's matrices; `module` is its full name."""
        return _first_match(self.rank_pattern or {}, module, self.rank)

    def alpha_of(self, module: str) -> float:
        return _first_match(self.alpha_pattern or {}, module, self.alpha)

    def scaling_of(self, module: str) -> float:
        """The factor of B A x: alpha / r, for rsLoRA alpha / sqrt(r) (Kalajdzievski 2023)."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.rank_stabilized else rank)

    def targets(self, module: str) -> bool | None:
        """Whether the adapter changes the module; None where only its tensors tell."""
        if self.target_modules is None:
            return None
        if not any(is_end(target, module) for target in self.target_modules):
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


def is_end(name: str, module: str) -> bool:
    """Whether `name` is the module's name or a dotted end of it."""
    return module == name or module.endswith(f".{name}")


def _plain_number(value: float) -> float:
    """16.0 as 16, so that one value has one spelling in JSON."""
    return int(value) if value.is_integer() else value


def _first_match(pattern: Mapping[str, _T], module: str, default: _T) -> _T:
    """As PEFT chooses: the first key that matches the module's name or an end of it behind a dot."""
    return next((value for key, value in pattern.items() if _compiled(key).match(module)), default)


@lru_cache(maxsize=2 * MAX_PATTERN_KEYS)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.*\.)?(?:{key})$")


def parse_lora_config(raw: bytes) -> LoraConfig:
    """Read the bytes of an adapter_config.json.

    Raises:
        InvalidAdapterFiles: with a violation for every key that is missing, wrong or not supported.
    """
    keys = _Keys(_load(raw))
    config = LoraConfig(
        rank=keys.positive_integer("r"),
        alpha=keys.positive_number("lora_alpha"),
        rank_stabilized=keys.boolean("use_rslora"),
        rank_pattern=keys.pattern("rank_pattern", int),
        alpha_pattern=keys.pattern("alpha_pattern", float),
        target_modules=keys.target_modules(),
        selected_further=keys.further_selection(),
    )
    keys.one_of("peft_type", ("LORA",))
    keys.one_of("bias", ("none",), default="none")
    keys.one_of("task_type", ("CAUSAL_LM", None), default=None)
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


def _load(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_CONFIG_BYTES:
        raise InvalidAdapterFiles(f"{CONFIG_FILE} has {len(raw)} bytes; allowed: {MAX_CONFIG_BYTES}")
    try:
        value: Any = json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapterFiles(f"{CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidAdapterFiles(f"{CONFIG_FILE} is not a JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise ValueError(f"the key {_shown(key)} stands there twice")
        keys[key] = value
    return keys


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


class _Keys:
    """Reads keys and collects what is wrong with them; a wrong one reads as a value that is thrown away."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._judged: set[str] = set(_HARMLESS)
        self._violations: list[Violation] = []

    def _get(self, key: str) -> Any:
        self._judged.add(key)
        return self._values.get(key)

    def _wrong(self, key: str, found: object, allowed: str) -> None:
        self._violations.append(Violation(f"{CONFIG_FILE}: {_key(key)}", f"is {_shown(found)}; {allowed}"))

    def positive_integer(self, key: str) -> int:
        value = self._get(key)
        if _is_integer(value) and value >= 1:
            return value
        self._wrong(key, value, "expected an integer of at least 1")
        return 1

    def positive_number(self, key: str) -> float:
        value = self._get(key)
        if _is_positive_number(value):
            return float(value)
        self._wrong(key, value, "expected a number above 0")
        return 1.0

    def boolean(self, key: str) -> bool:
        value = self._get(key)
        if value is not None and not isinstance(value, bool):
            self._wrong(key, value, "expected true or false")
        return value is True

    def pattern(self, key: str, kind: type[_T]) -> Mapping[str, _T]:
        """Values by module name; `kind` is int or float."""
        value = self._get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > MAX_PATTERN_KEYS:
            self._wrong(key, value, f"expected an object of at most {MAX_PATTERN_KEYS} modules")
            return {}
        for name, number in value.items():
            if not _PATTERN_KEY.fullmatch(name):
                self._wrong(key, name, "expected module names as keys, not regular expressions")
            legal = _is_integer(number) and number >= 1 if kind is int else _is_positive_number(number)
            if not legal:
                expected = "an integer of at least 1" if kind is int else "a number above 0"
                self._wrong(f"{key}.{name}", number, f"expected {expected}")
                return {}
        return {name: kind(number) for name, number in value.items()}  # pyright: ignore[reportCallIssue]  # int or float

    def target_modules(self) -> tuple[str, ...] | None:
        value = self._get("target_modules")
        match value:
            case str() if value:
                return None
            case [_, *_] if all(isinstance(name, str) and name for name in value):
                return tuple(value)
            case _:
                self._wrong("target_modules", value, "expected a list of module names, or a pattern")
                return ()

    def further_selection(self) -> bool:
        # These only say which of the targets are changed, which the tensors say too.
        return any([self._get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern")])

    def one_of(
        self, key: str, allowed: tuple[object, ...], *, default: object = "", remedy: str = _PLAIN_ONLY
    ) -> None:
        value = self._get(key)
        if key not in self._values:
            value = default
        # True == 1 in Python, not in JSON.
        if not any(value == choice and type(value) is type(choice) for choice in allowed):
            choices = ", ".join(json.dumps(choice) for choice in allowed)
            self._wrong(key, value, f"allowed: {choices}; {remedy}")

    def auto_mapping(self) -> None:
        """PEFT writes it where a task type is missing; it is not used here, and must be harmless to others."""
        match self._get("auto_mapping"):
            case None:
                pass
            case {"parent_library": str(library)} if re.fullmatch(r"transformers(?:\.\w+)*", library):
                pass
            case value:
                self._wrong("auto_mapping", value, "allowed: null, or a class of transformers; remove it")

    def others_are_off(self) -> None:
        for key, value in self._values.items():
            if key not in self._judged and value not in (None, False, [], {}, ""):
                self._wrong(key, value, f"only null, false or empty is supported here; {_PLAIN_ONLY}")

    def refuse_if_wrong(self) -> None:
        if self._violations:
            first = self._violations[0]
            raise InvalidAdapterFiles(f"{first.field} {first.description}", violations=self._violations)


def _key(key: str) -> str:
    return key if len(key) <= 60 and key.isprintable() else _shown(key)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive_number(value: Any) -> bool:
    return (_is_integer(value) or isinstance(value, float)) and 0 < value < math.inf
