"""Figures that are measured together, because they are compared within one run. One module a question."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.groups.adapters import cold, loads, zipf
from benchmarks.groups.process import memory, start
from benchmarks.groups.step import floor, transport
from benchmarks.groups.throughput import base, batch, mixed, prefill, ranks, sampled
from benchmarks.groups.training import training

Group = Callable[[Bench], Iterator[Figure]]

GROUPS: dict[str, Group] = {
    group.__name__: group
    for group in (
        base,
        mixed,
        sampled,
        batch,
        ranks,
        prefill,
        cold,
        loads,
        zipf,
        transport,
        training,
        start,
        memory,
        floor,
    )
}
