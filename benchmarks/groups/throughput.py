"""Tokens per second: the base, adapters mixed in one batch, mixed ranks, prompts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench import CONTEXT_TOKENS, RANK, Bench
from benchmarks.figures import Figure, single
from benchmarks.ours import Ours
from benchmarks.peers import start
from benchmarks.peers.process import Generates, Peer, Sequences

PEERS = ("vllm", "peft", "llamacpp")
UNIT = "tokens/s"
DRAWN = {"temperature": 0.8, "top_p": 0.95}
SHORT_REQUESTS = 512
SHORT_REPLY_TOKENS = 4
LONG_PROMPT_TOKENS = 1000
LONG_PROMPTS = 2
RANKS = (64, 16, 16, 8, 8, 8, 4, 4)
"""Their mean is 16."""


def base(bench: Bench) -> Iterator[Figure]:
    """The plain base, 1, 8 and 32 sequences at once."""
    with (
        bench.server() as ours,
        bench.started(
            vllm=start.vllm(bench.base, sequences=32, context_tokens=CONTEXT_TOKENS),
            peft=start.peft(bench.base),
            llamacpp=start.llamacpp(bench.base, sequences=32, context_tokens=CONTEXT_TOKENS),
        ) as peers,
    ):
        for count in (1, 8, 32):
            yield from bench.beside(
                f"base_{count}",
                UNIT,
                bench.rate(ours, count),
                {name: bench.rate(peer, count) for name, peer in peers.items()},
                also=PEERS,
            )
        steps = [step_ms(ours, bench.sequences(1)) for _ in range(bench.runs)]
        yield single("base_1_step_ms", "ms", steps)


def mixed(bench: Bench) -> Iterator[Figure]:
    """An adapter a sequence: 8 sequences on 8 adapters, 32 on 8, 32 on 32; beside peers and our own base."""
    for count, distinct, name in ((8, 8, "mixed_8"), (32, 8, "mixed_32"), (32, 32, "mixed_32_on_32")):
        adapters = bench.adapters(distinct)
        with (
            bench.server() as ours,
            bench.started(
                vllm=start.vllm(bench.base, sequences=32, context_tokens=CONTEXT_TOKENS, max_loras=distinct),
                peft=start.peft(bench.base),
                llamacpp=start.llamacpp(
                    bench.base, sequences=32, context_tokens=CONTEXT_TOKENS, adapters=adapters
                ),
            ) as peers,
        ):
            ours.add(adapters)
            yield from bench.beside(
                name,
                UNIT,
                bench.rate(ours, count, adapters),
                {peer_name: bench.rate(peer, count, adapters) for peer_name, peer in peers.items()},
                own={"own_base": bench.rate(ours, count)},
                also=PEERS,
            )


@contextmanager
def _beside_vllm(
    bench: Bench, adapters: Sequence[Path], at_once: int
) -> Generator[tuple[Ours, Mapping[str, Peer]]]:
    """Ours with the adapters, and vLLM with places for them and for so many sequences."""
    with (
        bench.server() as ours,
        bench.started(
            vllm=start.vllm(
                bench.base, sequences=at_once, context_tokens=CONTEXT_TOKENS, max_loras=len(adapters)
            )
        ) as peers,
    ):
        ours.add(adapters)
        yield ours, peers


def sampled(bench: Bench) -> Iterator[Figure]:
    """32 sequences on 8 adapters, each token drawn, beside vLLM's and beside our own greedy ones."""
    adapters = bench.adapters(8)
    with _beside_vllm(bench, adapters, 32) as (ours, peers):
        yield from bench.beside(
            "sampled_32",
            UNIT,
            bench.rate(ours, 32, adapters, **DRAWN),
            {name: bench.rate(peer, 32, adapters, **DRAWN) for name, peer in peers.items()},
            own={"own_greedy": bench.rate(ours, 32, adapters)},
            also=("vllm",),
        )


def batch(bench: Bench) -> Iterator[Figure]:
    """512 short requests on 8 adapters, 4 tokens each, in one BatchServeAdapter, beside vLLM's `generate` of all of them, and
    beside our own single calls, 32 at once.
    """
    adapters = bench.adapters(8)

    def rate(seconds: Callable[[Sequences], float]) -> Callable[[], float]:
        return lambda: SHORT_REQUESTS / seconds(bench.sequences(SHORT_REQUESTS, adapters, SHORT_REPLY_TOKENS))

    with _beside_vllm(bench, adapters, 128) as (ours, peers):
        yield from bench.beside(
            f"batch_{SHORT_REQUESTS}",
            "requests/s",
            rate(ours.batch_seconds),
            {name: rate(peer.seconds) for name, peer in peers.items()},
            own={"own_calls": rate(lambda sequences: ours.seconds_in_calls(sequences, 32))},
            also=("vllm",),
        )


def ranks(bench: Bench) -> Iterator[Figure]:
    """Ranks 4, 8, 16 and 64 in one batch, beside as many adapters of rank 16, the mean of the others."""
    several = [bench.adapters(RANKS[: i + 1].count(rank), rank)[-1] for i, rank in enumerate(RANKS)]
    uniform = bench.adapters(len(RANKS), RANK)
    with bench.server() as ours:
        ours.add(several + uniform)
        for count in (8, 32):
            yield from bench.beside(
                f"mixed_ranks_{count}",
                UNIT,
                bench.rate(ours, count, several),
                {},
                own={"rank_16": bench.rate(ours, count, uniform)},
            )


def prefill(bench: Bench) -> Iterator[Figure]:
    """Prompts of 1,000 tokens, no two alike, one token generated; on the base and with an adapter."""
    adapters = bench.adapters(1)
    sizes = {"sequences": LONG_PROMPTS, "context_tokens": LONG_PROMPT_TOKENS + 64}
    with bench.server() as ours:
        ours.add(adapters)
        for name, chosen in (("prefill", []), ("prefill_lora", adapters)):
            with bench.started(
                vllm=start.vllm(bench.base, max_loras=len(chosen), **sizes),
                peft=start.peft(bench.base),
                llamacpp=start.llamacpp(bench.base, adapters=chosen, **sizes),
            ) as peers:
                own = {"own_base": _prefill_rate(bench, ours)} if chosen else {}
                yield from bench.beside(
                    name,
                    UNIT,
                    _prefill_rate(bench, ours, chosen),
                    {peer_name: _prefill_rate(bench, peer, chosen) for peer_name, peer in peers.items()},
                    own=own,
                    also=PEERS,
                )


def step_ms(ours: Ours, sequences: Sequences) -> float:
    """Milliseconds of a decode step as the engine tells them in `done.timing`, the median of the sequences."""
    steps = sequences.new_tokens - 1
    return statistics.median(1000 * reply.timing.decode_seconds / steps for reply in ours.replies(sequences))


def _prefill_rate(bench: Bench, who: Generates, adapters: Sequence[Path] = ()) -> Callable[[], float]:
    new_per_second = bench.rate(who, LONG_PROMPTS, adapters, 1, LONG_PROMPT_TOKENS)
    return lambda: LONG_PROMPT_TOKENS * new_per_second()
