"""What sentence-transformers wrote beside an encoder. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetuned_service.bases.json_files import read_object, read_value
from finetuned_service.errors import InvalidField
from finetuned_service.vocabulary import Pooling

MODULES_FILE = "modules.json"
_POOLING_DIRECTORY = "1_Pooling"
POOLING_FILE = f"{_POOLING_DIRECTORY}/config.json"

_MODES: Mapping[str, Pooling] = {"mean": Pooling.MEAN, "cls": Pooling.CLS, "lasttoken": Pooling.LAST}
_FLAGS: Mapping[str, str] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Before version 6 each mode was a flag; others go by their own names, to be refused."""
_MODULES = ("Transformer", "Pooling", "Normalize")
"""Of their classes; what is normalised is up to who asks for vectors."""


def sentence_pooling(source: Path) -> Pooling:
    """As sentence-transformers wrote it; else the mean, which suits encoders that nobody has tuned.

    Raises:
        InvalidField: it pools otherwise, or computes more than the encoder and its pooling.
    """
    _check_modules(source)
    if not (source / POOLING_FILE).is_file():
        return Pooling.MEAN
    settings = read_object(source / POOLING_FILE)
    modes = _modes(settings)
    if len(modes) != 1 or modes[0] not in _MODES:
        raise InvalidField.one(
            "source",
            f"its {POOLING_FILE} chooses {', '.join(modes) or 'nothing'}; expected one of {', '.join(_MODES)} "
            f"(pooling_mode), or of {', '.join(_FLAGS)}",
        )
    return _MODES[modes[0]]


def _modes(settings: Mapping[str, Any]) -> list[str]:
    match settings.get("pooling_mode"):
        case str(mode):
            return [mode]
        case [*modes]:
            return list(map(str, modes))
        case _:
            flags = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True]
            return [_FLAGS.get(name, name) for name in flags]


def _check_modules(source: Path) -> None:
    path = source / MODULES_FILE
    if not path.is_file():
        return
    modules: Any = read_value(path)
    for module in modules if isinstance(modules, list) else [modules]:
        kind, place = _class_of(module), module.get("path") if isinstance(module, dict) else None
        if kind not in _MODULES:
            raise InvalidField.one(
                "source",
                f"its {MODULES_FILE} has the module {kind}, which is not computed here, so its vectors would be others; "
                f"expected {', '.join(_MODULES)}. To take the encoder without it, remove it from the file",
            )
        if kind == "Pooling" and place != _POOLING_DIRECTORY:
            raise InvalidField.one(
                "source",
                f"its {MODULES_FILE} has the pooling in {place!r}; expected {_POOLING_DIRECTORY!r}: rename it",
            )


def _class_of(module: Any) -> str:
    """Of sentence-transformers itself the last part of its name, which stays while its packages move."""
    name = str(module.get("type")) if isinstance(module, dict) else repr(module)
    package, _, kind = name.rpartition(".")
    return kind if package.partition(".")[0] == "sentence_transformers" else name
