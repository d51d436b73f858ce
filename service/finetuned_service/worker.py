"""Runs jobs: as a part of the server, or as a process of its own beside it (`finetuned worker`).

Both are the same dispatcher on the same store and data directory; a job is claimed under a lease, so any
number of them may run. A worker alone holds no base, opens no API and survives the server, as the server
survives it.
"""

from __future__ import annotations

import asyncio
import fcntl
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from finetuned_service import VERSION
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.datasets.limits import data_limits_of
from finetuned_service.datasets.store import DatasetStore
from finetuned_service.errors import StartRefused
from finetuned_service.jobs.assignment import Assignments, ResidentBase
from finetuned_service.jobs.census import take_census
from finetuned_service.jobs.dispatcher import Dispatcher
from finetuned_service.jobs.dispatcher_settings import DispatcherSettings
from finetuned_service.jobs.observer import JobObserver
from finetuned_service.jobs.publish import Publisher
from finetuned_service.jobs.queue import JobQueue
from finetuned_service.jobs.store import JobStore
from finetuned_service.jobs.task import TaskLimits
from finetuned_service.metrics import JobMetrics, new_registry
from finetuned_service.metrics import serve as serve_metrics
from finetuned_service.metrics.jobs import watch_store
from finetuned_service.metrics.machine import watch_data_directory
from finetuned_service.retention.policy import retention_of
from finetuned_service.rpc.health import TRAINING, HealthServer
from finetuned_service.settings import Address, Settings
from finetuned_service.storage.database import Database
from finetuned_service.telemetry import logs
from finetuned_service.tenancy.stored import StoredLimits

_LOG = logs.logger("worker")


class WorkerSettings(Settings):
    """Run jobs of a data directory beside its server, which then runs none itself (`--no-run-jobs`)."""

    model_config = SettingsConfigDict(cli_prog_name="finetuned worker")

    health_address: Address = "127.0.0.1:8435"
    """Host and port of grpc.health.v1 of this worker."""
    metrics_address: Address = "127.0.0.1:9465"
    """Host and port of this worker's Prometheus metrics over HTTP."""
    worker_name: str = Field(default="worker-1", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Told apart from other workers of the same replica by it; a restarted worker takes back its own jobs."""

    @property
    def owner(self) -> str:
        """Whose leases are this worker's."""
        return f"{self.replica}/{self.worker_name}"


def build_dispatcher(
    settings: Settings,
    owner: str,
    database: Database,
    registry: AdapterRegistry,
    observer: JobObserver,
    resident: Callable[[], ResidentBase] = ResidentBase,
) -> Dispatcher:
    """What claims jobs from the store in the name of `owner` and runs them in processes of their own.

    `resident` tells what a server in this process holds on a GPU now.
    """
    bases = BaseCatalog(settings.data_dir)
    limits = StoredLimits(settings.limits_of, settings.data_dir)
    kept = retention_of(settings)
    datasets = DatasetStore(
        database,
        settings.data_dir,
        data_limits_of(settings),
        settings.import_roots,
        JobStore.uses_dataset,
        limits,
        kept,
        settings.import_urls,
    )
    return Dispatcher(
        DispatcherSettings(
            owner=owner,
            directory=settings.data_dir / "jobs",
            max_running=settings.max_running_jobs,
            lease_seconds=settings.lease_seconds,
            grace_seconds=settings.shutdown_grace_seconds,
            min_free_disk_bytes=settings.min_free_disk_bytes,
            slice_seconds=settings.job_slice_seconds,
        ),
        JobQueue(database),
        Assignments(
            bases=bases,
            datasets=datasets,
            registry=registry,
            limits=TaskLimits(
                threads=settings.job_threads,
                memory_budget_bytes=settings.job_memory_bytes,
                checkpoint_bytes=settings.job_checkpoint_bytes,
                reserved_disk_bytes=settings.min_free_disk_bytes,
                device_budget_bytes=settings.job_device_bytes,
            ),
            device=settings.device,
            resident=resident,
            cache_directory=settings.resolved_cache_dir,
            probe_steps=settings.job_probe_steps,
        ),
        Publisher(registry=registry, bases=bases, max_rank=settings.max_lora_rank),
        observer,
    )


class Worker:
    """A dispatcher with a health port and a metrics page."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Raises StartRefused if a port is taken."""
        self._settings = settings
        self._database = Database(settings.resolved_database_url)
        page = new_registry(version=VERSION, base="", base_digest="")
        observer = JobMetrics(page, settings.max_running_jobs)
        registry = AdapterRegistry(
            self._database,
            settings.data_dir / "adapters",
            StoredLimits(settings.limits_of, settings.data_dir),
            retention_of(settings),
        )
        self._dispatcher = build_dispatcher(settings, settings.owner, self._database, registry, observer)
        watch_store(page, lambda: take_census(self._database))
        watch_data_directory(page, settings.data_dir)
        self._health = HealthServer(settings.health_address)
        try:
            self._http = serve_metrics(page, settings.metrics_address)
        except OSError as error:
            raise StartRefused(
                f"metrics_address {settings.metrics_address} cannot be bound; is another worker running?"
            ) from error

    @property
    def health_port(self) -> int:
        return self._health.port

    @property
    def metrics_port(self) -> int:
        return self._http.server_port

    def start(self) -> None:
        """Begin to take jobs; those that a worker of this name held before are given back at once."""
        self._health.start()
        self._dispatcher.start()
        for name in ("", TRAINING):
            self._health.set(name, serving=True)
        _LOG.info("working", owner=self._settings.owner, data_dir=str(self._settings.data_dir))

    def stop(self) -> None:
        """Have running jobs write a checkpoint and give them back, then close."""
        _LOG.info("stopping", grace_seconds=self._settings.shutdown_grace_seconds)
        self._health.drain()
        self._dispatcher.stop()
        self._http.shutdown()
        self._http.server_close()
        self._health.stop()
        self._database.close()
        _LOG.info("stopped")


async def work(settings: WorkerSettings) -> int:
    """Take jobs until a signal; returns the exit code.

    Raises:
        StartRefused, FinetunedError: what was found does not allow a start.
    """
    logs.configure(settings.log_format, settings.log_level)
    with _named(settings):
        worker = await asyncio.to_thread(Worker, settings)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        worker.start()
        await stop.wait()
        await asyncio.to_thread(worker.stop)
    return 0


@contextmanager
def _named(settings: WorkerSettings) -> Generator[None]:
    """Hold the worker's name: two of one name would take each other's jobs for their own."""
    path = settings.data_dir / f".lock-{settings.owner.replace('/', '-')}"
    if not settings.data_dir.is_dir():
        raise StartRefused(
            f"data_dir {settings.data_dir} does not exist; start the server first, which makes it, or name another"
        )
    try:
        lock = path.open("w")
    except OSError as error:
        raise StartRefused(f"{path} cannot be written: {error.strerror}; choose another data_dir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartRefused(
                f"worker {settings.worker_name} of {settings.data_dir} runs already; stop it, or choose another "
                "worker_name"
            ) from error
        yield
