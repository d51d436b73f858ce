"""The blocking client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

from finetuned._calls import adapters, bases, datasets, encoding, serving, tenants, tuning
from finetuned._calls import aliases as alias_calls
from finetuned._export import ExportDirectory, LogDirectory
from finetuned._retry import Deadlines, RetryPolicy
from finetuned._transport import Transport
from finetuned._verbs import gathered, paged, replied, reply_streamed, sent, streamed, verb
from finetuned.settings import settings_of
from finetuned.values.adapters import ExportedAdapter
from finetuned.values.events import JobEvent
from finetuned.values.jobs import ExportedLogs, Job
from finetuned.values.requests import GenerateRequest


@final
@dataclass(frozen=True, slots=True)
class Datasets:
    """`client.datasets`"""

    transport: Transport

    upload = sent(datasets.upload)
    import_uri = verb(datasets.import_uri)
    get = verb(datasets.get)
    list = paged(datasets.list_all)
    delete = verb(datasets.delete)


@final
@dataclass(frozen=True, slots=True)
class Jobs:
    """`client.jobs`; jobs are started by `client.train` and `client.quantize`."""

    transport: Transport

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

    def tensorboard(self, name: str, directory: str | Path) -> ExportedLogs:
        """Write a job's figures to a directory of its own under `directory`, for `tensorboard --logdir`: loss, learning
        rate and speed at each step, held-out figures. Again, it brings what was written since.

        Args:
            name: a TrainJob; it may still run.
            directory: of jobs in one, TensorBoard shows the curves beside each other.

        Raises:
            NotFound: there is no job of this name.
            JobStateConflict: it has written none, for it has not begun to train.
            InvalidField: it is a Quantize run.
        """
        names = self.transport.names
        with LogDirectory(directory, names.job(name)) as target:
            for piece in self.transport.stream(tuning.tensorboard(names, name)):
                target.write(piece)
            return target.publish()

    def wait(
        self,
        name: str,
        *,
        on_event: Callable[[JobEvent], object] | None = None,
        timeout_seconds: float | None = None,
    ) -> Job:
        """Wait until a job has reached its final state; `job.check()` raises if it did not succeed. A job that has shown
        what it will take (`pause_after_estimate`) is returned, too: it waits itself, for `resume`.

        Args:
            name: the job.
            on_event: is called with every event, as it happens.
            timeout_seconds: without it, this waits as long as the job takes.

        Raises:
            NotFound: there is no job of this name.
            DeadlineExceeded: timeout_seconds were over; the job goes on.
        """
        for event in self.follow(name, timeout_seconds=timeout_seconds):
            if on_event is not None:
                on_event(event)
            if event.shows_estimate and (job := self.get(name)).waits_to_begin:
                return job
        return self.get(name)


@final
@dataclass(frozen=True, slots=True)
class Adapters:
    """`client.adapters`: adapters, their versions and aliases, and where their weights are."""

    transport: Transport

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

    def export(self, name: str, directory: str | Path) -> ExportedAdapter:
        """Write a version's files in PEFT's layout to a new or empty directory.

        Raises:
            NotFound: there is no such version or alias.
            AlreadyExists: the directory is not empty.
        """
        with ExportDirectory(directory) as target:
            for chunk in self.transport.stream(adapters.export(self.transport.names, name)):
                target.write(chunk)
            return target.publish()


@final
@dataclass(frozen=True, slots=True)
class Bases:
    """`client.bases`"""

    transport: Transport

    get = verb(bases.get)
    list = paged(bases.list_all)
    delete = verb(bases.delete)


@final
class Client:
    """A connection to a fine-tuning service.

        with Client() as client:
            client.datasets.upload("rows.jsonl")
            job = client.train(dataset="rows", adapter="mine")
            client.jobs.wait(job.name).check()
            print(client.generate("...", adapter="mine").text)

    Nothing is sent before the first call. Safe to use from several threads.

    Args:
        endpoint: `host:port` or `https://host:port`; without it FINETUNED_ENDPOINT, else localhost:8433.
        tenant: whose resources short names mean; without it FINETUNED_TENANT, else "default".
        api_key: without it FINETUNED_API_KEY.
        ca: PEM file that turns TLS on; without it FINETUNED_CA.
        deadlines: how long calls may take, by kind; `within` sets them for some calls.
        retry: how often and how soon calls are tried again.
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
        self._settle(Transport.open(settings, deadlines or Deadlines(), retry or RetryPolicy()))

    def _settle(self, transport: Transport) -> None:
        self.transport: Transport = transport
        self.datasets: Datasets = Datasets(transport)
        self.jobs: Jobs = Jobs(transport)
        self.adapters: Adapters = Adapters(transport)
        self.bases: Bases = Bases(transport)

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

    def within(self, seconds: float) -> Client:
        """This client, with another deadline for every call: `client.within(2).server_info()`."""
        view = object.__new__(Client)
        view._settle(self.transport.within(seconds))
        return view

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self.transport.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
