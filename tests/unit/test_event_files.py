"""TensorBoard's event files on their way to a caller: in order, under harmless names, and why there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from finetuned_service.errors import InvalidField, JobStateConflict, NotFound
from finetuned_service.jobs.event_files import EventFiles
from finetuned_service.jobs.store import JobStore
from finetuned_service.storage.chunks import CHUNK_BYTES
from finetuned_service.storage.database import Database
from tiny_jobs import NO_REQUEST, TENANT, quantize_job, train_job
from tiny_limits import stored_limits


@pytest.fixture
def place(tmp_path: Path) -> Iterator[EventFiles]:
    database = Database(f"sqlite:///{tmp_path / 'finetuned.db'}")
    yield EventFiles(JobStore(database, stored_limits(tmp_path)), tmp_path / "jobs")
    database.close()


def write(place: EventFiles, job: str, **files: bytes) -> Path:
    directory = place.directory / job / "tensorboard"
    directory.mkdir(parents=True)
    for name, data in files.items():
        (directory / f"events.out.tfevents.{name}").write_bytes(data)
    return directory


def test_all_attempts_come_in_order_and_piece_by_piece(place: EventFiles) -> None:
    job = place.store.create(train_job(), NO_REQUEST)
    directory = write(
        place, job.id, **{"170000002.host.9-1": b"later", "170000001.host.8-1": b"x" * (CHUNK_BYTES + 3)}
    )
    (directory / "notes").write_bytes(b"of somebody")
    found = [(c.file_name, c.offset, len(c.data)) for c in place.chunks(TENANT, job.id)]
    assert found == [
        ("events.out.tfevents.000001", 0, CHUNK_BYTES),
        ("events.out.tfevents.000001", CHUNK_BYTES, 3),
        ("events.out.tfevents.000002", 0, 5),
    ]


def test_names_are_in_the_order_of_writing_however_many_attempts_there_were(place: EventFiles) -> None:
    """TensorBoard sorts them as text."""
    job = place.store.create(train_job(), NO_REQUEST)
    write(place, job.id, **{f"1700000{number:02}.host": str(number).encode() for number in range(12)})
    found = list(place.chunks(TENANT, job.id))
    assert [chunk.data for chunk in found] == [str(number).encode() for number in range(12)]
    assert sorted(chunk.file_name for chunk in found) == [chunk.file_name for chunk in found]


def test_what_has_none_says_why(place: EventFiles) -> None:
    with pytest.raises(NotFound):
        place.chunks(TENANT, "absent")
    run = place.store.create(quantize_job(), NO_REQUEST)
    with pytest.raises(InvalidField, match="a Quantize run; only TrainJobs"):
        place.chunks(TENANT, run.id)
    job = place.store.create(train_job(), NO_REQUEST)
    with pytest.raises(JobStateConflict, match=r"is QUEUED .* yet: ask again once it trains") as waits:
        place.chunks(TENANT, job.id)
    assert waits.value.metadata == {"state": "QUEUED"}
    place.store.cancel(TENANT, job.id)
    with pytest.raises(JobStateConflict, match=r"is CANCELLED .*: it never trained"):
        place.chunks(TENANT, job.id)
    with pytest.raises(NotFound):
        place.chunks("other", job.id)


def test_a_job_that_is_deleted_meanwhile_is_not_found(place: EventFiles) -> None:
    job = place.store.create(train_job(), NO_REQUEST)
    directory = write(place, job.id, **{"1": b"a", "2": b"b"})
    chunks = place.chunks(TENANT, job.id)
    assert next(chunks).data == b"a"
    (directory / "events.out.tfevents.2").unlink()
    with pytest.raises(NotFound):
        next(chunks)
