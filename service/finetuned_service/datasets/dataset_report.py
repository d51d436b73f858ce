"""What a dataset is told to be when it is stored: lengths, labels and their balance, repeated rows."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter

import numpy as np

from finetuned_service.datasets.fingerprint import fingerprint, texts_of
from finetuned_service.datasets.kinds import DatasetRow, RowKind, classes_of, kind_of
from finetuned_service.datasets.limits import DataLimits
from finetuned_service.errors import InvalidData
from finetuned_service.text.values import LabelledTokens
from finetuned_service.vocabulary import DatasetReport, LabelCount, LengthSummary

_MUCH = 10.0
"""From this ratio of the most frequent label to the rarest on, a warning is due."""
_LABELLED = {RowKind.LABELLED_TEXT, RowKind.MULTI_LABEL_TEXT, RowKind.LABELLED_TOKENS, RowKind.LABELLED_IMAGE}


def length_summary(lengths: array[int]) -> LengthSummary:
    """Nearest-rank percentiles (each is a length that occurs) and the mean."""
    if not lengths:
        return LengthSummary()
    found = np.frombuffer(lengths, dtype=np.int64)
    median, p90, p95, p99 = (
        int(value) for value in np.percentile(found, [50, 90, 95, 99], method="inverted_cdf")
    )
    return LengthSummary(
        median=median, p90=p90, p95=p95, p99=p99, longest=int(found.max()), mean=float(found.mean())
    )


def label_counts(counts: Counter[str]) -> tuple[LabelCount, ...]:
    """The most frequent first; by name where they are equal."""
    return tuple(
        LabelCount(label=label, count=count)
        for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def imbalance_ratio(labels: tuple[LabelCount, ...]) -> float:
    """How many times the rarest label the most frequent one is; 0 without labels."""
    return labels[0].count / labels[-1].count if labels else 0.0


class ReportBuilder:
    """Takes the rows of one dataset, one after the other."""

    def __init__(self, limits: DataLimits) -> None:
        self._limits = limits
        self._lengths = array("q")
        self._rows = array("Q")
        self._claims = array("Q")
        self._labels: Counter[str] = Counter()
        self._kind: RowKind | None = None

    def add(self, row: DatasetRow) -> None:
        """Count a row.

        Raises:
            InvalidData: there are more labels than a dataset may have.
        """
        self._kind = kind_of(row)
        self._lengths.append(sum(map(len, texts_of(row))))
        key = fingerprint(row)
        self._rows.append(key)
        if self._kind not in _LABELLED:
            return
        self._claims.append(_claim(key, row))
        self._labels.update(row.tags if isinstance(row, LabelledTokens) else classes_of(row))
        if len(self._labels) > self._limits.max_labels:
            raise InvalidData(
                f"the rows have more than {self._limits.max_labels} different labels, which is the limit; is the "
                "label a text, or a number to predict (score)?",
                metadata={"max_labels": str(self._limits.max_labels)},
            )

    def report(self) -> DatasetReport:
        """What was found."""
        labels = label_counts(self._labels)
        distinct = len(np.unique(np.frombuffer(self._rows, dtype=np.uint64))) if self._rows else 0
        claims = len(np.unique(np.frombuffer(self._claims, dtype=np.uint64))) if self._claims else distinct
        ratio = imbalance_ratio(labels)
        return DatasetReport(
            characters=length_summary(self._lengths),
            labels=labels,
            imbalance_ratio=ratio,
            duplicate_rows=len(self._rows) - distinct,
            conflicting_rows=claims - distinct,
            warnings=tuple(_warnings(self._labels, self._kind, ratio, claims - distinct)),
        )


def _claim(key: int, row: DatasetRow) -> int:
    said = row.tags if isinstance(row, LabelledTokens) else classes_of(row)
    text = "\0".join([str(key), *said])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _warnings(labels: Counter[str], kind: RowKind | None, ratio: float, conflicting: int) -> list[str]:
    found: list[str] = []
    if kind in _LABELLED and kind is not RowKind.MULTI_LABEL_TEXT and len(labels) == 1:
        found.append(f"all rows have the one label {next(iter(labels))!r}: there is nothing to tell apart")
    alike: dict[str, list[str]] = {}
    for label in sorted(labels):
        alike.setdefault("".join(label.casefold().split()), []).append(label)
    found += [
        f"the labels {', '.join(map(repr, names))} differ only by case or white space, and are different classes"
        for names in alike.values()
        if len(names) > 1
    ]
    if kind is not RowKind.LABELLED_TOKENS and ratio >= _MUCH:
        most, rarest = labels.most_common()[0], labels.most_common()[-1]
        found.append(
            f"the label {most[0]!r} is {ratio:.0f} times as frequent as {rarest[0]!r} ({most[1]} and {rarest[1]} rows)"
        )
    if conflicting:
        found.append(f"{conflicting} rows say something else about what another row is about")
    return found
