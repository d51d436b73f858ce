"""What a tenant keeps is counted where it is made, and a refusal changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from finetuned_service.adapters.manifest import AdapterManifest
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.datasets.store import DatasetStore
from finetuned_service.datasets.validation import DataLimits
from finetuned_service.errors import QuotaExceeded, Unavailable
from finetuned_service.jobs.rows import UNFINISHED_STATES
from finetuned_service.jobs.states import JobState
from finetuned_service.jobs.store import JobFilter, JobStore
from finetuned_service.names import AdapterSelector
from finetuned_service.settings import TenantLimits
from finetuned_service.storage.database import Database
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import PageRequest
from finetuned_service.tenancy.limits import Limit
from finetuned_service.tenancy.stored import FINAL_STATES, StoredLimits
from finetuned_service.vocabulary import Method, Task
from tiny_jobs import NO_REQUEST, TENANT, quantize_job, train_job

ROWS = b'{"prompt":"a","completion":"b"}\n'
CALLS = 8


class Place:
    """Stores of one data directory under limits."""

    def __init__(self, directory: Path, **limits: Any) -> None:
        self.directory = directory
        self.database = Database(f"sqlite:///{directory / 'finetuned.db'}")
        (directory / "adapters").mkdir(exist_ok=True)
        self.source = directory / "source.jsonl"
        self.source.write_bytes(ROWS)
        self.limits = StoredLimits(lambda _tenant: TenantLimits(**limits), directory)
        self.jobs = JobStore(self.database, self.limits)
        self.registry = AdapterRegistry(self.database, directory / "adapters", self.limits)
        self.datasets = DatasetStore(
            self.database, directory, DataLimits(), (directory,), lambda _c, _t, _d: "", self.limits
        )

    def used(self, tenant: str = TENANT) -> dict[Limit, int]:
        with self.database.read() as connection:
            return {use.limit: use.used for use in self.limits.usage(connection, tenant)}

    def start(self, name: str, *, tenant: str = TENANT) -> int:
        return self.datasets.uploads.start(tenant, name, name)

    def append(self, name: str, data: bytes) -> int:
        return self.datasets.uploads.append(TENANT, name, 0, data)

    def bring_in(self, name: str, *, tenant: str = TENANT, request: RequestKey = NO_REQUEST) -> str:
        return self.datasets.import_file(tenant, name, self.source.as_uri(), request).name

    def version(self, adapter: str, letter: str = "a", size_bytes: int = 10) -> str:
        staged = self.directory / f"staged-{adapter}-{letter}"
        staged.mkdir()

        def manifest(name: str) -> AdapterManifest:
            return AdapterManifest(
                name=name,
                digest=f"sha256:{letter * 64}",
                base_digest="sha256:" + "b" * 64,
                base_root_digest="sha256:" + "b" * 64,
                method=Method.LORA,
                task=Task.TEXT_GENERATION,
                parameters=1,
                modules=1,
                rank=1,
                size_bytes=size_bytes,
                create_time="2026-01-01T00:00:00Z",
            )

        return self.registry.import_version(TENANT, adapter, staged, manifest, size_bytes, NO_REQUEST).name


@pytest.fixture
def place(tmp_path: Path):
    made: list[Place] = []

    def make(**limits: Any) -> Place:
        made.append(Place(tmp_path, **limits))
        return made[-1]

    yield make
    for each in made:
        each.database.close()


def refused(call: Callable[[], object], limit: Limit) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as refusal:
        call()
    assert refusal.value.metadata["limit"] == limit
    assert refusal.value.metadata["subject"] == f"tenants/{TENANT}"
    assert (refusal.value.retry_after_seconds or 0) > 0
    return refusal.value


def test_final_states_are_those_of_jobs() -> None:
    assert {state for state in JobState if state.final} == set(FINAL_STATES)
    assert set(JobState) - set(FINAL_STATES) == set(UNFINISHED_STATES)


def test_everything_that_a_tenant_names_is_counted(place) -> None:
    here = place()
    here.bring_in("rows")
    here.bring_in("same")  # shares its file with "rows" and counts too
    here.start("coming")
    here.append("coming", b"x" * 5)
    here.version("mine", "a", size_bytes=100)
    here.version("mine", "c", size_bytes=100)
    here.version("other", "a", size_bytes=100)
    here.jobs.create(train_job(adapter="mine"), NO_REQUEST, reserved_bytes=1000)
    here.jobs.create(train_job(adapter="new"), NO_REQUEST, reserved_bytes=1000)
    here.jobs.create(quantize_job(), NO_REQUEST, reserved_bytes=7000)
    base = here.directory / "tenants" / TENANT / "bases" / "small"
    base.mkdir(parents=True)
    (base / "model.safetensors").write_bytes(b"w" * 50_000)
    assert here.used() == {
        Limit.STORAGE_BYTES: 2 * len(ROWS) + 5 + 300 + 9000 + 50_000,
        Limit.DATASETS: 3,
        Limit.ADAPTERS: 3,
        Limit.ADAPTER_VERSIONS: 5,
        Limit.UNFINISHED_JOBS: 3,
    }
    assert set(here.used("other").values()) == {0}


def test_a_dataset_too_many_is_refused_before_its_bytes_come(place) -> None:
    here = place(datasets=2)
    here.bring_in("one")
    here.start("two")
    before = here.used()
    for call in (lambda: here.start("three"), lambda: here.bring_in("three")):
        error = refused(call, Limit.DATASETS)
        assert (error.metadata["used"], error.metadata["allowed"]) == ("2", "2")
    assert here.used() == before
    assert not (here.directory / "uploads" / TENANT / "three").exists()
    assert here.start("two") == 0  # an upload that goes on needs no further place
    assert here.start("three", tenant="other") == 0
    here.datasets.delete(TENANT, "one")
    here.start("three")


def test_an_upload_takes_its_place_with_it(place) -> None:
    here = place(datasets=1, storage_bytes=len(ROWS))
    here.start("one")
    here.append("one", ROWS)
    made = here.datasets.finish(TENANT, "one", len(ROWS), b"", NO_REQUEST)
    assert made.size_bytes == len(ROWS)
    assert here.used()[Limit.STORAGE_BYTES] == len(ROWS)


def test_a_request_that_comes_again_is_answered_though_all_is_full(place) -> None:
    here = place(datasets=1, unfinished_jobs=1)
    request = RequestKey.of(TENANT, "again", b"body")
    assert here.bring_in("one", request=request) == here.bring_in("one", request=request)
    other = RequestKey.of(TENANT, "job", b"body")
    assert here.jobs.create(train_job(), other) == here.jobs.create(train_job(), other)


def test_bytes_too_many_are_refused_and_those_before_stay(place) -> None:
    here = place(storage_bytes=100)
    here.start("one")
    assert here.append("one", b"x" * 60) == 60
    here.start("two")
    error = refused(lambda: here.append("two", b"y" * 41), Limit.STORAGE_BYTES)
    assert "60 bytes are used and 41 more wanted; allowed: 100. Delete" in error.message
    assert here.used()[Limit.STORAGE_BYTES] == 60
    assert here.append("two", b"y" * 40) == 40
    refused(lambda: here.bring_in("rows"), Limit.STORAGE_BYTES)
    assert list((here.directory / "datasets").iterdir()) == []


def test_rows_that_grow_are_refused_at_the_end_and_the_upload_stays(place) -> None:
    unended = ROWS.rstrip()  # its canonical rows end with a line feed
    here = place(storage_bytes=len(unended))
    here.start("one")
    here.append("one", unended)
    refused(lambda: here.datasets.finish(TENANT, "one", len(unended), b"", NO_REQUEST), Limit.STORAGE_BYTES)
    assert here.datasets.uploads.get(TENANT, "one").committed_bytes == len(unended)
    assert list((here.directory / "datasets").iterdir()) == []


def test_adapters_and_versions(place) -> None:
    here = place(adapters=2, adapter_versions=3)
    here.version("one", "a")
    here.jobs.create(train_job(adapter="two"), NO_REQUEST)
    refused(lambda: here.version("three", "c"), Limit.ADAPTERS)
    refused(lambda: here.jobs.create(train_job(adapter="three"), NO_REQUEST), Limit.ADAPTERS)
    refused(lambda: here.registry.refuse_full(TENANT, "three", NO_REQUEST), Limit.ADAPTERS)
    here.version("one", "d")
    refused(lambda: here.version("one", "e"), Limit.ADAPTER_VERSIONS)
    refused(lambda: here.jobs.create(train_job(adapter="two"), NO_REQUEST), Limit.ADAPTER_VERSIONS)
    kept = sorted(path.name[0] for path in (here.directory / "adapters").iterdir())
    assert kept == ["a", "d"]
    here.registry.delete_adapter(AdapterSelector(TENANT, "one"))
    assert here.version("three", "f") == f"tenants/{TENANT}/adapters/three/versions/1"


def test_a_job_holds_room_for_its_result_until_it_ends(place) -> None:
    here = place(storage_bytes=1000)
    job = here.jobs.create(train_job(), NO_REQUEST, reserved_bytes=700)
    here.start("rows")
    refused(lambda: here.append("rows", b"x" * 301), Limit.STORAGE_BYTES)
    refused(lambda: here.jobs.create(quantize_job(), NO_REQUEST, reserved_bytes=301), Limit.STORAGE_BYTES)
    assert len(here.jobs.list(TENANT, JobFilter(), PageRequest()).items) == 1
    here.jobs.cancel(TENANT, job.id)
    assert here.append("rows", b"x" * 301) == 301


def test_a_version_too_large_leaves_no_files(place) -> None:
    here = place(storage_bytes=100)
    refused(lambda: here.version("one", "a", size_bytes=101), Limit.STORAGE_BYTES)
    assert list((here.directory / "adapters").iterdir()) == []
    assert here.used()[Limit.ADAPTERS] == 0


@pytest.mark.parametrize("kind", ["datasets", "uploads", "bytes", "adapters", "versions", "jobs"])
def test_calls_at_the_same_time_never_exceed_a_limit(place, kind: str) -> None:
    here = place(adapters=3, adapter_versions=3, unfinished_jobs=3, storage_bytes=3000)
    if kind == "bytes":
        for i in range(CALLS):
            here.start(f"n{i}")
    else:
        here.limits._limits_of = lambda _tenant: TenantLimits(
            datasets=3, adapters=3, adapter_versions=3, unfinished_jobs=3
        )
    calls: dict[str, Callable[[int], object]] = {
        "datasets": lambda i: here.bring_in(f"n{i}"),
        "uploads": lambda i: here.start(f"n{i}"),
        "bytes": lambda i: here.append(f"n{i}", b"x" * 1000),
        "adapters": lambda i: here.version(f"n{i}", "abcdefgh"[i]),
        "versions": lambda i: here.version("one", "abcdefgh"[i]),
        "jobs": lambda i: here.jobs.create(train_job(), NO_REQUEST),
    }

    def outcome(i: int) -> bool:
        try:
            calls[kind](i)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(CALLS) as pool:
        assert sum(pool.map(outcome, range(CALLS))) == 3
    limit = {
        "uploads": "datasets",
        "bytes": "storage_bytes",
        "versions": "adapter_versions",
        "jobs": "unfinished_jobs",
    }
    assert here.used()[Limit(limit.get(kind, kind))] == (3000 if kind == "bytes" else 3)


def test_a_chunk_waits_for_its_turn_among_writers(place, tmp_path: Path) -> None:
    """Or two chunks would each count without the other."""
    here = place()
    here.start("one")
    impatient = Database(f"sqlite:///{tmp_path / 'finetuned.db'}", busy_timeout_seconds=0.0)
    beside = DatasetStore(impatient, tmp_path, DataLimits(), (), lambda _c, _t, _d: "", here.limits)
    with here.database.begin(), pytest.raises(Unavailable):
        beside.uploads.append(TENANT, "one", 0, b"x")
    assert beside.uploads.append(TENANT, "one", 0, b"x") == 1
    impatient.close()
