"""adapter_config.json in PEFT's format: what the service accepts of it.

An allowlist of our own. PEFT's loader imports the module that `auto_mapping.parent_library` names and
searches with the file's regular expressions; here nothing of the file is run, imported or searched
with. A key that is not known is let through only where it is off (null, false, empty): then it
changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from reprlib import Repr
from typing import Any, NoReturn, TypeVar

from finetuned_service.adapters.lora_config import LoraConfig
from finetuned_service.errors import InvalidAdapterFiles, Violation

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1024 * 1024
MAX_PATTERN_KEYS = 2048
MAX_ALPHA = 1e9

HARMLESS = frozenset({
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


def parse_lora_config(raw: bytes) -> LoraConfig:
    """Read the bytes of an adapter_config.json.

    Raises:
        InvalidAdapterFiles: with a violation for every key that is missing, wrong or not supported.
    """
    keys = _Keys(load_config(raw))
    config = LoraConfig(
        rank=keys.number("r", _rank, _RANK, 1),
        alpha=keys.number("lora_alpha", _alpha, _ALPHA, 1.0),
        rank_stabilized=keys.boolean("use_rslora"),
        rank_pattern=keys.pattern("rank_pattern", _rank, _RANK),
        alpha_pattern=keys.pattern("alpha_pattern", _alpha, _ALPHA),
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


def load_config(raw: bytes) -> dict[str, Any]:
    """The JSON object in the bytes of an adapter_config.json.

    Raises:
        InvalidAdapterFiles: it is none, is too long, or has a key twice.
    """
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


_REPR = Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 2, 60, 60


def _shown(value: object) -> str:
    """A value as found, never deep or long."""
    return _REPR.repr(value)


class _Keys:
    """Reads keys and collects what is wrong with them; a wrong one reads as a value that is thrown away."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._judged: set[str] = set(HARMLESS)
        self._violations: list[Violation] = []

    def _get(self, key: str) -> Any:
        self._judged.add(key)
        return self._values.get(key)

    def _wrong(self, key: str, found: object, allowed: str) -> None:
        self._violations.append(Violation(f"{CONFIG_FILE}: {_key(key)}", f"is {_shown(found)}; {allowed}"))

    def number(self, key: str, read: Callable[[object], _T | None], expected: str, instead: _T) -> _T:
        value = self._get(key)
        read_value = read(value)
        if read_value is None:
            self._wrong(key, value, f"expected {expected}")
            return instead
        return read_value

    def boolean(self, key: str) -> bool:
        value = self._get(key)
        if value is not None and not isinstance(value, bool):
            self._wrong(key, value, "expected true or false")
        return value is True

    def pattern(self, key: str, read: Callable[[object], _T | None], expected: str) -> dict[str, _T]:
        """Numbers by module name or dotted end of it."""
        value = self._get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > MAX_PATTERN_KEYS:
            self._wrong(key, value, f"expected an object of at most {MAX_PATTERN_KEYS} modules")
            return {}
        numbers: dict[str, _T] = {}
        for name, number in value.items():
            read_number = read(number)
            if read_number is None:
                self._wrong(f"{key}.{name}", number, f"expected {expected}")
            elif not _PATTERN_KEY.fullmatch(name):
                self._wrong(key, name, "expected module names as keys, not regular expressions")
            else:
                numbers[name] = read_number
        return numbers

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
        # They say which of the targets are changed, and so do the tensors.
        selections = [self._get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern")]
        return not all(_is_off(selection) for selection in selections)

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
            if key not in self._judged and not _is_off(value):
                self._wrong(key, value, f"only null, false or empty is supported here; {_PLAIN_ONLY}")

    def refuse_if_wrong(self) -> None:
        if self._violations:
            first = self._violations[0]
            raise InvalidAdapterFiles(f"{first.field} {first.description}", violations=self._violations)


def _key(key: str) -> str:
    return key if len(key) <= 60 and key.isprintable() else _shown(key)


def _is_off(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


_RANK = "an integer of at least 1"
_ALPHA = f"a number above 0, at most {MAX_ALPHA:g}"


def _rank(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _alpha(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if 0 < value <= MAX_ALPHA else None
