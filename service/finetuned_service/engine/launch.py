"""Starts the engine process and holds both ends of talking to it. Torch-free."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Command, Event
from finetuned_service.engine.wire import encode, receive_async


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A running engine process and the socket to it."""

    process: asyncio.subprocess.Process
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter

    @classmethod
    async def start(cls, config: EngineConfig) -> Self:
        """Start it; its first message will be Ready or StartFailed."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "finetuned_service.engine",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **_environment(config)},
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        writer.write(encode(config))
        return cls(process, reader, writer)

    def send(self, commands: Sequence[Command]) -> None:
        """Commands in one frame; lost if the process is gone, as `receive` will tell."""
        self._writer.write(encode(tuple(commands)))

    async def receive(self) -> Sequence[Event]:
        """The events of one step.

        Raises:
            EOFError: if the process is gone.
        """
        events: Sequence[Event] = await receive_async(self._reader)
        return events

    async def wait(self, timeout_seconds: float) -> int:
        """Its exit status; after `timeout_seconds` it is killed."""
        try:
            await asyncio.wait_for(self.process.wait(), timeout_seconds)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
        self._writer.close()
        return await self.process.wait()


def _environment(config: EngineConfig) -> dict[str, str]:
    """What libgomp and the libraries read when they are loaded.

    Passive waiting: an OpenMP thread that spins at a barrier takes the core from a job that trains
    beside the engine, and on a machine that is shared from the engine itself.
    """
    return {
        "OMP_NUM_THREADS": str(config.threads),
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
