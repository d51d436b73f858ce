"""What unit tests share: a database of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from finetuned_service.storage.database import Database


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of a SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'finetuned.db'}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """An empty one, closed at the end."""
    # Here, because the client's tests also run where the service is not installed (`make floor`).
    from finetuned_service.storage.database import Database

    database = Database(url)
    yield database
    database.close()
