"""The version of a store: refused when newer than this build, brought up to it when older.

`meta.schema_version` is the truth, and what builds from before Alembic look at. Alembic
(https://alembic.sqlalchemy.org) runs the revisions in between, all in the caller's transaction: after a
crash or a failure in the middle the store is as it was. Going back is by backup: a revision has no
downgrade, because what it would have to throw away cannot be known.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, insert, inspect, select, update

from finetuned_service.errors import StartRefused
from finetuned_service.storage import schema
from finetuned_service.telemetry import logs

REVISIONS = Path(__file__).with_name("revisions")

_LOG = logs.logger("store")
_VERSION = schema.meta.c.key == "schema_version"


def check_version(connection: Connection) -> int | None:
    """The version of the store, None for an empty one; changes nothing.

    Raises:
        StartRefused: it is newer than this build, or not a store of ours.
    """
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return None
    remedy = "Check data_dir and database_url, or restore a backup"
    if schema.meta.name not in tables:
        raise StartRefused(
            f"the store has tables but none named {schema.meta.name!r}: it is not one of this service. {remedy}"
        )
    value = connection.scalar(select(schema.meta.c.value).where(_VERSION))
    found = int(value) if value is not None and value.isdecimal() else 0
    if not found:
        raise StartRefused(f"the store has schema version {value!r}, not a number above 0. {remedy}")
    if found > schema.SCHEMA_VERSION:
        raise StartRefused(
            f"the store has schema version {found}; this build reads up to {schema.SCHEMA_VERSION}. "
            "Run the newer build, or restore a backup made before it"
        )
    return found


def refuse_other_version(found: int | None) -> None:
    """For commands that look at a store and must not change it.

    Raises:
        StartRefused: the store is empty, or would have to be upgraded first.
    """
    if found != schema.SCHEMA_VERSION:
        was = "is empty" if found is None else f"has schema version {found}"
        raise StartRefused(
            f"the store {was}; this build's is {schema.SCHEMA_VERSION}. Start the server once: it upgrades the "
            "store"
        )


def bring_up_to_date(connection: Connection, revisions: Path = REVISIONS) -> None:
    """Create what an empty store lacks, or run the revisions that an older one lacks.

    Args:
        connection: a writing transaction; whoever comes second waits for it and finds nothing to do.
        revisions: Alembic's script directory.

    Raises:
        StartRefused: as `check_version`.
    """
    found = check_version(connection)
    target = schema.SCHEMA_VERSION
    if found == target:
        return
    config = Config()
    config.set_main_option("script_location", str(revisions).replace("%", "%%"))
    config.attributes["connection"] = connection
    if found is None:
        schema.metadata.create_all(connection)
        command.stamp(config, _revision(target))
        connection.execute(insert(schema.meta).values(key="schema_version", value=str(target)))
        return
    if MigrationContext.configure(connection).get_current_revision() is None:
        command.stamp(config, _revision(found))
    command.upgrade(config, _revision(target))
    connection.execute(update(schema.meta).where(_VERSION).values(value=str(target)))
    _LOG.info("store upgraded", from_version=found, to_version=target)


def _revision(version: int) -> str:
    return f"{version:04}"
