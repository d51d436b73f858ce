"""From dataset files to ids: rows that are too long, and the ones that are held out.

Torch-free, so that a submitted job can be checked and reported on exactly as it will run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from finetuned_service.datasets.holdout import split
from finetuned_service.datasets.kinds import DatasetRow
from finetuned_service.datasets.report import EncodedIds, data_report, with_rows
from finetuned_service.datasets.rows import read_rows
from finetuned_service.errors import InvalidData, InvalidField
from finetuned_service.jobs.pace import until_stopped
from finetuned_service.jobs.process import StopFlag
from finetuned_service.jobs.specs import DataOptions, LongRows, TrainSpec
from finetuned_service.text.supervision import EncodedRow, encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Row
from finetuned_service.training.questions import refuse_unwritable
from finetuned_service.training.row_faults import RowFaults, refuse_none_held_out, too_long
from finetuned_service.vocabulary import DataReport


@dataclass(frozen=True, slots=True)
class Example:
    """A row with its ids."""

    row: Row
    encoded: EncodedRow
    whole_tokens: int
    """Its length before it was cut."""


@dataclass(frozen=True, slots=True)
class JobData:
    """What a job trains on and what it holds out, both in the order of their files."""

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    report: DataReport


def read_job_data(
    spec: TrainSpec,
    tokenizer: BaseTokenizer,
    train_path: Path,
    eval_path: Path | None,
    stop: StopFlag | None = None,
) -> JobData:
    """Read, encode and split the rows of a resolved spec.

    Args:
        spec: resolved.
        tokenizer: of the base.
        train_path: canonical rows.
        eval_path: canonical rows to hold out; None takes `holdout_fraction` of the training rows.
        stop: asks to end between two rows; None never does.

    Raises:
        Stopped: the process was asked to stop.
        InvalidData: rows that cannot be trained on, by line, none to train on, or none left of those to hold out.
    """
    refuse_unwritable(tokenizer, spec.evaluation.baseline)
    encoding = _Encoding(tokenizer, spec.data)
    train = encoding.examples(until_stopped(read_rows(train_path), stop), "line")
    dropped = encoding.dropped
    heldout: list[Example] = []
    if eval_path is not None:
        heldout = encoding.examples(until_stopped(read_rows(eval_path), stop), "eval_dataset line")
    encoding.faults.refuse()
    if not train:
        raise InvalidData(
            f"all {dropped} rows are longer than max_row_tokens ({spec.data.max_row_tokens}) and "
            "long_rows leaves them out; raise max_row_tokens or shorten the rows"
        )
    if eval_path is not None:
        refuse_none_held_out(heldout, encoding.dropped - dropped, spec.data.max_row_tokens)
    return JobData(*divided(spec, train, None if eval_path is None else heldout, encoding))


class Counts(Protocol):
    """What became of the rows that are too long."""

    @property
    def truncated(self) -> int: ...
    @property
    def dropped(self) -> int: ...


class Encoded(Protocol):
    """A row of any kind with its ids."""

    @property
    def row(self) -> DatasetRow: ...
    @property
    def encoded(self) -> EncodedIds: ...
    @property
    def whole_tokens(self) -> int: ...


X = TypeVar("X", bound=Encoded)


def divided(
    spec: TrainSpec, train: Sequence[X], heldout: Sequence[X] | None, counts: Counts
) -> tuple[tuple[X, ...], tuple[X, ...], DataReport]:
    """The rows to train on, those held out, and the report on both.

    Args:
        spec: resolved.
        train: all that can be used, at least one.
        heldout: from a dataset of their own; None takes `holdout_fraction` of the others.
        counts: of rows that were too long.

    Raises:
        InvalidData: none can be held out.
    """
    if heldout is None:
        rows = [example.row for example in train]
        kept, taken = split(rows, spec.data.holdout_fraction, spec.optimization.seed)
        train, heldout = [train[index] for index in kept], [train[index] for index in taken]
    report = data_report(
        [example.encoded for example in train],
        [example.encoded for example in heldout],
        truncated_rows=counts.truncated,
        dropped_rows=counts.dropped,
    )
    report = with_rows(
        report,
        [example.row for example in train],
        [example.row for example in heldout],
        (example.whole_tokens for example in train),
    )
    return tuple(train), tuple(heldout), report


class _Encoding:
    """Encodes rows with resolved options and remembers what is wrong with them."""

    def __init__(self, tokenizer: BaseTokenizer, options: DataOptions) -> None:
        if options.max_row_tokens is None:
            raise ValueError("max_row_tokens is not resolved")
        self._tokenizer, self._options, self._limit = tokenizer, options, options.max_row_tokens
        self.faults = RowFaults()
        self.truncated = self.dropped = 0

    def examples(self, rows: Iterable[Row], where: str) -> list[Example]:
        """The rows that can be used; `where` names their file in violations."""
        found = (self._example(row, f"{where} {number}") for number, row in enumerate(rows, start=1))
        return [example for example in found if example is not None]

    def _example(self, row: Row, where: str) -> Example | None:
        try:
            encoded = encode_row(self._tokenizer, row, self._options.train_on_prompt)
        except (InvalidData, InvalidField) as error:
            self.faults.add(where, error.message)
            return None
        if len(encoded.token_ids) <= self._limit:
            return Example(row, encoded, len(encoded.token_ids))
        if self._options.long_rows is LongRows.REJECT:
            self.faults.add(where, too_long(len(encoded.token_ids), self._limit))
            return None
        shortened = _shortened(encoded, self._limit, self._options.long_rows)
        if shortened is None:
            self.dropped += 1
            return None
        self.truncated += 1
        return Example(row, shortened, len(encoded.token_ids))


def _shortened(row: EncodedRow, limit: int, long_rows: LongRows) -> EncodedRow | None:
    """The row without its end; None where it is left out: nothing to learn would remain."""
    if long_rows is not LongRows.TRUNCATE or not any(row.supervised[:limit]):
        return None
    return EncodedRow(row.token_ids[:limit], row.supervised[:limit])
