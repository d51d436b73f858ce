"""What a server costs before its first token: the time to be ready, and memory."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks.bench import CONTEXT_TOKENS, Bench
from benchmarks.figures import Figure, compared, single
from benchmarks.machine import resident_bytes
from benchmarks.ours import ours
from benchmarks.peers import start as peers
from benchmarks.peers.process import Peer

MB = 1e6


def start(bench: Bench) -> Iterator[Figure]:
    """From the start of the process until it answers: with what it compiled kept, and for the first time."""
    with tempfile.TemporaryDirectory() as fresh, _compile_cache(Path(fresh) / "compiled"):
        began = time.perf_counter()
        with ours(Path(fresh) / "data"):
            first = time.perf_counter() - began
    ready: list[float] = []
    theirs: list[float] = []
    replies: list[float] = []
    with bench.server() as server:
        server.seconds(bench.sequences(8))
    for _ in range(bench.runs):
        began = time.perf_counter()
        with bench.server() as server:
            ready.append(time.perf_counter() - began)
            replies.append(server.first_token_seconds(bench.prompts.draw(16), None))
        with bench.started(
            vllm=peers.vllm(bench.base, sequences=32, context_tokens=CONTEXT_TOKENS)
        ) as running:
            theirs += [peer.ready_seconds for peer in running.values()]
    yield single("ready_after_start_seconds", "s", ready)
    if len(theirs) == bench.runs:
        yield compared("ready_after_start_vs_vllm", "s", ready, "vllm", theirs)
    yield single("first_ever_start_seconds", "s", [first], note="converts the packaged base, compiles")
    yield single("first_reply_after_start_ttft_ms", "ms", [1000 * seconds for seconds in replies])


@contextmanager
def _compile_cache(directory: Path) -> Iterator[None]:
    """Where PyTorch keeps what it compiles, for processes that are started meanwhile."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(directory)
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def memory(bench: Bench) -> Iterator[Figure]:
    """Memory while 32 sequences on 8 adapters have run, each server alone: pages are shared with nobody."""
    adapters = bench.adapters(8)
    work = bench.sequences(32, adapters)
    with bench.server() as server:
        server.add(adapters)
        server.seconds(work)
        front, *rest = server.pids
        by_process = {"server": resident_bytes([front]), "engine": resident_bytes(rest)}
        stated = {use.use: use.bytes for use in server.calls.server_info().memory}
    for name, size in by_process.items():
        yield single(f"memory_{name}_mb", "MB", [size / MB], note="PSS")
    for use, size in stated.items():
        yield single(f"memory_stated_{use}_mb", "MB", [size / MB], note="as GetServerInfo tells it")
    total = sum(by_process.values())
    beyond = (total - sum(stated.values())) / MB
    yield single(
        "memory_beyond_stated_mb", "MB", [beyond], note="libraries, buffers, packed copies; less untouched KV"
    )
    sizes = {"sequences": 32, "context_tokens": CONTEXT_TOKENS}
    others: dict[str, Callable[[], AbstractContextManager[Peer]]] = {
        "vllm": lambda: peers.vllm(bench.base, max_loras=8, **sizes),
        "peft": lambda: peers.peft(bench.base),
        "llamacpp": lambda: peers.llamacpp(bench.base, adapters=adapters, **sizes),
    }
    for name, starting in others.items():
        with bench.started(**{name: starting()}) as running:
            for peer in running.values():
                peer.seconds(work)
                theirs = resident_bytes(peer.pids)
                yield compared(f"memory_vs_{name}", "MB", [total / MB], name, [theirs / MB])
