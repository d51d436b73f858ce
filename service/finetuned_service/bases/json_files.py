"""The JSON files of a directory that shall become a base. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetuned_service.errors import InvalidField


def read_object(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        InvalidField: it is not there, cannot be read, or holds something else.
    """
    value = read_value(path)
    if not isinstance(value, dict):
        raise InvalidField.one("source", f"its {path.name} is not a JSON object")
    return value


def read_value(path: Path) -> Any:
    """A file that holds any JSON.

    Raises:
        InvalidField: it is not there or cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InvalidField.one("source", f"it has no {path.name}") from error
    except OSError as error:
        raise InvalidField.one("source", f"its {path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidField.one("source", f"its {path.name} is not JSON") from error
