"""The asyncio client; the same verbs as `Client`, awaited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

from finetuned._aio import AsyncTransport
from finetuned._aio_verbs import gathered, paged, replied, reply_streamed, sent, streamed, verb
from finetuned._calls import adapters, bases, datasets, encoding, serving, tenants, tuning
from finetuned._calls import aliases as alias_calls
from finetuned._export import ExportDirectory, LogDirectory
from finetuned._retry import Deadlines, RetryPolicy
from finetuned.settings import settings_of
from finetuned.values.adapters import ExportedAdapter
from finetuned.values.events import JobEvent
from finetuned.values.jobs import ExportedLogs, Job
from finetuned.values.requests import GenerateRequest


@final
@dataclass(frozen=True, slots=True)
class AsyncDatasets:
    """`client.datasets`"""

    transport: AsyncTransport

    upload = sent(datasets.upload)
    import_uri = verb(datasets.import_uri)
    get = verb(datasets.get)
    list = paged(datasets.list_all)
    delete = verb(datasets.delete)


@final
@dataclass(frozen=True, slots=True)
class AsyncJobs:
    """`client.jobs`; jobs are started by `client.train` and `client.quantize`."""

    transport: AsyncTransport

    get = verb(tuning.get)
    list = paged(tuning.list_all)
    events = paged(tuning.events)
    watch = streamed(tuning.watch)
    follow = streamed(tuning.follow)
    pause = verb(tuning.pause)
    resume = verb(tuning.resume)
    cancel = verb(tuning.cancel)
    delete = verb(tuning.delete)
    rerun = verb(tuning.rerun)

    async def tensorboard(self, name: str, directory: str | Path) -> ExportedLogs:
        """As `Jobs.tensorboard`."""
        names = self.transport.names
        with LogDirectory(directory, names.job(name)) as target:
            async for piece in self.transport.stream(tuning.tensorboard(names, name)):
                target.write(piece)
            return target.publish()

    async def wait(
        self,
        name: str,
        *,
        on_event: Callable[[JobEvent], object] | None = None,
        timeout_seconds: float | None = None,
    ) -> Job:
        """As `Jobs.wait`."""
        async for event in self.follow(name, timeout_seconds=timeout_seconds):
            if on_event is not None:
                on_event(event)
            if event.shows_estimate and (job := await self.get(name)).waits_to_begin:
                return job
        return await self.get(name)


@final
@dataclass(frozen=True, slots=True)
class AsyncAdapters:
    """`client.adapters`: adapters, their versions and aliases, and where their weights are."""

    transport: AsyncTransport

    get = verb(adapters.get)
    list = paged(adapters.list_all)
    delete = verb(adapters.delete)
    version = verb(adapters.version)
    versions = paged(adapters.versions)
    delete_version = verb(adapters.delete_version)
    import_directory = sent(adapters.import_directory)
    load = verb(adapters.load)
    unload = verb(adapters.unload)
    resident = paged(adapters.resident)
    alias = verb(alias_calls.alias)
    aliases = paged(alias_calls.aliases)
    set_alias = verb(alias_calls.set_alias)
    rollback = verb(alias_calls.rollback)
    delete_alias = verb(alias_calls.delete_alias)

    async def export(self, name: str, directory: str | Path) -> ExportedAdapter:
        """As `Adapters.export`."""
        with ExportDirectory(directory) as target:
            async for chunk in self.transport.stream(adapters.export(self.transport.names, name)):
                target.write(chunk)
            return target.publish()


@final
@dataclass(frozen=True, slots=True)
class AsyncBases:
    """`client.bases`"""

    transport: AsyncTransport

    get = verb(bases.get)
    list = paged(bases.list_all)
    delete = verb(bases.delete)


@final
class AsyncClient:
    """A connection to a fine-tuning service, for asyncio; the arguments are those of `Client`.

        async with AsyncClient() as client:
            reply = await client.generate("...", adapter="mine")
            async for dataset in client.datasets.list():
                ...

    It belongs to the event loop of its first call.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        tenant: str | None = None,
        api_key: str | None = None,
        ca: str | Path | None = None,
        deadlines: Deadlines | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        settings = settings_of(endpoint=endpoint, tenant=tenant, api_key=api_key, ca=ca)
        self._settle(AsyncTransport.open(settings, deadlines or Deadlines(), retry or RetryPolicy()))

    def _settle(self, transport: AsyncTransport) -> None:
        self.transport: AsyncTransport = transport
        self.datasets: AsyncDatasets = AsyncDatasets(transport)
        self.jobs: AsyncJobs = AsyncJobs(transport)
        self.adapters: AsyncAdapters = AsyncAdapters(transport)
        self.bases: AsyncBases = AsyncBases(transport)

    train = verb(tuning.train)
    quantize = verb(tuning.quantize)
    generate = replied(GenerateRequest)
    stream = reply_streamed(GenerateRequest)
    generate_many = verb(serving.serve_many)
    embed = gathered(encoding.embed)
    classify = gathered(encoding.classify)
    tag_tokens = gathered(encoding.tag_tokens)
    server_info = verb(serving.server_info)
    usage = verb(tenants.usage)
    wait_until_ready = verb(serving.wait_until_ready)

    def within(self, seconds: float) -> AsyncClient:
        """This client, with another deadline for every call."""
        view = object.__new__(AsyncClient)
        view._settle(self.transport.within(seconds))
        return view

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self.transport.channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
