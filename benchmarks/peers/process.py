"""A peer's process: asked by lines of JSON, stopped (SIGSTOP) while it is not its turn.

An idle engine is not always quiet: vLLM's worker polls, OpenMP threads spin after a parallel region. A
stopped one takes no core from the others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.machine import family
from benchmarks.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Sequences:
    """What is to be generated: a prompt each, an adapter's directory or None each."""

    prompts: Sequence[Prompt]
    adapters: Sequence[Path | None]
    new_tokens: int
    temperature: float = 0.0
    """0 is greedy; only vLLM's worker and ours draw."""
    top_p: float = 1.0

    @property
    def tokens(self) -> int:
        return len(self.prompts) * self.new_tokens


class Generates(Protocol):
    """Ours or a peer: whoever can be asked to generate."""

    def seconds(self, sequences: Sequences) -> float:
        """Generate all of them together; wall-clock seconds."""
        ...


class PeerFailed(Exception):
    """The peer's process ended; the message names its log."""


class Peer:
    """A running peer, asked by one thread. See `running`."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        began = time.perf_counter()
        self._answer()
        self.ready_seconds = time.perf_counter() - began
        self._signal(signal.SIGSTOP)

    def seconds(self, sequences: Sequences) -> float:
        """Generate all of them together; wall-clock seconds as the peer's own process measured them.

        Raises:
            PeerFailed: it ended, or generated another number of tokens.
        """
        drawn = {"temperature": sequences.temperature, "top_p": sequences.top_p}
        rows = [
            {"token_ids": prompt.token_ids, "adapter": None if adapter is None else str(adapter), **drawn}
            for prompt, adapter in zip(sequences.prompts, sequences.adapters, strict=True)
        ]
        answer = self.ask({"rows": rows, "new_tokens": sequences.new_tokens})
        if answer["tokens"] != sequences.tokens:
            raise PeerFailed(f"{self.name} made {answer['tokens']} tokens instead of {sequences.tokens}")
        return float(answer["seconds"])

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Let it go on until it has answered a command of its own kind.

        Raises:
            PeerFailed: it ended.
        """
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone, as its missing answer will tell
            print(json.dumps(command), file=self._process.stdin)
            self._process.stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return family(self._process.pid)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(f"{self.name} ended with code {self._process.wait()}; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    settings: Mapping[str, Any],
    environment: Mapping[str, str],
    log: Path,
) -> Iterator[Peer]:
    """Start a worker in a process group of its own and wait until it can generate; kill it at the end.

    Raises:
        PeerFailed: it ended before it was ready.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env={**os.environ, **environment},
            process_group=0,
        )
    with process:
        try:
            yield Peer(name, process, log)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
