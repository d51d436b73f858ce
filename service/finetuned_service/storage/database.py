"""One database behind SQLAlchemy Core: SQLite by default, PostgreSQL by its URL.

SQLite runs in WAL mode with synchronous=FULL: with NORMAL a power cut can roll back transactions
that were already acknowledged. Writing transactions begin IMMEDIATE, so that they queue at their
start instead of failing half-way when two of them want to upgrade a read.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from finetuned_service.errors import FinetunedError, ResourceExhausted, StartRefused, Unavailable
from finetuned_service.storage.upgrade import bring_up_to_date, check_version, refuse_other_version

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a transaction waits for another writer of a SQLite file."""
_RETRY_AFTER_SECONDS = 1.0
_JOURNAL_PAUSE_SECONDS = 0.01
_PASSING_SQLITE_CODES = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
)
"""Primary result codes (https://www.sqlite.org/rescode.html) of what may work when tried again."""
_DAMAGE_SQLITE_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Database:
    """Transactions on the store. Safe to use from many threads and processes.

    A store of an older build is brought up to this one when it is opened. Opening raises StartRefused for
    one of a newer build, or a damaged one.

    Every transaction can raise Unavailable (the store does not answer now; nothing was written) and
    ResourceExhausted (its disk is full).
    """

    def __init__(
        self, url: str, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS, upgrade: bool = True
    ) -> None:
        """Without `upgrade` only a store of exactly this build's version is opened, and nothing changed."""
        sqlite = make_url(url).get_backend_name() == "sqlite"
        # A file's connections cost next to nothing, and a thread holds one at most: none waits for a connection
        # behind those that wait for their turn to write; five stay open when nobody has them. A server of PostgreSQL
        # has few: there the pool is bounded.
        own: dict[str, Any] = {
            "connect_args": {"timeout": busy_timeout_seconds},
            "poolclass": QueuePool,
            "max_overflow": -1,
        }
        self._engine = create_engine(url, **(own if sqlite else {}))
        if sqlite:
            event.listen(self._engine, "connect", partial(_prepare_sqlite, busy_timeout_seconds))
            event.listen(self._engine, "begin", _begin_sqlite)
        with _refusing_damage():
            # First without writing: what is refused is left as it was found.
            with self.read() as connection:
                found = check_version(connection)
            if not upgrade:
                refuse_other_version(found)
                return
            with self.begin() as connection:
                bring_up_to_date(connection)

    @contextmanager
    def begin(self) -> Generator[Connection]:
        """A writing transaction: committed at the end of the block, rolled back on an exception."""
        with _refusing(), self._engine.connect() as connection:
            writing = connection.execution_options(finetuned_writes=True)
            with writing.begin():
                yield writing

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A consistent view; SQLite refuses to write through it."""
        with _refusing(), self._engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self._engine.dispose()


@contextmanager
def _refusing() -> Generator[None]:
    """Failures of the store itself in the words of the house; faults of ours go through as they are."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise refusal from error


@contextmanager
def _refusing_damage() -> Generator[None]:
    try:
        yield
    except DBAPIError as error:
        if _sqlite_code(error) not in _DAMAGE_SQLITE_CODES:
            raise
        raise StartRefused(
            f"the store is damaged ({error.orig}); restore a backup, or choose another data_dir"
        ) from error


def _sqlite_code(error: DBAPIError) -> int | None:
    """The primary code, which is the low byte; extended codes carry the detail above it."""
    found = error.orig
    return getattr(found, "sqlite_errorcode", 0) & 0xFF if isinstance(found, sqlite3.Error) else None


def _refusal(error: DBAPIError | PoolTimeout) -> FinetunedError | None:
    unavailable = Unavailable(
        "the store does not answer; nothing was written. Try again", retry_after_seconds=_RETRY_AFTER_SECONDS
    )
    if isinstance(error, PoolTimeout):
        return unavailable
    code = _sqlite_code(error)
    if code is not None:
        if code == sqlite3.SQLITE_FULL:
            return ResourceExhausted(
                "the disk of the store is full; nothing was written. Free space on the server",
                metadata={"subject": "server"},
            )
        return unavailable if code in _PASSING_SQLITE_CODES else None
    return unavailable if error.connection_invalidated else None


def _prepare_sqlite(busy_timeout_seconds: float, dbapi_connection: Any, _record: object) -> None:
    # Autocommit on the driver's side: transactions are begun by _begin_sqlite alone.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    _write_ahead(cursor, time.monotonic() + busy_timeout_seconds)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _write_ahead(cursor: Any, until_seconds: float) -> None:
    """Of several processes that create one file each wants to change its journal, which SQLite waits for nobody to do."""
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until_seconds:
                raise
            time.sleep(_JOURNAL_PAUSE_SECONDS)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("finetuned_writes", False)
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
