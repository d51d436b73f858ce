"""Which rows are kept for evaluation, decided by what they say.

A row's place in the file has no part in it: rows about the same always land on the same side (case, width
of letters and white space aside), the choice repeats with the seed, and rows added to a dataset hardly move
those that were there. Of labelled rows every label is held out in its share.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from finetuned_service.datasets.fingerprint import fingerprint
from finetuned_service.datasets.kinds import DatasetRow, LabelledImage, labels_of
from finetuned_service.datasets.labels import listed
from finetuned_service.datasets.rows import to_json
from finetuned_service.errors import InvalidData
from finetuned_service.text.values import LabelledText, LabelledTokens, MultiLabelText

_MOST_TRIES, _MOST_GROUPS_TRIED = 64, 200_000
"""Orders in which labelled rows are drawn until each label is on both sides, and how many groups are drawn in all of them."""
_STRATIFIED = (LabelledText, MultiLabelText, LabelledTokens, LabelledImage)


def split(rows: Sequence[DatasetRow], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the rows to train on and of those held out, each in the order of the file.

    Args:
        rows: all of a dataset.
        fraction: the part to hold out, 0 to 0.5. Above 0 it holds out at least one row (of labelled rows, at
            least one of each label), and otherwise not more than the fraction, rounded; exactly that, but for
            groups of rows about the same, and for rows with several labels.
        seed: another seed makes another choice.

    Raises:
        InvalidData: a part is to be held out, and there are no two different rows; or a label has none.
    """
    if fraction == 0:
        return list(range(len(rows))), []
    groups = _groups(rows, seed)
    if len(groups) < 2:
        raise InvalidData(
            f"the dataset has {len(rows)} rows and they are all the same, so none can be held out for "
            "evaluation; add different rows, give an eval_dataset, or set holdout_fraction to 0"
        )
    stratified = isinstance(rows[0], _STRATIFIED)
    chosen = set(_stratified(groups, fraction) if stratified else _of_all(groups, fraction, len(rows)))
    return [index for index in range(len(rows)) if index not in chosen], sorted(chosen)


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows about the same; they stay together."""

    indices: tuple[int, ...]
    labels: tuple[str, ...]
    """Of any of them, each once; the one label "" where none has one."""
    draw: bytes
    """The least of theirs."""


def _groups(rows: Sequence[DatasetRow], seed: int) -> list[_Group]:
    """In the order in which they are drawn."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        members[fingerprint(row)].append(index)
    groups = [
        _Group(
            tuple(group),
            tuple(sorted({label for index in group for label in labels_of(rows[index])})) or ("",),
            min(_draw(rows[index], seed) for index in group),
        )
        for group in members.values()
    ]
    return sorted(groups, key=lambda group: group.draw)


def _of_all(groups: Sequence[_Group], fraction: float, row_count: int) -> list[int]:
    wanted = max(1, round(fraction * row_count))
    held_out: list[int] = []
    # The last group stays in training, however large the part that is wanted.
    for group in groups[:-1]:
        if len(held_out) + len(group.indices) <= wanted:
            held_out += group.indices
    return held_out or list(min(groups, key=lambda group: len(group.indices)).indices)


def _stratified(groups: Sequence[_Group], fraction: float) -> list[int]:
    """Of each label, in the order in which groups are drawn, or in another: which of few rows with several labels comes first
    may decide whether each label can be on both sides.
    """
    _refuse_lonely(Counter(label for group in groups for label in group.labels))  # no order helps those
    tries = max(1, min(_MOST_TRIES, _MOST_GROUPS_TRIED // len(groups)))
    for further in range(1, tries):
        try:
            return _of_each_label(groups, fraction)
        except InvalidData:
            groups = sorted(groups, key=lambda group: hashlib.sha256(group.draw + bytes([further])).digest())
    return _of_each_label(groups, fraction)


def _of_each_label(groups: Sequence[_Group], fraction: float) -> list[int]:
    """Iterative stratification, the rarest label first (Sechidis et al. 2011); each label stays in training too."""
    left = Counter(label for group in groups for label in group.labels)
    rows_of = Counter[str]()
    numbers_of: dict[str, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        rows_of.update(dict.fromkeys(group.labels, len(group.indices)))
        for label in group.labels:
            numbers_of[label].append(number)
    held: Counter[str] = Counter()
    chosen: set[int] = set()
    for label in sorted(left, key=lambda name: (left[name], name)):
        wanted = max(1, round(fraction * rows_of[label]))
        own = numbers_of[label]
        # Groups of few rows come first where none was drawn that fits.
        smallest = sorted(own, key=lambda number: len(groups[number].indices))
        for number in [*own, *smallest]:
            group = groups[number]
            fits = held[label] + len(group.indices) <= wanted or (number == smallest[0] and not held[label])
            if number in chosen or not fits or min(left[name] for name in group.labels) < 2:
                continue
            chosen.add(number)
            held.update(dict.fromkeys(group.labels, len(group.indices)))
            left.subtract(group.labels)
    if missing := {label for label in left if label and not held[label]}:
        raise InvalidData(
            f"the {listed(missing)} cannot be held out for evaluation without the only rows that teach another label; "
            "add rows of them, give an eval_dataset, or set holdout_fraction to 0"
        )
    return [index for number in sorted(chosen) for index in groups[number].indices]


def _refuse_lonely(groups_of: Counter[str]) -> None:
    lonely = {label for label, count in groups_of.items() if label and count < 2}
    if lonely:
        raise InvalidData(
            f"the {listed(lonely)} has no two different rows, so none can be held out for evaluation; add rows, "
            "remove it, give an eval_dataset, or set holdout_fraction to 0"
        )


def _draw(row: DatasetRow, seed: int) -> bytes:
    """A number between nothing and everything, from the row and the seed alone."""
    return hashlib.sha256(f"{seed}\n{to_json(row)}".encode()).digest()
