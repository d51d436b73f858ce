"""The figures: one function a question, each measured within one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.vocabulary import WeightFormat

from benchmarks.figures import Figure, compared, take_turns
from benchmarks.peers.process import Peer
from benchmarks.training import learners
from benchmarks.training.estimate import estimate as estimate_errors
from benchmarks.training.learners import BATCH_ROWS, train
from benchmarks.training.memory import peak
from benchmarks.training.packed import packed_base
from benchmarks.training.rows import RowFactory, Rows
from benchmarks.training.weights import WeightBytes

MB = 1e6
FULL_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TrainingBench:
    """One run of the benchmark."""

    base: Path
    rows: RowFactory
    runs: int
    quick: bool


Group = Callable[[TrainingBench], Iterator[Figure]]


def uneven(bench: TrainingBench) -> Iterator[Figure]:
    """Supervised tokens per second on real rows of uneven length."""
    rows = bench.rows.uneven((1 if bench.quick else 8) * BATCH_ROWS, FULL_TOKENS)
    yield _speed(bench, "sft_supervised_tokens_vs_trl", rows)


def short(bench: TrainingBench) -> Iterator[Figure]:
    """The same on the rows of examples/ as they are."""
    rows = bench.rows.short((1 if bench.quick else 5) * BATCH_ROWS)
    yield _speed(bench, "sft_short_supervised_tokens_vs_trl", rows)


def memory(bench: TrainingBench) -> Iterator[Figure]:
    """The most memory above runtime and base in two steps of 8 rows of 512 tokens, each learner alone and new."""
    rows = bench.rows.full(2 * BATCH_ROWS, FULL_TOKENS)
    kinds: dict[str, Callable[[], AbstractContextManager[Peer]]] = {
        "ours": lambda: learners.ours(bench.base),
        "checkpointing": lambda: learners.trl(bench.base, packing=False, checkpointing=True),
        "whole": lambda: learners.trl(bench.base, packing=False),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(bench.runs):
        for name, start in kinds.items():
            with start() as learner, peak(learner.pids[0]) as measured:
                train(learner, rows)
            found[name].append(measured.above / MB)
    yield compared(
        "sft_peak_memory_vs_trl",
        "MB",
        found["ours"],
        "trl",
        found["checkpointing"],
        note="TRL with activation checkpointing, its smallest; ours without; PSS above runtime and base",
    )
    yield compared(
        "sft_peak_memory_vs_trl_at_speed",
        "MB",
        found["ours"],
        "trl",
        found["whole"],
        note="both as their speeds are measured",
    )


def qlora(bench: TrainingBench) -> Iterator[Figure]:
    """What the base's weights take in a process that has trained over them: packed in 4 and 8 bits, and as they are."""
    rows = bench.rows.short(BATCH_ROWS)
    bases = {
        "nf4": packed_base(bench.base, WeightFormat.NF4),
        "int8": packed_base(bench.base, WeightFormat.INT8),
        "bf16": bench.base,
    }
    found: dict[str, list[WeightBytes]] = {name: [] for name in bases}
    for _ in range(bench.runs):
        for name, base in bases.items():
            with learners.ours(base) as learner:
                train(learner, rows)
                found[name].append(learners.weight_bytes(learner))
    told = ", ".join(
        f"{name} {weights[-1].mapped_bytes / MB:.1f} MB mapped and {weights[-1].private_bytes / MB:.1f} private"
        for name, weights in found.items()
    )
    sizes = {name: [weights.total_bytes / MB for weights in weighed] for name, weighed in found.items()}
    for figure, packed in (("qlora_base_bytes_vs_bf16", "nf4"), ("qlora_int8_base_bytes_vs_bf16", "int8")):
        note = f"{packed}; after an epoch: {told}"
        yield compared(figure, "MB", sizes[packed], "bf16", sizes["bf16"], note=note)


def estimate(bench: TrainingBench) -> Iterator[Figure]:
    """How far jobs' own estimates of memory and time are off."""
    yield from estimate_errors(quick=bench.quick)


GROUPS: dict[str, Group] = {group.__name__: group for group in (uneven, short, memory, qlora, estimate)}
WITHOUT_TRL = frozenset({"qlora", "estimate"})
"""Groups that compare ours with ours."""


def _speed(bench: TrainingBench, figure: str, rows: Rows) -> Figure:
    """Ours beside the faster of TRL's two ways to waste little on padding."""
    kinds: dict[str, AbstractContextManager[Peer]] = {
        "ours": learners.ours(bench.base),
        "packed": learners.trl(bench.base, packing=True),
        "grouped": learners.trl(bench.base, packing=False),
    }
    steps: dict[str, int] = {}
    with ExitStack() as stack:
        started = {name: stack.enter_context(kind) for name, kind in kinds.items()}

        def measure(name: str) -> Callable[[], float]:
            def rate() -> float:
                trained = train(started[name], rows)
                steps[name] = trained.steps
                return rows.supervised_tokens / trained.seconds

            return rate

        found = take_turns(bench.runs, {name: measure(name) for name in kinds})
    medians = {name: statistics.median(found[name]) for name in ("packed", "grouped")}
    best = max(medians, key=medians.__getitem__)
    told = ", ".join(f"{name} {rate:.1f}" for name, rate in medians.items())
    scale = rows.tokens / rows.supervised_tokens
    return compared(
        figure,
        "supervised tokens/s",
        found["ours"],
        "trl",
        found[best],
        note=f"{rows}, {rows.supervised_tokens} of {rows.tokens} supervised ({scale:.2f} x as many tokens/s); "
        f"TRL: {told}; steps of an epoch: ours {steps['ours']}, TRL's {steps[best]}",
    )
