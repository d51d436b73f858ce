"""Adapters that come and go: a cold one's first token, loads beside running streams, more than there is room for."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.adapters import device_bytes, write_adapter
from benchmarks.bench import NEW_TOKENS, PROMPT_TOKENS, RANK, Bench
from benchmarks.figures import Figure, compared, single, take_turns
from benchmarks.ours import Ours, arguments
from benchmarks.peers import start
from benchmarks.peers.process import Peer, Sequences
from benchmarks.streams import Observed, closed_loop, closed_loop_for

COLD_PER_RUN = 8
LOADS = 100
LONG_REPLY_TOKENS = 512
"""Streams run while adapters load, and do not begin: a prompt in the batch takes longer than any load."""
STREAMS = 8
WINDOW_SECONDS = 15.0


def cold(bench: Bench) -> Iterator[Figure]:
    """Time to first token with an adapter that is only on disk (in page cache), less that with it loaded."""
    per_run = 2 if bench.quick else COLD_PER_RUN
    # A peer that cannot unload needs new ones in every run, the warm-up included.
    fresh = bench.adapters(per_run * (bench.runs + 1) + 1)
    with (
        bench.server() as ours,
        bench.started(
            vllm=start.vllm(bench.base, sequences=8, context_tokens=128, max_loras=8),
            peft=start.peft(bench.base),
        ) as peers,
    ):
        ours.add(fresh)
        for who in peers.values():
            who.seconds(_first_token(bench, fresh[-1]))

        def extra_ms(who: Ours | Peer, chosen: Sequence[Path]) -> float:
            if isinstance(who, Ours):
                who.unload(chosen)
            for path in chosen:
                (path / "adapter_model.safetensors").read_bytes()
            first, again = ([who.seconds(_first_token(bench, path)) for path in chosen] for _ in range(2))
            return 1000 * (statistics.median(first) - statistics.median(again))

        def measuring(who: Ours | Peer) -> Callable[[], float]:
            left = iter(fresh)
            return lambda: extra_ms(who, list(itertools.islice(left, per_run)))

        found = take_turns(
            bench.runs, {"": measuring(ours), **{name: measuring(peer) for name, peer in peers.items()}}
        )
        yield single("cold_adapter_extra_ttft_ms", "ms", found[""])
        for name in peers:
            yield compared(f"cold_adapter_extra_ttft_vs_{name}", "ms", found[""], name, found[name])


def loads(bench: Bench) -> Iterator[Figure]:
    """The p99 inter-token time of 8 streams while 100 cold adapters load, beside that without."""
    resident = bench.adapters(STREAMS)
    others = bench.adapters(STREAMS + (10 if bench.quick else LOADS))[STREAMS:]
    room = (len(resident) + len(others) + 8) * device_bytes(bench.base, RANK)
    with bench.server("--adapter-device-bytes", str(room)) as ours:
        ours.add(resident + others)
        ours.load(resident)
        draw = drawing(bench, resident, LONG_REPLY_TOKENS)

        async def loading() -> Observed:
            stop = asyncio.Event()
            streams = asyncio.create_task(closed_loop(ours.client, STREAMS, draw, stop))
            for path in others:
                await ours.client.adapters.load(path.name)
            stop.set()
            return await streams

        def disturbed() -> float:
            ours.unload(others)
            return ours.run(loading()).gap_ms(0.99)

        def undisturbed() -> float:
            return ours.run(closed_loop_for(ours.client, STREAMS, draw, WINDOW_SECONDS)).gap_ms(0.99)

        yield from bench.beside(
            "p99_inter_token_100_loads", "ms", disturbed, {}, own={"undisturbed": undisturbed}
        )


def zipf(bench: Bench) -> Iterator[Figure]:
    """Zipf traffic over 1,000 adapters with room for 32 on the device, beside room for all it asks for."""
    count, room, requests = (64, 8, 48) if bench.quick else (1000, 32, 192)
    names = [Path(f"zipf-{i:04d}") for i in range(count)]
    one = device_bytes(bench.base, RANK)
    weights = [1 / (i + 1) for i in range(count)]
    traffic = [
        random.Random(turn).choices(names, weights=weights, k=requests) for turn in range(bench.runs + 1)
    ]
    asked = sorted({name for turn in traffic for name in turn})
    with bench.server() as server:
        server.add(_passing(bench, names))
    with (
        bench.server("--adapter-device-bytes", str(room * one)) as tight,
        bench.second_server("--adapter-device-bytes", str((len(asked) + 8) * one)) as ample,
    ):
        ample.load(asked)

        def rate(server: Ours, turn: list[Path]) -> float:
            left = list(turn)

            def draw() -> dict[str, Any]:
                return arguments(bench.prompts.draw(PROMPT_TOKENS), left.pop(), NEW_TOKENS)

            return server.run(closed_loop(server.client, 32, draw, asyncio.Event())).tokens_per_second

        first, second = iter(traffic), iter(traffic)
        yield from bench.beside(
            "zipf_1000_on_32",
            "tokens/s",
            lambda: rate(tight, next(first)),
            {},
            own={"resident": lambda: rate(ample, next(second))},
        )


def drawing(
    bench: Bench, adapters: Sequence[Path], new_tokens: int = NEW_TOKENS
) -> Callable[[], dict[str, Any]]:
    """Requests without end, on each adapter in turn."""
    following = itertools.cycle(adapters)
    return lambda: arguments(bench.prompts.draw(PROMPT_TOKENS), next(following), new_tokens)


def _first_token(bench: Bench, adapter: Path) -> Sequences:
    return bench.sequences(1, [adapter], new_tokens=1)


def _passing(bench: Bench, names: Sequence[Path]) -> Iterator[Path]:
    """Each is made when it is asked for and removed when the next one is: a thousand are 10 GB, and the
    server keeps its own copy.
    """
    for seed, name in enumerate(names):
        with tempfile.TemporaryDirectory() as directory:
            yield write_adapter(Path(directory) / name.name, bench.base, RANK, seed=10**6 + seed)
