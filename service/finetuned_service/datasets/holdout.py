"""Which rows are kept for evaluation, decided by what they say.

A row's place in the file has no part in it: equal rows always land on the same side, the choice
repeats with the seed, and rows added to a dataset hardly move those that were there.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from finetuned_service.datasets.kinds import DatasetRow
from finetuned_service.datasets.rows import to_json
from finetuned_service.errors import InvalidData


def split(rows: Sequence[DatasetRow], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the rows to train on and of those held out, each in the order of the file.

    Args:
        rows: all of a dataset.
        fraction: the part to hold out, 0 to 0.5. Above 0 it holds out at least one row, and otherwise
            not more than the fraction, rounded; exactly that, but for groups of equal rows.
        seed: another seed makes another choice.

    Raises:
        InvalidData: a part is to be held out, and there are no two different rows.
    """
    if fraction == 0:
        return list(range(len(rows))), []
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[_draw(row, seed)].append(index)
    if len(groups) < 2:
        raise InvalidData(
            f"the dataset has {len(rows)} rows and they are all the same, so none can be held out for "
            "evaluation; add different rows, give an eval_dataset, or set holdout_fraction to 0"
        )
    wanted = max(1, round(fraction * len(rows)))
    drawn = [groups[draw] for draw in sorted(groups)]
    held_out: list[int] = []
    # The last group stays in training, however large the part that is wanted.
    for group in drawn[:-1]:
        if len(held_out) + len(group) <= wanted:
            held_out += group
    if not held_out:
        held_out = min(drawn, key=len)
    chosen = set(held_out)
    return [index for index in range(len(rows)) if index not in chosen], sorted(chosen)


def _draw(row: DatasetRow, seed: int) -> bytes:
    """A number between nothing and everything, from the row and the seed alone."""
    return hashlib.sha256(f"{seed}\n{to_json(row)}".encode()).digest()
