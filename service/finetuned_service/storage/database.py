"""One database behind SQLAlchemy Core: SQLite by default, PostgreSQL by its URL.

SQLite runs in WAL mode with synchronous=FULL: with NORMAL a power cut can roll back transactions
that were already acknowledged. Writing transactions begin IMMEDIATE, so that they queue at their
start instead of failing half-way when two of them want to upgrade a read.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, create_engine, event, insert, select
from sqlalchemy.engine import make_url

from finetuned_service.errors import StartRefused
from finetuned_service.storage import schema

_BUSY_TIMEOUT_SECONDS = 30


class Database:
    """Transactions on the store. Safe to use from many threads and processes."""

    def __init__(self, url: str) -> None:
        self._sqlite = make_url(url).get_backend_name() == "sqlite"
        connect_args: dict[str, Any] = {"timeout": _BUSY_TIMEOUT_SECONDS} if self._sqlite else {}
        self._engine = create_engine(url, connect_args=connect_args)
        if self._sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        self._create_or_check()

    @contextmanager
    def begin(self) -> Generator[Connection]:
        """A writing transaction: committed at the end of the block, rolled back on an exception."""
        with self._engine.connect() as connection:
            writing = connection.execution_options(finetuned_writes=True)
            with writing.begin():
                yield writing

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A consistent view; nothing may be written through it."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def _create_or_check(self) -> None:
        with self.begin() as connection:
            schema.metadata.create_all(connection)
            found = connection.scalar(
                select(schema.meta.c.value).where(schema.meta.c.key == "schema_version")
            )
            if found is None:
                values = {"key": "schema_version", "value": str(schema.SCHEMA_VERSION)}
                connection.execute(insert(schema.meta).values(values))
            elif int(found) > schema.SCHEMA_VERSION:
                raise StartRefused(
                    f"the data directory has schema version {found}; this build reads up to "
                    f"{schema.SCHEMA_VERSION}. Run the newer build, or restore a backup made before it"
                )


def _prepare_sqlite(dbapi_connection: Any, _record: object) -> None:
    # Autocommit on the driver's side: transactions are begun by _begin_sqlite alone.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("finetuned_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
