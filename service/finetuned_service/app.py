"""Settings → objects → serve: the only composition root.

Start: data directory, base, store, engine, servers; SERVING once the engine has the base in memory.
Stop (SIGTERM, SIGINT): health says so, no new calls, running ones and jobs get the grace period (jobs
write a checkpoint and wait in the store), then the engine goes.
"""

from __future__ import annotations

import asyncio
import signal

from finetuned_service import VERSION
from finetuned_service.adapters.files import BaseGeometry
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.adapters.transfer import AdapterImports
from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.bases.inputs import base_inputs
from finetuned_service.bases.manifest import BaseManifest, read_config
from finetuned_service.bases.provide import provide_base
from finetuned_service.datasets.limits import data_limits_of
from finetuned_service.datasets.store import DatasetStore
from finetuned_service.engine.client import EngineClient
from finetuned_service.engine.config import READY_KV_TOKENS, EngineConfig
from finetuned_service.engine.messages import Residency, Snapshot
from finetuned_service.errors import FinetunedError, StartRefused
from finetuned_service.jobs.assignment import ResidentBase
from finetuned_service.jobs.estimate import NO_BUDGET, Budget
from finetuned_service.jobs.event_files import EventFiles
from finetuned_service.jobs.store import JobStore
from finetuned_service.jobs.submit import Submission
from finetuned_service.metrics import JobMetrics, ServerMetrics, SweepMetrics, new_registry, watch_replica
from finetuned_service.metrics import serve as serve_metrics
from finetuned_service.names import BaseName
from finetuned_service.retention.collect import Collector
from finetuned_service.retention.garbage import Kind
from finetuned_service.retention.policy import retention_of
from finetuned_service.retention.sweeper import Sweeper
from finetuned_service.rpc.adapters import AdapterServicer
from finetuned_service.rpc.bases import BaseServicer
from finetuned_service.rpc.datasets import DatasetServicer
from finetuned_service.rpc.door import Door
from finetuned_service.rpc.health import SERVING, TRAINING, HealthServer
from finetuned_service.rpc.server import Servicers, build_server
from finetuned_service.rpc.serving import ServerLimits, ServingServicer
from finetuned_service.rpc.tenants import TenantServicer
from finetuned_service.rpc.tuning import TuningServicer
from finetuned_service.serving.encode import Encoding
from finetuned_service.serving.inputs import Inputs
from finetuned_service.serving.pin_shares import PinShares
from finetuned_service.serving.residents import Residents
from finetuned_service.serving.service import Serving
from finetuned_service.settings import Settings
from finetuned_service.storage.database import Database
from finetuned_service.storage.directory import holding, refuse_full_disk
from finetuned_service.telemetry import logs
from finetuned_service.tenancy.stored import StoredLimits
from finetuned_service.tenancy.traffic import Traffic
from finetuned_service.tenancy.usage import Usage
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.training.preview import RowPreview
from finetuned_service.vocabulary import Family
from finetuned_service.worker import build_dispatcher

_LOG = logs.logger("server")
_SNAPSHOT_SECONDS = 1.0
_ENGINE_END_SECONDS = 3.0
_SILENT_SECONDS = 15.0
"""An engine answers between two steps; one that is silent for so long hangs."""


async def serve(settings: Settings) -> int:
    """Serve until a signal; returns the exit code.

    Raises:
        StartRefused, FinetunedError: what was found does not allow a start.
    """
    logs.configure(settings.log_format, settings.log_level)
    with holding(settings.data_dir):
        server = await Server.build(settings)
        return await server.run()


class Server:
    """Everything that one replica runs."""

    def __init__(
        self,
        settings: Settings,
        base: BaseManifest,
        database: Database,
        engine: EngineClient,
        door: Door,
    ) -> None:
        self._settings = settings
        self._base = base
        self._database = database
        self.engine = engine
        self._lends = engine.ready is not None and engine.ready.lender is not None
        page = new_registry(version=VERSION, base=base.name, base_digest=base.digest)
        metrics = ServerMetrics(page)
        job_metrics = JobMetrics(page, settings.max_running_jobs if settings.run_jobs else 0)
        self._job_processes = job_metrics.process_ids
        self._snapshot: Snapshot | None = None
        self._stop = asyncio.Event()
        self._health = HealthServer(settings.health_address)
        kept = retention_of(settings)
        tenant_limits = StoredLimits(settings.limits_of, settings.data_dir)
        self._jobs = JobStore(database, tenant_limits, kept, settings.data_dir / "jobs")
        bases = BaseCatalog(settings.data_dir)
        name = BaseName.parse(base.name)
        directory = bases.path(name)
        registry = AdapterRegistry(database, settings.data_dir / "adapters", tenant_limits, kept)
        self._registry = registry
        (settings.data_dir / "adapters").mkdir(exist_ok=True)
        datasets = DatasetStore(
            database,
            settings.data_dir,
            data_limits_of(settings),
            settings.import_roots,
            JobStore.uses_dataset,
            tenant_limits,
            kept,
            settings.import_urls,
        )
        pooling, image = base_inputs(read_config(directory))
        generates = base.family is Family.DECODER
        tokenizer = None if image else BaseTokenizer.load(directory, generates=generates)
        adapter_bytes = {
            Residency.HOST: settings.adapter_host_bytes,
            Residency.DEVICE: settings.adapter_device_bytes,
        }
        shares = PinShares(adapter_bytes, settings.max_tenant_pin_share)
        self._residents = Residents(engine, registry, base, shares)
        engine.on_pin_lost(self._residents.holders.lose_pins)
        serving = Serving(
            engine=engine,
            registry=registry,
            tokenizer=tokenizer,
            base=base,
            context_tokens=min(base.context_tokens, settings.kv_cache_tokens),
            replica=settings.replica,
            metrics=metrics,
            residents=self._residents,
        )
        encoding = Encoding(serving, Inputs(tokenizer, image, serving.context_tokens), pooling)
        submission = Submission(
            store=self._jobs,
            datasets=datasets,
            bases=bases,
            resident_base=name,
            report=RowPreview(bases),
            max_rank=settings.max_lora_rank,
            adapter_room_bytes=min(settings.adapter_host_bytes, settings.adapter_device_bytes),
            registry=registry,
            jobs_directory=settings.data_dir / "jobs",
            job_budget=Budget(
                settings.job_memory_bytes, settings.job_device_bytes, on_device=engine.device == "cuda"
            )
            if settings.run_jobs
            else NO_BUDGET,
        )
        imports = AdapterImports(
            registry=registry,
            geometry=BaseGeometry.of_directory(directory),
            staging_directory=settings.data_dir / "staging",
            max_rank=settings.max_lora_rank,
            max_bytes=settings.max_upload_bytes,
        )
        limits = ServerLimits(
            max_running_sequences=settings.max_running_sequences,
            max_queued_sequences=settings.max_queued_sequences,
            max_upload_bytes=settings.max_upload_bytes,
            max_line_bytes=settings.max_line_bytes,
            max_lora_rank=settings.max_lora_rank,
        )
        traffic = Traffic(settings.limits_of)
        servicers = Servicers(
            tuning=TuningServicer(
                self._jobs, submission, EventFiles(self._jobs, settings.data_dir / "jobs"), self._stop
            ),
            serving=ServingServicer(serving, encoding, limits),
            datasets=DatasetServicer(datasets),
            adapters=AdapterServicer(registry, serving, imports),
            bases=BaseServicer(bases, self._jobs, base.name),
            tenants=TenantServicer(Usage(database, tenant_limits, traffic)),
        )
        self._grpc, self.port = build_server(servicers, metrics, traffic, door, settings.listen_address)
        self._dispatcher = build_dispatcher(
            settings,
            settings.replica,
            database,
            registry,
            job_metrics,
            self._resident,
        )
        self._sweeper = Sweeper(
            Collector(database, settings.data_dir, kept),
            settings.sweep_interval_seconds,
            self._used_adapters,
            self._forget_adapter,
            SweepMetrics(page, (kind.name.lower() for kind in Kind)),
        )
        watch_replica(page, settings, database, engine, lambda: self._snapshot, job_metrics.process_ids)
        try:
            self._http = serve_metrics(page, settings.metrics_address)
        except OSError as error:
            raise StartRefused(
                f"metrics_address {settings.metrics_address} cannot be bound; is another server running?"
            ) from error

    @property
    def health_port(self) -> int:
        return self._health.port

    @property
    def metrics_port(self) -> int:
        return self._http.server_port

    @classmethod
    async def build(cls, settings: Settings) -> Server:
        """Put everything in place; the engine reads the base meanwhile."""
        refuse_full_disk(settings.data_dir, settings.min_free_disk_bytes)
        door = Door.of_settings(settings)
        # Before the base: a store of a newer build is refused before a base is fetched for it.
        database = Database(settings.resolved_database_url)
        try:
            base, directory = await asyncio.to_thread(
                provide_base,
                settings.base,
                settings.data_dir,
                source=settings.base_source,
                digest=settings.base_digest,
                verify=settings.verify_base,
            )
        except BaseException:
            database.close()
            raise
        engine = await EngineClient.start(
            EngineConfig(
                base_directory=str(directory),
                threads=settings.threads,
                device=settings.device,
                compute=settings.compute,
                cache_directory=settings.resolved_cache_dir,
                max_running_sequences=settings.max_running_sequences,
                max_queued_sequences=settings.max_queued_sequences,
                max_tenant_queue_share=settings.max_tenant_queue_share,
                max_prefill_tokens=settings.max_prefill_tokens or 0,
                kv_capacity_tokens=settings.kv_cache_tokens,
                ready_kv_tokens=READY_KV_TOKENS,
                device_budget_bytes=settings.adapter_device_bytes,
                host_budget_bytes=settings.adapter_host_bytes,
                verify_base=settings.verify_base,
                log_format=settings.log_format,
                log_level=settings.log_level,
            )
        )
        try:
            return cls(settings, base, database, engine, door)
        except BaseException:
            await engine.shutdown(0.0)
            raise

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        await self.start()
        _LOG.info(
            "serving",
            address=self._settings.listen_address,
            health=self._settings.health_address,
            metrics=f"http://{self._settings.metrics_address}/metrics",
            base=self._base.name,
            base_digest=self._base.digest,
        )
        await self._stop.wait()
        await self.stop()
        return 0

    def request_stop(self) -> None:
        """Make `run` end; safe to call twice."""
        self._stop.set()

    async def start(self) -> None:
        """Open the doors."""
        self._health.start()
        await self._grpc.start()
        if self._settings.run_jobs:
            self._dispatcher.start()
            self._health.set(TRAINING, serving=True)
        self._loop = asyncio.get_running_loop()
        self._watcher = asyncio.create_task(self._watch_engine())
        self._sweeper.start()

    async def stop(self) -> None:
        """Close the doors: calls and jobs first, then the engine, then the rest."""
        grace = self._settings.shutdown_grace_seconds
        _LOG.info("stopping", grace_seconds=grace)
        self._stop.set()
        self._health.drain()
        # The last seconds of the grace are the engine's own end.
        calls = asyncio.create_task(self._grpc.stop(max(0.0, grace - _ENGINE_END_SECONDS)))
        if self._settings.run_jobs:
            await asyncio.to_thread(self._dispatcher.stop)
        await calls
        await asyncio.to_thread(self._sweeper.stop)
        self._watcher.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)
        await self.engine.shutdown(1.0)
        await asyncio.to_thread(self._http.shutdown)
        self._http.server_close()
        await asyncio.to_thread(self._health.stop)
        self._database.close()
        _LOG.info("stopped")

    def _resident(self) -> ResidentBase:
        """Called by the dispatcher's threads."""
        ready = self.engine.ready
        if ready is None:
            return ResidentBase(returning=self._lends)
        return ResidentBase(ready.base_digest, ready.shared, ready.lender)

    def _used_adapters(self) -> list[str] | None:
        """Digests of adapters that calls use or that are pinned; None while the engine does not answer. One that was started
        anew has not got all of them yet.
        """
        if self._snapshot is None:
            return None
        in_memory = (adapter.digest for adapter in self._snapshot.adapters if adapter.pinned)
        return [*self._registry.readers.digests(), *self._residents.holders.wanted(), *in_memory]

    def _forget_adapter(self, digest: str) -> None:
        """Free the memory of weights that are gone from the store; called by the sweeper's thread."""
        asyncio.run_coroutine_threadsafe(self._residents.forget_unnamed([digest]), self._loop)

    async def _watch_engine(self) -> None:
        """Keep the last snapshot for metrics, and the health of serving true."""
        while True:
            # Told again and again: the engine may be a new one. On a GPU a job takes no processor from it.
            pauses = self._job_processes() and self.engine.device == "cpu"
            self.engine.leave_time(self._settings.job_share if pauses else 0.0)
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation that comes as the answer does, and `stop`
                # would wait for this task forever.
                async with asyncio.timeout(_SILENT_SECONDS):
                    self._snapshot = await self.engine.inspect()
            except (FinetunedError, TimeoutError):
                self._snapshot = None
            for name in ("", SERVING):
                self._health.set(name, serving=self._snapshot is not None)
            await asyncio.sleep(_SNAPSHOT_SECONDS)
