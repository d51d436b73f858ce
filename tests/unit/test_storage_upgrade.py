"""A store of an older build becomes one of this build, whole or not at all; what is newer is refused."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from finetuned_service.errors import StartRefused
from finetuned_service.storage import schema
from finetuned_service.storage.database import Database
from finetuned_service.storage.upgrade import REVISIONS, bring_up_to_date
from sqlalchemy import inspect, text

FIRST = Path(__file__).parents[1] / "store_version_1.sql"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "finetuned.db"


@pytest.fixture
def first(path) -> Path:
    """A store of the first build."""
    with sqlite3.connect(path) as raw:
        raw.executescript(FIRST.read_text())
    raw.close()
    return path


def opened(path: Path) -> Database:
    return Database(f"sqlite:///{path}")


def version(database) -> str | None:
    with database.read() as connection:
        return connection.scalar(text("SELECT value FROM meta WHERE key = 'schema_version'"))


def dump(path: Path) -> list[str]:
    with sqlite3.connect(path) as raw:
        lines = list(raw.iterdump())
    raw.close()
    return lines


def differences(database) -> list[object]:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, schema.metadata)


def test_a_new_store_and_an_upgraded_first_one_are_what_the_tables_say(tmp_path, first):
    for database in (opened(first), opened(tmp_path / "new.db")):
        assert differences(database) == []
        assert version(database) == str(schema.SCHEMA_VERSION)
        database.close()


def test_sizes_of_older_versions_are_counted(first):
    with sqlite3.connect(first) as raw:
        raw.execute("INSERT INTO adapters VALUES ('acme', 'redact', 1.0, 1)")
        raw.execute(
            "INSERT INTO adapter_versions VALUES ('acme', 'redact', 1, 'd', 'LORA', 'b', '{\"size_bytes\": 70}')"
        )
    raw.close()
    database = opened(first)
    with database.read() as connection:
        assert connection.scalar(text("SELECT size_bytes FROM adapter_versions")) == 70
    database.close()


def test_the_revisions_are_one_row_of_numbers_up_to_the_version_of_this_build():
    config = Config()
    config.set_main_option("script_location", str(REVISIONS))
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert found == [f"{number:04}" for number in range(schema.SCHEMA_VERSION, 0, -1)]


@pytest.fixture
def next_revisions(tmp_path, monkeypatch) -> Path:
    """The revisions with one more, which fails after its first change until `heal` exists."""
    directory = tmp_path / "revisions"
    shutil.copytree(REVISIONS, directory)
    number = schema.SCHEMA_VERSION + 1
    (directory / "versions" / f"v{number:04}_next.py").write_text(
        f"""
from pathlib import Path
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{number:04}", "{number - 1:04}"

def upgrade():
    op.add_column("uploads", sa.Column("note", sa.Text(), nullable=True))
    op.execute("UPDATE uploads SET note = 'upgraded'")
    if not Path({str(directory / "heal")!r}).exists():
        raise OSError("the power went")
    op.create_table("notes", sa.Column("id", sa.Integer(), primary_key=True))
"""
    )
    monkeypatch.setattr(schema, "SCHEMA_VERSION", number)
    return directory


def test_a_failure_in_the_middle_leaves_the_store_as_it_was_and_the_next_start_upgrades_it(
    first, monkeypatch, next_revisions
):
    number = schema.SCHEMA_VERSION
    with monkeypatch.context() as before:
        before.setattr(schema, "SCHEMA_VERSION", 1)
        database = opened(first)
    with database.begin() as connection:
        connection.execute(text("INSERT INTO uploads VALUES ('acme', 'one', 'rows', 1.0)"))
    found = dump(first)
    with pytest.raises(OSError, match="the power went"), database.begin() as connection:
        bring_up_to_date(connection, next_revisions)
    assert dump(first) == found
    (next_revisions / "heal").touch()
    with database.begin() as connection:
        bring_up_to_date(connection, next_revisions)
    assert version(database) == str(number)
    with database.read() as connection:
        assert connection.scalar(text("SELECT note FROM uploads")) == "upgraded"
        assert inspect(connection).has_table("notes")
    database.close()


@pytest.mark.parametrize("number", [1, 7])
def test_a_newer_store_is_refused_and_left_as_it_is(path, number):
    opened(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE meta SET value = ?", (str(schema.SCHEMA_VERSION + number),))
    raw.close()
    found = dump(path)
    with pytest.raises(StartRefused) as refusal:
        opened(path)
    assert refusal.value.message == (
        f"the store has schema version {schema.SCHEMA_VERSION + number}; this build reads up to "
        f"{schema.SCHEMA_VERSION}. Run the newer build, or restore a backup made before it"
    )
    assert dump(path) == found


@pytest.mark.parametrize("value", ["", "two", "-1", "0", None])
def test_a_version_that_is_no_number_is_refused(path, value):
    opened(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE meta SET value = ?", (value,))
    raw.close()
    with pytest.raises(StartRefused, match=r"not a number above 0.*restore a backup"):
        opened(path)


def test_the_database_of_something_else_is_refused(path):
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE recipes (id INTEGER)")
    raw.close()
    with pytest.raises(StartRefused, match="not one of this service"):
        opened(path)
    assert dump(path) == ["BEGIN TRANSACTION;", "CREATE TABLE recipes (id INTEGER);", "COMMIT;"]


@pytest.mark.parametrize(
    "damage", [b"no database at all, but long enough to look" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_damaged_file_is_refused_and_left_as_it_is(path, damage):
    path.write_bytes(damage)
    with pytest.raises(StartRefused, match="restore a backup"):
        opened(path)
    assert path.read_bytes() == damage
