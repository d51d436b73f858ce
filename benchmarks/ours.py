"""Ours: a real server in a process of its own, asked through ServeAdapter over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finetuned import AsyncClient, Client, FinetunedError, GenerateRequest, RawText, Reply

from benchmarks.machine import family
from benchmarks.peers.process import Sequences
from benchmarks.prompts import Prompt
from examples.demo.server import RunningServer, running_server

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ours:
    """A running server and both clients to it. `calls` is for what is not timed, `client` for what is."""

    data_dir: Path
    server: RunningServer
    calls: Client
    client: AsyncClient
    _runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run asyncio code on the loop that `client` belongs to."""
        return self._runner.run(work)

    def seconds(self, sequences: Sequences) -> float:
        """Generate all of them at once, one call each; wall-clock seconds until the last is complete."""
        began = time.perf_counter()
        self.replies(sequences)
        return time.perf_counter() - began

    def replies(self, sequences: Sequences) -> list[Reply]:
        """As `seconds`, but what came back."""
        replies = self.run(self._gather(sequences))
        tokens = sum(reply.usage.completion_tokens for reply in replies)
        if tokens != sequences.tokens:
            raise RuntimeError(f"the server made {tokens} tokens instead of {sequences.tokens}")
        return replies

    async def _gather(self, sequences: Sequences) -> list[Reply]:
        calls = [
            self.client.generate(
                **arguments(prompt, adapter, sequences.new_tokens),
                temperature=sequences.temperature,
                top_p=None if sequences.top_p == 1.0 else sequences.top_p,
            )
            for prompt, adapter in zip(sequences.prompts, sequences.adapters, strict=True)
        ]
        return await asyncio.gather(*calls)

    def batch_seconds(self, sequences: Sequences) -> float:
        """Generate all of them by one BatchServeAdapter; wall-clock seconds."""
        requests = [
            GenerateRequest(**arguments(prompt, adapter, sequences.new_tokens))
            for prompt, adapter in zip(sequences.prompts, sequences.adapters, strict=True)
        ]
        began = time.perf_counter()
        replies = self.run(self.client.generate_many(requests))
        seconds = time.perf_counter() - began
        for reply in replies:
            if isinstance(reply, FinetunedError):
                raise reply
        return seconds

    def seconds_in_calls(self, sequences: Sequences, at_once: int) -> float:
        """Generate all of them, one call each, so many calls at once; wall-clock seconds."""

        async def work() -> None:
            places = asyncio.Semaphore(at_once)

            async def call(prompt: Prompt, adapter: Path | None) -> None:
                async with places:
                    await self.client.generate(**arguments(prompt, adapter, sequences.new_tokens))

            async with asyncio.TaskGroup() as calls:
                for prompt, adapter in zip(sequences.prompts, sequences.adapters, strict=True):
                    calls.create_task(call(prompt, adapter))

        began = time.perf_counter()
        self.run(work())
        return time.perf_counter() - began

    def first_token_seconds(self, prompt: Prompt, adapter: Path | None) -> float:
        """From the call to the first token, nothing else running."""
        return self.seconds(Sequences([prompt], [adapter], 1))

    def add(self, adapters: Iterable[Path]) -> None:
        """Import those that are not in its store yet, under the names of their directories."""
        digest = self.calls.server_info().base.digest
        have = {adapter.name.rsplit("/", 1)[-1] for adapter in self.calls.adapters.list()}
        for path in adapters:
            if path.name not in have:
                self.calls.adapters.import_directory(path, path.name, expected_base_digest=digest)

    def stored(self, adapters: Iterable[Path]) -> list[Path]:
        """The directories of its store that hold them."""
        digests = [self.calls.adapters.version(path.name).digest for path in adapters]
        return [(self.data_dir / "adapters" / digest.removeprefix("sha256:")).resolve() for digest in digests]

    def load(self, adapters: Sequence[Path]) -> None:
        """Bring them to the device."""
        for path in adapters:
            self.calls.adapters.load(path.name)

    def unload(self, adapters: Sequence[Path]) -> None:
        """Leave them on the disk (in its page cache) only."""
        for path in adapters:
            self.calls.adapters.unload(path.name)

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return family(self.server.pid)


def arguments(prompt: Prompt, adapter: Path | None, new_tokens: int) -> dict[str, Any]:
    """Of `client.generate` and `client.stream`."""
    return {
        "prompt": RawText(prompt.text),
        "adapter": None if adapter is None else adapter.name,
        "plain_base": adapter is None,
        "max_tokens": new_tokens,
        "ignore_eos": True,
    }


@contextmanager
def ours(data_dir: Path, *flags: str) -> Iterator[Ours]:
    """Start a server with `flags` of `finetuned serve`, and stop it at the end."""
    with (
        running_server(data_dir, *flags) as server,
        Client(server.endpoint) as calls,
        asyncio.Runner() as runner,
    ):
        client = AsyncClient(server.endpoint)
        yield Ours(data_dir, server, calls, client, runner)
        runner.run(client.close())
