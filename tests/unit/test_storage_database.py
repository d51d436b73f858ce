"""Transactions on the store: what is kept, what is seen, and what a failing store says."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
from finetuned_service.errors import ResourceExhausted, Unavailable
from finetuned_service.storage import schema
from finetuned_service.storage.database import Database
from sqlalchemy import insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError

KEYS = select(schema.meta.c.key).order_by(schema.meta.c.key)


def put(connection, key: str) -> None:
    connection.execute(insert(schema.meta).values(key=key, value=""))


def keys(database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(KEYS))


def test_a_finished_block_is_kept(database, url):
    with database.begin() as connection:
        put(connection, "a")
    database.close()
    assert keys(Database(url)) == ["a", "schema_version"]


def test_a_block_that_raises_leaves_nothing(database):
    def fail():
        with database.begin() as connection:
            put(connection, "a")
            raise LookupError("after writing")

    with pytest.raises(LookupError):
        fail()
    assert keys(database) == ["schema_version"]


def test_a_reader_cannot_write_and_the_next_writer_on_its_connection_can(database):
    with pytest.raises(DBAPIError, match="readonly"), database.read() as connection:
        put(connection, "a")
    with database.begin() as connection:
        put(connection, "b")
    assert keys(database) == ["b", "schema_version"]


def test_a_reader_sees_one_moment_while_others_write(database):
    with database.read() as reading:
        before = list(reading.scalars(KEYS))
        with database.begin() as writing:
            put(writing, "a")
        assert list(reading.scalars(KEYS)) == before
    assert keys(database) == ["a", *before]


def test_writers_wait_for_each_other_instead_of_failing(database):
    with database.begin() as connection:
        connection.execute(insert(schema.meta).values(key="count", value="0"))

    def count() -> None:
        for _ in range(10):
            with database.begin() as connection:
                value = connection.scalar(select(schema.meta.c.value).where(schema.meta.c.key == "count"))
                connection.execute(text(f"UPDATE meta SET value = '{int(value) + 1}' WHERE key = 'count'"))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.scalar(select(schema.meta.c.value).where(schema.meta.c.key == "count")) == "40"


def test_a_new_file_that_another_process_begins_to_write_is_waited_for(url):
    """SQLite itself changes the journal at once or not at all then."""
    other = sqlite3.connect(make_url(url).database, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    leaving = threading.Timer(0.3, other.close)
    leaving.start()
    Database(url).close()
    leaving.join()


def test_processes_that_create_one_file_at_once_all_succeed(url):
    script = """if True:
        import sys
        from finetuned_service.storage import schema
        from finetuned_service.storage.database import Database
        from sqlalchemy import insert
        print("ready", flush=True)
        sys.stdin.readline()
        database = Database(sys.argv[1])
        for i in range(5):
            with database.begin() as connection:
                connection.execute(insert(schema.meta).values(key=f"{sys.argv[2]}-{i}", value=""))
        """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abc"
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert keys(Database(url)) == [*(f"{name}-{i}" for name in "abc" for i in range(5)), "schema_version"]


def test_a_store_that_stays_locked_is_unavailable(database, url):
    impatient = Database(url, busy_timeout_seconds=0.0)
    with database.begin():
        with pytest.raises(Unavailable) as refusal, impatient.begin():
            pass
        assert keys(impatient) == ["schema_version"]
    assert refusal.value.retry_after_seconds == 1.0
    with impatient.begin() as connection:
        put(connection, "a")
    impatient.close()


def test_there_is_a_connection_for_each_of_many_threads(database):
    """However many wait for their turn to write, a reader needs not wait."""
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(database.read())


def test_a_full_disk_says_so_and_keeps_the_store_whole(database):
    def fill():
        with database.begin() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
            connection.execute(insert(schema.meta).values(key="large", value="x" * 10**6))

    with pytest.raises(ResourceExhausted, match="full"):
        fill()
    assert keys(database) == ["schema_version"]


def test_a_place_that_cannot_be_opened_is_unavailable(tmp_path):
    with pytest.raises(Unavailable):
        Database(f"sqlite:///{tmp_path / 'absent' / 'finetuned.db'}")


def test_faults_of_ours_stay_what_they_are(database):
    with pytest.raises(DBAPIError, match="no such table"), database.begin() as connection:
        connection.execute(text("SELECT * FROM absent"))
    with pytest.raises(IntegrityError), database.begin() as connection:
        put(connection, "schema_version")


def test_foreign_keys_are_enforced(database):
    version = {"digest": "", "method": "LORA", "base_digest": "", "manifest": ""}
    with pytest.raises(IntegrityError), database.begin() as connection:
        connection.execute(
            insert(schema.adapter_versions).values(tenant="acme", adapter="absent", version=1, **version)
        )


def test_opening_again_keeps_everything(database, url):
    with database.begin() as connection:
        put(connection, "a")
    again = Database(url)
    assert keys(again) == ["a", "schema_version"]
    again.close()


def test_acknowledged_transactions_survive_a_power_cut(database):
    with database.read() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        ]
    full = 2
    assert found == ["wal", full]
