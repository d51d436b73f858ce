"""What a benchmark finds: medians of several runs, beside a peer's from the same runs.

Machines drift, so peers take turns within each run, and the ratio within a run is what counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table and of the results."""

    figure: str
    value: float
    """Ours, the median of the runs."""
    unit: str
    minimum: float
    maximum: float
    runs: int
    peer_name: str = ""
    """Whom `peer` and `ratio` are about: another project, or ourselves under other conditions."""
    peer: float | None = None
    peer_minimum: float | None = None
    peer_maximum: float | None = None
    ratio: float | None = None
    """The median of ours / peer's, run by run."""
    ratio_minimum: float | None = None
    ratio_maximum: float | None = None
    note: str = ""


def single(figure: str, unit: str, ours: Sequence[float], *, note: str = "") -> Figure:
    """A figure that nobody stands beside."""
    return Figure(figure, statistics.median(ours), unit, min(ours), max(ours), len(ours), note=note)


def compared(
    figure: str, unit: str, ours: Sequence[float], peer_name: str, peers: Sequence[float], *, note: str = ""
) -> Figure:
    """Both medians, and the median of the ratios; the two sequences are of the same runs."""
    ratios = [our / peer for our, peer in zip(ours, peers, strict=True)]
    return Figure(
        figure,
        statistics.median(ours),
        unit,
        min(ours),
        max(ours),
        len(ours),
        peer_name,
        statistics.median(peers),
        min(peers),
        max(peers),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        note,
    )


def take_turns(runs: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each measurement once as a warm-up that is not kept, then all in turn, `runs` times: forwards, backwards, and so
    on, so that nobody always comes after the same one, or after the longest rest.
    """
    for measure in measures.values():
        measure()
    found: dict[str, list[float]] = {name: [] for name in measures}
    forwards = list(measures)
    for run in range(runs):
        for name in forwards[::-1] if run % 2 else forwards:
            found[name].append(measures[name]())
    return found


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
