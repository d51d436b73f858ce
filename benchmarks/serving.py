"""Serving beside PEFT: tokens/s on the base and with adapters mixed, adapter load time, memory by use.

Ours goes through ServeAdapter over gRPC to a real server; PEFT runs in a process of its own with its
fastest public interface for mixed batches (`generate(adapter_names=...)`). Both take their turn on the
same cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from finetuned import Client, RawText

from benchmarks.harness import Figure, alternated, compared, publish
from examples.demo.server import running_server

ADAPTERS = 8
RANK = 16
NEW_TOKENS = 64
SEQUENCES = (1, 8, 32)
PROMPT = "The river was higher than anyone in the village could remember, and the bridge"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=Path("build/bench-data"))
    options = parser.parse_args()
    with running_server(options.data_dir) as server, Client(server.endpoint) as client:
        base_directory = options.data_dir / client.server_info().base.name
        with peft_worker(base_directory, options.data_dir / "bench-adapters") as peft:
            names = import_adapters(client, options.data_dir / "bench-adapters")
            figures = throughput(client, peft, names, options.runs)
            figures.append(load_time(client, peft, names[0], options.runs))
            figures += [
                Figure(f"resident_{use.use}_bytes", use.bytes, "bytes") for use in client.server_info().memory
            ]
    title = f"SmolLM2-135M bf16, LoRA rank {RANK} on all seven projections, {NEW_TOKENS} new tokens"
    publish("serving_first", title, "PEFT", figures)


def throughput(client: Client, peft: Peft, names: list[str], runs: int) -> list[Figure]:
    figures: list[Figure] = []
    for mixed in (False, True):
        for sequences in SEQUENCES:
            ours, peers = alternated(
                runs,
                lambda s=sequences, m=mixed: tokens_per_second(client, names, s, mixed=m),
                lambda s=sequences, m=mixed: s * NEW_TOKENS / peft.ask(sequences=s, mixed=m),
            )
            name = f"{'mixed' if mixed else 'base'}_{sequences}_vs_peft"
            figures.append(compared(name, "tokens/s", ours, peers))
    return figures


def tokens_per_second(client: Client, names: list[str], sequences: int, *, mixed: bool) -> float:
    def one(index: int) -> int:
        adapter = names[index % len(names)] if mixed else None
        reply = client.generate(
            RawText(PROMPT),
            adapter=adapter,
            plain_base=adapter is None,
            max_tokens=NEW_TOKENS,
            ignore_eos=True,
        )
        return reply.usage.completion_tokens

    began = time.perf_counter()
    with ThreadPoolExecutor(sequences) as pool:
        tokens = sum(pool.map(one, range(sequences)))
    return tokens / (time.perf_counter() - began)


def load_time(client: Client, peft: Peft, name: str, runs: int) -> Figure:
    def ours() -> float:
        client.adapters.unload(name)
        began = time.perf_counter()
        client.adapters.load(name)
        return 1000 * (time.perf_counter() - began)

    found, peers = alternated(runs, ours, lambda: 1000 * peft.ask(load=True))
    return compared("adapter_load_ms", "ms", found, peers)


def import_adapters(client: Client, directory: Path) -> list[str]:
    digest = client.server_info().base.digest
    names: list[str] = []
    have = {adapter.name.rsplit("/", 1)[-1] for adapter in client.adapters.list()}
    for path in sorted(directory.iterdir()):
        if path.name not in have:
            client.adapters.import_directory(path, path.name, expected_base_digest=digest)
        names.append(path.name)
    return names


class Peft:
    """The peer, asked by lines of JSON."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **command: object) -> float:
        """Run a command in the worker; returns its seconds."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the peer has no pipes")
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer ended; its messages are above")
        return float(line)


@contextmanager
def peft_worker(base_directory: Path, adapters: Path) -> Iterator[Peft]:
    """A process with transformers and PEFT; it makes the adapters that both serve."""
    command = [sys.executable, "-m", "benchmarks.peft_worker", str(base_directory), str(adapters)]
    command += [str(ADAPTERS), str(RANK), str(NEW_TOKENS), PROMPT]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        worker = Peft(process)
        worker.ask()
        yield worker
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
