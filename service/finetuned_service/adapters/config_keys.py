"""Reads the keys of an adapter_config.json and collects what is wrong with them.

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

from finetuned_service.adapters.head import CLASSIFIER, HEAD_KEY
from finetuned_service.errors import InvalidAdapterFiles, Violation

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1024 * 1024
MAX_PATTERN_KEYS = 2048

HARMLESS = frozenset({
    "base_model_name_or_path", "revision", "peft_version", "inference_mode", "lora_dropout",
    "megatron_core", "qalora_group_size", "init_ia3_weights",
})  # fmt: skip
"""Keys without a meaning when an adapter is served, whatever they hold."""

_PATTERN_KEY = re.compile(r"\^?(?:[\w.-]|\\\.)+")
"""Module names and dotted ends of them. In PEFT these keys are regular expressions; only those that
cannot backtrack are taken."""

_REMEDY = "train without it, or merge the adapter into a base"

_T = TypeVar("_T")


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
            raise ValueError(f"the key {shown(key)} stands there twice")
        keys[key] = value
    return keys


_REPR = Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 2, 60, 60


def shown(value: object) -> str:
    """A value as found, never deep or long."""
    return _REPR.repr(value)


class ConfigKeys:
    """The keys of one configuration. A wrong one reads as a value that is thrown away: `refuse_if_wrong`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._judged: set[str] = set(HARMLESS)
        self._violations: list[Violation] = []

    def get(self, key: str) -> Any:
        """What stands there, unchecked; the key counts as known."""
        self._judged.add(key)
        return self._values.get(key)

    def wrong(self, key: str, found: object, allowed: str) -> None:
        """Note that `key` holds `found`."""
        self._violations.append(Violation(f"{CONFIG_FILE}: {_key(key)}", f"is {shown(found)}; {allowed}"))

    def number(self, key: str, read: Callable[[object], _T | None], expected: str, instead: _T) -> _T:
        value = self.get(key)
        read_value = read(value)
        if read_value is None:
            self.wrong(key, value, f"expected {expected}")
            return instead
        return read_value

    def boolean(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.wrong(key, value, "expected true or false")
        return value is True

    def pattern(self, key: str, read: Callable[[object], _T | None], expected: str) -> dict[str, _T]:
        """Numbers by module name or dotted end of it."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > MAX_PATTERN_KEYS:
            self.wrong(key, value, f"expected an object of at most {MAX_PATTERN_KEYS} modules")
            return {}
        numbers: dict[str, _T] = {}
        for name, number in value.items():
            read_number = read(number)
            if read_number is None:
                self.wrong(f"{key}.{name}", number, f"expected {expected}")
            elif not _PATTERN_KEY.fullmatch(name):
                self.wrong(key, name, "expected module names as keys, not regular expressions")
            else:
                numbers[name] = read_number
        return numbers

    def target_modules(self) -> tuple[str, ...] | None:
        """Names or dotted ends of them; None for a pattern."""
        value = self.get("target_modules")
        if isinstance(value, str) and value:
            return None
        names = self._names(value)
        if not names:
            self.wrong("target_modules", value, "expected a list of module names, or a pattern")
        return names or ()

    def names(self, key: str) -> tuple[str, ...]:
        """Names or dotted ends of them; none if the key is off."""
        value = self.get(key)
        names = self._names([] if _is_off(value) else value)
        if names is None:
            self.wrong(key, value, "expected a list of module names")
        return names or ()

    def modules_to_save(self) -> tuple[str, ...]:
        """Their names or dotted ends, but for a head's, which a key of its own describes and this one names for PEFT."""
        names = self.names("modules_to_save")
        return names if self.get(HEAD_KEY) is None else tuple(name for name in names if name != CLASSIFIER)

    @staticmethod
    def _names(value: Any) -> tuple[str, ...] | None:
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            return None
        return tuple(value)

    def further_selection(self) -> bool:
        # They say which of the targets are changed, and so do the tensors.
        selections = [self.get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern")]
        return not all(_is_off(selection) for selection in selections)

    def one_of(
        self, key: str, allowed: tuple[object, ...], *, default: object = "", remedy: str = _REMEDY
    ) -> None:
        value = self.get(key)
        if key not in self._values:
            value = default
        # True == 1 in Python, not in JSON.
        if not any(value == choice and type(value) is type(choice) for choice in allowed):
            choices = ", ".join(json.dumps(choice) for choice in allowed)
            self.wrong(key, value, f"allowed: {choices}; {remedy}")

    def task_type(self) -> str | None:
        """Which class of PEFT's reads the file; of those that leave the base's outputs as they are."""
        self.one_of("task_type", ("CAUSAL_LM", "FEATURE_EXTRACTION", None), default=None)
        return self.get("task_type")

    def auto_mapping(self) -> None:
        """PEFT writes it where a task type is missing; it is not used here, and must be harmless to others."""
        match self.get("auto_mapping"):
            case None:
                pass
            case {"parent_library": str(library)} if re.fullmatch(r"transformers(?:\.\w+)*", library):
                pass
            case value:
                self.wrong("auto_mapping", value, "allowed: null, or a class of transformers; remove it")

    def others_are_off(self) -> None:
        """Nothing that was not asked for says anything."""
        for key, value in self._values.items():
            if key not in self._judged and not _is_off(value):
                self.wrong(key, value, f"only null, false or empty is supported here; {_REMEDY}")

    def refuse_if_wrong(self) -> None:
        """Raises: InvalidAdapterFiles, with everything that was wrong."""
        if self._violations:
            first = self._violations[0]
            raise InvalidAdapterFiles(f"{first.field} {first.description}", violations=self._violations)


def _key(key: str) -> str:
    return key if len(key) <= 60 and key.isprintable() else shown(key)


def _is_off(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})
