"""What a step costs beside what it must cost, and what gRPC costs beside the engine alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.adapters import device_bytes
from benchmarks.bench import NEW_TOKENS, PROMPT_TOKENS, RANK, Bench
from benchmarks.figures import Figure
from benchmarks.groups.throughput import step_ms
from benchmarks.machine import read_bandwidth
from benchmarks.peers import start

BYTES_PER_VALUE = 2


def floor(bench: Bench) -> Iterator[Figure]:
    """A decode step beside the time to read what it needs once: base, its adapters, live keys and values."""
    adapters = bench.adapters(8)
    with bench.server() as ours:
        ours.add(adapters)
        for name, count, chosen in (("base_1", 1, []), ("base_8", 8, []), ("mixed_8", 8, adapters)):
            needed = _step_bytes(bench.base, count, chosen)
            yield from bench.beside(
                f"decode_step_{name}",
                "ms",
                lambda count=count, chosen=chosen: step_ms(ours, bench.sequences(count, chosen)),
                {},
                own={"floor": lambda needed=needed: 1000 * needed / read_bandwidth()},
            )


def transport(bench: Bench) -> Iterator[Figure]:
    """32 streams on 8 adapters through gRPC, beside the engine called in the process that asks."""
    adapters = bench.adapters(8)
    with bench.server() as ours, start.engine(bench.base, sequences=32) as engine:
        ours.add(adapters)
        yield from bench.beside(
            "grpc",
            "tokens/s",
            bench.rate(ours, 32, adapters),
            {},
            own={"engine_32": bench.rate(engine, 32, ours.stored(adapters))},
        )


def _step_bytes(base: Path, sequences: int, adapters: Sequence[Path]) -> float:
    """Bytes of one step in the middle of a reply."""
    config = json.loads((base / "config.json").read_text())
    head = config["hidden_size"] // config["num_attention_heads"]
    token = 2 * BYTES_PER_VALUE * config["num_hidden_layers"] * config["num_key_value_heads"] * head
    live = sequences * (PROMPT_TOKENS + NEW_TOKENS / 2) * token
    weights = (base / "model.safetensors").stat().st_size
    return weights + len(adapters) * device_bytes(base, RANK) + live
