"""A dispatcher over real stores in one directory, whose jobs are run by `fake_job.py`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.adapters.versions import AdapterVersion
from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.bases.manifest import describe_base, write_manifest
from finetuned_service.datasets.store import DatasetStore
from finetuned_service.datasets.validation import DataLimits
from finetuned_service.jobs.assignment import Assignments
from finetuned_service.jobs.dispatcher import Dispatcher
from finetuned_service.jobs.dispatcher_settings import DispatcherSettings
from finetuned_service.jobs.events import Notice
from finetuned_service.jobs.publish import Publisher
from finetuned_service.jobs.queue import JobQueue
from finetuned_service.jobs.states import JobState
from finetuned_service.jobs.store import JobStore
from finetuned_service.jobs.task import TaskLimits
from finetuned_service.jobs.values import Job
from finetuned_service.metrics import JobMetrics, new_registry
from finetuned_service.names import BaseName
from finetuned_service.storage.database import Database
from finetuned_service.vocabulary import WeightFormat
from tiny_files import write_base
from tiny_jobs import NO_REQUEST, TENANT
from tiny_limits import stored_limits

PROGRAM = (sys.executable, "-S", str(Path(__file__).with_name("fake_job.py")))
DEADLINE_SECONDS = 60.0
_POLL_SECONDS = 0.005
T = TypeVar("T")


def eventually(find: Callable[[], T]) -> T:
    """What `find` returns as soon as it is true; fails after the deadline, in which time that this process is
    held up does not count.
    """
    for _ in range(round(DEADLINE_SECONDS / _POLL_SECONDS)):
        if found := find():
            return found
        time.sleep(_POLL_SECONDS)
    raise AssertionError("did not happen in time")


def alive(pid: int) -> bool:
    """Whether the process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it is opened, or between that and reading it
        return False


class Workplace:
    """The stores of one data directory, with the base `bases/tiny` and the dataset `rows`."""

    def __init__(
        self, directory: Path, *, busy_timeout_seconds: float = 5.0, **limits_of_tenant: Any
    ) -> None:
        limits = stored_limits(directory, **limits_of_tenant)
        self.directory = directory
        self.url = f"sqlite:///{directory / 'finetuned.db'}"
        self.database = Database(self.url, busy_timeout_seconds=busy_timeout_seconds)
        self.store, self.queue = JobStore(self.database, limits), JobQueue(self.database)
        self.bases = BaseCatalog(directory)
        (directory / "adapters").mkdir(exist_ok=True)
        self.registry = AdapterRegistry(self.database, directory / "adapters", limits)
        self.datasets = DatasetStore(
            self.database, directory, DataLimits(), (directory,), lambda _c, _t, _d: "", limits
        )
        task_limits = TaskLimits(threads=1, memory_budget_bytes=2**30)
        self.assignments = Assignments(self.bases, self.datasets, self.registry, task_limits)
        self.publisher = Publisher(self.registry, self.bases, max_rank=8)
        self.metrics_page = new_registry(version="test")
        self.metrics = JobMetrics(self.metrics_page, slots=1)
        if not self.bases.path(BaseName("tiny")).exists():
            self._fill()

    def close(self) -> None:
        self.database.close()

    def submit(self, job: Job) -> Job:
        return self.store.create(job, NO_REQUEST)

    @contextmanager
    def dispatcher(self, steps: str, **overrides: Any) -> Iterator[Dispatcher]:
        """A running dispatcher whose jobs do `steps`."""
        settings: dict[str, Any] = {
            "owner": "worker",
            "directory": self.directory / "jobs",
            "max_running": 1,
            # However slow the machine is, no lease runs out but where a test wants it to.
            "lease_seconds": 3600.0,
            "renew_seconds": 0.05,
            "grace_seconds": 10.0,
            "poll_seconds": 0.01,
            "programs": {"train": (*PROGRAM, steps), "quantize": (*PROGRAM, steps)},
        }
        dispatcher = Dispatcher(
            DispatcherSettings(**(settings | overrides)),
            self.queue,
            self.assignments,
            self.publisher,
            self.metrics,
        )
        dispatcher.start()
        try:
            yield dispatcher
        finally:
            dispatcher.stop()

    def job(self, job: Job) -> Job:
        return self.store.get(job.tenant, job.id)

    def reaches(self, job: Job, *states: JobState) -> Job:
        """The job once it is in one of the states."""
        eventually(lambda: self.job(job).state in states)
        return self.job(job)

    def run(self, job: Job, steps: str, **overrides: Any) -> Job:
        """The job at its end, after a dispatcher has run it."""
        submitted = self.submit(job)
        with self.dispatcher(steps, **overrides):
            return self.reaches(submitted, *(state for state in JobState if state.final))

    def notices(self, job: Job) -> list[str]:
        events = self.store.events(job.tenant, job.id, 0, 1000)
        return [event.body.text for event in events if isinstance(event.body, Notice)]

    def pids(self, job: Job) -> list[int]:
        """Of the job's processes, in order, as far as they have said `note`."""
        return [int(text.split()[1]) for text in self.notices(job) if text.startswith("pid ")]

    def first_pid(self, job: Job) -> int:
        """Of the job's first process, once it has said `note`."""
        return eventually(lambda: self.pids(job))[0]

    def open_gate(self, job: Job) -> None:
        (self.directory / "jobs" / job.id / "go").touch()

    def current(self, alias: str = "default", adapter: str = "redact") -> AdapterVersion | None:
        return self.registry.current(TENANT, adapter, alias)

    def _fill(self) -> None:
        name = BaseName("tiny")
        directory = write_base(self.bases.path(name))
        manifest = describe_base(directory, name=name, weight_format=WeightFormat.FP32, source="a test")
        write_manifest(directory, manifest)
        rows = self.directory / "rows.jsonl"
        rows.write_text('{"prompt": "a", "completion": "b"}\n')
        for dataset_id in ("rows", "held-out"):
            self.datasets.import_file(TENANT, dataset_id, rows.as_uri(), NO_REQUEST)
        rows.unlink()
