"""A curve of losses in a few lines of a terminal, from block characters (U+2581 to U+2588)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

BLOCKS: Final = " ▁▂▃▄▅▆▇█"
LEAST_POINTS: Final = 2


def curve(points: Sequence[tuple[int, float]], *, width: int, height: int) -> list[str]:
    """The points as columns of blocks, the largest and the smallest value at the left.

    Args:
        points: (step, value), in the order of steps; values are finite.
        width: columns of the curve itself; points that share one are shown as their mean.
        height: lines.

    Returns:
        `height` lines and one for the steps; none for fewer than two points.
    """
    if len(points) < LEAST_POINTS:
        return []
    columns = _columns([value for _, value in points], width)
    low, high = min(columns), max(columns)
    span = (high - low) or 1.0
    # The smallest value is one eighth of a line, so that it is seen.
    eighths = [1 + round((value - low) / span * (8 * height - 1)) for value in columns]
    labels = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
    margin = max(len(label) for label in labels.values())
    lines = [
        f"{labels.get(line, ''):>{margin}} "
        + "".join(BLOCKS[min(8, max(0, filled - 8 * (height - 1 - line)))] for filled in eighths)
        for line in range(height)
    ]
    first, last = f"step {points[0][0]}", str(points[-1][0])
    gap = max(1, len(columns) - len(first) - len(last))
    return [*lines, f"{'':>{margin}} {first}{'':>{gap}}{last}"]


def _columns(values: Sequence[float], width: int) -> list[float]:
    """At most `width` means of neighbours, each of as many values as the next, give or take one."""
    count = min(width, len(values))
    borders = [round(i * len(values) / count) for i in range(count + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(borders)]
