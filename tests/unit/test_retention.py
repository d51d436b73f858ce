"""What expires, what nothing names, and that neither a crash nor a publication in between does harm."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from finetuned_service.errors import NotFound, OutOfRange, ResourceInUse, Unavailable
from finetuned_service.jobs.rows import append_events, load_job, move_job
from finetuned_service.jobs.states import JobState, StateReason
from finetuned_service.jobs.store import JobFilter
from finetuned_service.metrics import SweepMetrics, new_registry
from finetuned_service.names import AdapterSelector, ResourceName
from finetuned_service.retention import collect as collecting
from finetuned_service.retention.garbage import Garbage, Kind
from finetuned_service.retention.sweeper import Sweeper
from finetuned_service.storage import schema
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import PageRequest
from finetuned_service.storage.retention import DEFAULT_RETENTION
from retention_place import DAYS_30, LONG_AGO, ROWS, Place
from sqlalchemy import select, update
from tiny_jobs import NO_REQUEST, TENANT, train_job


@pytest.fixture
def place(tmp_path):
    found = Place(tmp_path)
    yield found
    found.close()


def kinds(found: list[Garbage]) -> list[tuple[str, str]]:
    return sorted((item.kind.name, item.name) for item in found)


def weights(letter: str) -> str:
    return f"adapters/{letter * 64}/adapter_model.safetensors"


# Versions


def test_a_version_that_no_alias_names_goes_with_its_files_and_the_others_stay(place):
    for letter in "acde":
        place.version(letter)
    place.registry.set_alias(
        AdapterSelector(TENANT, "redact", alias="default"), "tenants/acme/adapters/redact/versions/2", ""
    )
    place.registry.set_alias(
        AdapterSelector(TENANT, "redact", alias="prod"), "tenants/acme/adapters/redact/versions/4", ""
    )
    place.age()
    with place.database.begin() as connection:
        # Aliases decide, whatever the column says.
        connection.execute(update(schema.adapter_versions).values(unnamed_since=LONG_AGO))
    assert kinds(place.sweep()) == [
        ("ADAPTER_FILES", f"adapters/{'d' * 64}"),
        ("ADAPTER_VERSION", "tenants/acme/adapters/redact/versions/3"),
    ]
    # 1 is the version that `default` can go back to.
    assert place.versions() == ["redact/1", "redact/2", "redact/4"]
    assert place.files() == {weights(letter) for letter in "ace"}


def test_the_time_counts_from_when_the_last_alias_moved_away(place):
    names = [place.version(letter) for letter in "acd"]
    default = AdapterSelector(TENANT, "redact", alias="default")
    place.registry.set_alias(default, names[1], "")
    place.age()
    before = time.time()
    place.registry.set_alias(default, names[2], "")
    version = place.registry.resolve(AdapterSelector(TENANT, "redact", 1))
    assert version.unnamed_since >= before
    assert place.registry.expire_time(version).timestamp() == pytest.approx(version.unnamed_since + DAYS_30)
    assert place.sweep() == []
    place.registry.set_alias(AdapterSelector(TENANT, "redact", alias="keep"), names[0], "")
    assert place.registry.resolve(AdapterSelector(TENANT, "redact", 1)).unnamed_since is None
    place.registry.delete_alias(AdapterSelector(TENANT, "redact", alias="keep"), "")
    assert place.registry.resolve(AdapterSelector(TENANT, "redact", 1)).unnamed_since >= before


def test_a_version_that_is_in_use_stays(place):
    for letter in "acd":
        place.version(letter)
    place.age()
    assert kinds(place.sweep(used=("sha256:" + "c" * 64,))) == [
        ("ADAPTER_FILES", f"adapters/{'d' * 64}"),
        ("ADAPTER_VERSION", "tenants/acme/adapters/redact/versions/3"),
    ]


def test_a_version_that_an_unfinished_job_names_stays_until_the_job_ends(place):
    place.version("a")
    continued = place.version("c")
    job = place.job(JobState.RUNNING)
    with place.database.begin() as connection:
        # Whichever field of its record names it.
        named = load_job(connection, ResourceName(TENANT, "jobs", job.id)).model_copy(
            update={"display_name": continued}
        )
        append_events(connection, named, [])
    place.age()
    assert place.sweep() == []
    with place.database.begin() as connection:
        move_job(
            connection,
            load_job(connection, ResourceName(TENANT, "jobs", job.id)),
            JobState.FAILED,
            StateReason.NONE,
        )
    assert ("ADAPTER_VERSION", continued) in kinds(place.sweep())


def test_a_version_that_is_named_between_finding_and_collecting_stays(place):
    place.version("a")
    name = place.version("c")
    place.age()
    found = place.collector.find()
    assert len(found) == 2
    place.registry.set_alias(AdapterSelector(TENANT, "redact", alias="prod"), name, "")
    assert list(place.collector.collect(found)) == []
    assert place.versions() == ["redact/1", "redact/2"]
    place.check_named_files()


def test_files_that_a_publication_names_between_finding_and_collecting_stay(place):
    place.version("a")
    place.version("c")
    place.age()
    found = place.collector.find()
    place.version("c", adapter="other")
    assert kinds(list(place.collector.collect(found))) == [
        ("ADAPTER_VERSION", "tenants/acme/adapters/redact/versions/2")
    ]
    place.check_named_files()


# Jobs and their events


def test_finished_jobs_go_with_events_and_files_and_unfinished_ones_stay(place):
    done, queued, running = place.job(), place.job(JobState.QUEUED), place.job(JobState.RUNNING)
    place.age()
    assert kinds(place.sweep()) == [("JOB", done.name), ("JOB_FILES", f"jobs/{done.id}")]
    with pytest.raises(NotFound):
        place.jobs.get(TENANT, done.id)
    assert place.jobs.get(TENANT, queued.id).expire_time is None
    with place.database.read() as connection:
        assert set(connection.scalars(select(schema.job_events.c.job_id))) == {queued.id, running.id}
    assert place.files() == {
        f"jobs/{job.id}/{file}" for job in (queued, running) for file in ("log", "work/checkpoint")
    }


def test_a_job_that_an_unfinished_one_continues_from_stays_with_its_files(place):
    diverged, other = place.job(JobState.FAILED), place.job(JobState.FAILED)
    good = place.directory / "jobs" / diverged.id / "last-good"
    good.mkdir()
    continuing = place.jobs.create(train_job(adapter="new", continue_from=diverged.name), NO_REQUEST)
    place.age()
    assert [name for kind, name in kinds(place.sweep()) if kind == "JOB"] == [other.name]
    with pytest.raises(ResourceInUse, match=f"{diverged.name} is what {continuing.name} goes on from"):
        place.jobs.delete(TENANT, diverged.id)
    assert good.is_dir()
    place.jobs.cancel(TENANT, continuing.id)
    assert ("JOB", diverged.name) in kinds(place.sweep())
    assert not good.exists()


def test_a_job_that_is_continued_between_finding_and_collecting_stays(place):
    diverged = place.job(JobState.FAILED)
    place.age()
    found = place.collector.find()
    place.jobs.create(train_job(adapter="new", continue_from=diverged.name), NO_REQUEST)
    assert ("JOB", diverged.name) not in kinds(list(place.collector.collect(found)))
    assert (place.directory / "jobs" / diverged.id / "log").exists()


def test_the_record_of_a_version_is_kept_as_long_as_the_version(place):
    job = place.job()
    place.version("a", job=job.name)
    place.version("c", job=job.name)
    place.age()
    assert place.jobs.get(TENANT, job.id).expire_time is None
    assert ("JOB", job.name) not in kinds(place.sweep())
    place.registry.delete_adapter(AdapterSelector(TENANT, "redact"))
    assert place.jobs.get(TENANT, job.id).expire_time is not None
    assert ("JOB", job.name) in kinds(place.sweep())


def test_events_go_before_their_job_and_a_watcher_is_told(place):
    job = place.job()
    place.age(DAYS_30 * 0.75)
    assert kinds(place.sweep()) == [("JOB_EVENTS", job.name), ("JOB_FILES", f"jobs/{job.id}/work")]
    assert place.jobs.get(TENANT, job.id).last_event == 4
    assert place.jobs.events(TENANT, job.id, 0, 10) == []
    with pytest.raises(OutOfRange, match="up to 4 are no longer kept"):
        place.jobs.events(TENANT, job.id, 2, 10)
    assert place.files() == {f"jobs/{job.id}/log"}
    assert place.sweep() == []


def test_expire_times_tell_beforehand(place):
    job = place.jobs.get(TENANT, place.job().id)
    assert job.expire_time == job.end_time + timedelta(seconds=DAYS_30)
    assert job.events_expire_time == job.end_time + timedelta(seconds=DAYS_30 / 2)
    assert place.jobs.list(TENANT, JobFilter(), PageRequest()).items == (job,)
    place.datasets.uploads.start(TENANT, "up", "rows")
    expected = datetime.now(UTC) + timedelta(days=7)
    assert abs(place.datasets.uploads.get(TENANT, "up").expire_time - expected) < timedelta(minutes=1)


def test_nothing_that_a_user_made_expires_by_default(tmp_path):
    place = Place(tmp_path, DEFAULT_RETENTION)
    job = place.job()
    place.version("a")
    place.version("c")
    place.age()
    assert kinds(place.sweep()) == [("JOB_FILES", f"jobs/{job.id}/work")]
    assert place.jobs.get(TENANT, job.id).expire_time is None
    assert place.registry.expire_time(place.registry.resolve(AdapterSelector(TENANT, "redact", 2))) is None
    place.close()


# Files that nothing names


def old(path: Path, content: str = "left by a crash") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    for each in (path, path.parent):
        os.utime(each, (LONG_AGO, LONG_AGO))
    return path


UNNAMED = (
    f"adapters/{'f' * 64}/adapter_model.safetensors",
    f"datasets/{'f' * 64}.jsonl",
    "uploads/acme/gone",
    "jobs/train-gone/log",
)
SCRATCH = (
    "staging/tmpabc/adapter_model.safetensors",
    "datasets/.validating-abc/rows.jsonl",
    f"adapters/.{'e' * 64}.deleted-1234/adapter_model.safetensors",
    "bases/.tiny.partial/model.safetensors",
    "tenants/acme/bases/.small.deleted-1234/model.safetensors",
)


def test_what_crashes_leave_goes_and_what_is_being_made_stays(place):
    place.version("a")
    upload(place)
    place.datasets.uploads.start(TENANT, "up", "more")
    kept = place.files()
    for name in (*UNNAMED, *SCRATCH):
        old(place.directory / name)
    old(place.directory / "bases" / "tiny" / "model.safetensors")
    old(place.directory / "bases" / "tiny" / ".base.json.abc.tmp")
    young = {"staging/tmpnew/adapter_model.safetensors", "bases/.other.partial/model.safetensors"}
    for name in young:
        old(place.directory / name)
        (place.directory / name).write_text("being written")
    place.sweep()
    assert place.files() == kept | young | {"bases/tiny/model.safetensors"}


def test_rows_that_are_named_between_finding_and_collecting_stay(place):
    name = upload(place).path
    place.datasets.delete(TENANT, "rows")
    old(name, ROWS.decode())
    found = place.collector.find()
    assert [item.kind for item in found] == [Kind.DATASET_FILE]
    upload(place)
    assert list(place.collector.collect(found)) == []
    place.check_named_files()


def test_an_upload_that_begins_between_finding_and_collecting_stays(place):
    old(place.directory / "uploads" / TENANT / "up")
    found = place.collector.find()
    assert [item.kind for item in found] == [Kind.UPLOAD_FILE]
    place.datasets.uploads.start(TENANT, "up", "rows")
    assert list(place.collector.collect(found)) == []
    assert place.datasets.uploads.append(TENANT, "up", 0, ROWS) == len(ROWS)


def upload(place):
    place.datasets.uploads.start(TENANT, "up", "rows")
    place.datasets.uploads.append(TENANT, "up", 0, ROWS)
    return place.datasets.finish(TENANT, "up", len(ROWS), b"", RequestKey.of(TENANT, "", b""))


def test_finding_changes_nothing(place):
    fill(place)
    before = (dump(place), place.files())
    assert {item.kind for item in place.collector.find()} == set(Kind)
    assert (dump(place), place.files()) == before


def fill(place) -> None:
    """Garbage of every kind beside what stays."""
    place.job()
    place.job(JobState.QUEUED)
    for letter in "acd":
        place.version(letter)
    place.version("c", adapter="other")
    upload(place)
    place.datasets.uploads.start(TENANT, "old", "more")
    place.age()
    for name in (*UNNAMED, *SCRATCH):
        old(place.directory / name)
    young = place.job()
    with place.database.begin() as connection:
        then = time.time() - DAYS_30 * 0.75
        connection.execute(update(schema.jobs).where(schema.jobs.c.id == young.id).values(end_time=then))


def dump(place) -> list[str]:
    with sqlite3.connect(place.directory / "finetuned.db") as raw:
        lines = list(raw.iterdump())
    raw.close()
    return lines


class Killed(BaseException):
    """The process ends here."""


class Power:
    """Goes out at the step whose number is `at`."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


def arm(patch: pytest.MonkeyPatch, place: Place, power: Power) -> None:
    """The power goes out before, inside or after a transaction, or before or after a removal of files."""
    begin, hide, removed = place.database.begin, collecting.hide_directory, collecting._removed

    @contextmanager
    def dying_begin():
        power.step()
        with begin() as connection:
            yield connection
            power.step()
        power.step()

    def dying(function):
        def call(path):
            power.step()
            done = function(path)
            power.step()
            return done

        return call

    patch.setattr(place.database, "begin", dying_begin)
    patch.setattr(collecting, "hide_directory", dying(hide))
    patch.setattr(collecting, "_removed", dying(removed))


def made(directory: Path) -> Place:
    directory.mkdir()
    place = Place(directory)
    fill(place)
    return place


def states(place) -> tuple[list[str], list[tuple[str, int]]]:
    """Versions, and jobs with their numbers of events."""
    with place.database.read() as connection:
        rows = connection.execute(select(schema.jobs.c.state, schema.jobs.c.first_event))
        return place.versions(), sorted((row.state, row.first_event) for row in rows)


def test_killed_at_any_step_no_row_lacks_its_files_and_the_next_sweep_ends_it(tmp_path, monkeypatch):
    reference = made(tmp_path / "reference")
    reference.sweep()
    expected = (states(reference), len(reference.files()))
    reference.close()
    at = 0
    while True:
        place = made(tmp_path / str(at))
        with monkeypatch.context() as patch:
            arm(patch, place, Power(at))
            try:
                place.sweep()
            except Killed:
                died = True
            else:
                died = False
        place.check_named_files()
        for hidden in place.directory.glob("adapters/.*"):
            for each in (*hidden.iterdir(), hidden):
                os.utime(each, (LONG_AGO, LONG_AGO))
        place.sweep()
        place.check_named_files()
        assert (states(place), len(place.files())) == expected
        assert place.collector.find() == []
        place.close()
        if not died:
            break
        at += 1
    assert at > 3 * len(Kind)


# The sweep in the server


def test_a_sweep_tells_whose_files_are_gone_and_waits_while_nobody_knows_what_is_used(place):
    for letter in "ac":
        place.version(letter)
    place.age()
    used: list[list[str] | None] = [None]
    forgotten: list[str] = []
    page = new_registry(version="test")
    sweeper = Sweeper(place.collector, 3600.0, lambda: used[0], forgotten.append, SweepMetrics(page, ()))
    with pytest.raises(Unavailable):
        sweeper.sweep()
    assert place.versions() == ["redact/1", "redact/2"]
    used[0] = ["sha256:" + "c" * 64]
    assert sweeper.sweep() == []
    used[0] = []
    assert page.get_sample_value("finetuned_swept_bytes_total") == 0
    gone = sweeper.sweep()
    assert [item.kind for item in gone] == [Kind.ADAPTER_VERSION, Kind.ADAPTER_FILES]
    assert page.get_sample_value("finetuned_swept_total", {"kind": "adapter_files"}) == 1
    assert page.get_sample_value("finetuned_swept_bytes_total") == sum(item.size_bytes for item in gone) > 0
    assert forgotten == ["sha256:" + "c" * 64]


def test_the_thread_goes_on_after_a_sweep_that_failed(place):
    calls: list[int] = []
    swept = threading.Event()

    def used() -> list[str]:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("for a moment")
        swept.set()
        return []

    page = new_registry(version="test")
    sweeper = Sweeper(place.collector, 0.01, used, lambda _digest: None, SweepMetrics(page, ()))
    sweeper.start()
    assert swept.wait(30)
    sweeper.stop()
    assert page.get_sample_value("finetuned_sweep_failures_total") == 1
    assert page.get_sample_value("finetuned_last_sweep_timestamp_seconds") > 0
