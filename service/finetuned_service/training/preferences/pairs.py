"""From dataset files to pairs of answers as ids, and the ones that are held out. Torch-free, as `training/data.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetuned_service.datasets.rows import rows_of
from finetuned_service.errors import InvalidData, InvalidField
from finetuned_service.jobs.pace import until_stopped
from finetuned_service.jobs.process import StopFlag
from finetuned_service.jobs.specs import LongRows, TrainSpec
from finetuned_service.text.supervision import EncodedRow, encode_preference
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Preference
from finetuned_service.training.data import divided
from finetuned_service.training.questions import refuse_unwritable
from finetuned_service.training.row_faults import RowFaults, refuse_none_held_out, too_long
from finetuned_service.vocabulary import DataReport


@dataclass(frozen=True)
class EncodedPair:
    """Two answers after the same prompt, each with it; only the answers are supervised."""

    chosen: EncodedRow
    rejected: EncodedRow

    @cached_property
    def joined(self) -> EncodedRow:
        """Both as one row: what a pair costs, and what tells it from others."""
        return EncodedRow(
            self.chosen.token_ids + self.rejected.token_ids, self.chosen.supervised + self.rejected.supervised
        )

    @property
    def token_ids(self) -> list[int]:
        return self.joined.token_ids

    @property
    def supervised_tokens(self) -> int:
        return self.joined.supervised_tokens


@dataclass(frozen=True, slots=True)
class PairExample:
    """A preference with its ids."""

    row: Preference
    encoded: EncodedPair
    whole_tokens: int
    """Its length before it was cut."""


@dataclass(frozen=True, slots=True)
class PairData:
    """What a job trains on and what it holds out, both in the order of their files."""

    train: tuple[PairExample, ...]
    heldout: tuple[PairExample, ...]
    report: DataReport


def read_pair_data(
    spec: TrainSpec,
    tokenizer: BaseTokenizer,
    train_path: Path,
    eval_path: Path | None,
    stop: StopFlag | None = None,
) -> PairData:
    """Read, encode and split the pairs of a resolved spec; arguments as of `read_job_data`.

    Raises:
        Stopped: the process was asked to stop (`stop`).
        InvalidData: rows that cannot be trained on, by line, none to train on, or none left of those to hold out.
    """
    refuse_unwritable(tokenizer, spec.evaluation.baseline)
    encoding = _Encoding(tokenizer, spec)
    train = encoding.examples(until_stopped(rows_of(train_path, Preference), stop), "line")
    dropped = encoding.dropped
    heldout: list[PairExample] = []
    if eval_path is not None:
        heldout = encoding.examples(until_stopped(rows_of(eval_path, Preference), stop), "eval_dataset line")
    encoding.faults.refuse()
    if not train:
        raise InvalidData(
            f"of all {dropped} pairs an answer is longer than max_row_tokens ({encoding.limit}) and long_rows "
            "leaves them out; raise max_row_tokens or shorten the answers"
        )
    if eval_path is not None:
        refuse_none_held_out(heldout, encoding.dropped - dropped, spec.data.max_row_tokens)
    return PairData(*divided(spec, train, None if eval_path is None else heldout, encoding))


class _Encoding:
    """Encodes pairs with resolved options and remembers what is wrong with them."""

    def __init__(self, tokenizer: BaseTokenizer, spec: TrainSpec) -> None:
        if spec.data.max_row_tokens is None:
            raise ValueError("max_row_tokens is not resolved")
        self._tokenizer, self._long_rows, self.limit = (
            tokenizer,
            spec.data.long_rows,
            spec.data.max_row_tokens,
        )
        self.faults = RowFaults()
        self.truncated = self.dropped = 0

    def examples(self, rows: Iterable[Preference], where: str) -> list[PairExample]:
        """The pairs that can be used; `where` names their file in violations."""
        found = (self._example(row, f"{where} {number}") for number, row in enumerate(rows, start=1))
        return [example for example in found if example is not None]

    def _example(self, row: Preference, where: str) -> PairExample | None:
        try:
            pair = EncodedPair(*encode_preference(self._tokenizer, row))
        except (InvalidData, InvalidField) as error:
            self.faults.add(where, error.message)
            return None
        if pair.chosen.token_ids == pair.rejected.token_ids:
            self.faults.add(
                where,
                "has two answers of which the base's chat template makes the same text, so there is nothing to "
                "prefer; change one or remove the row",
            )
            return None
        longest = max(len(pair.chosen.token_ids), len(pair.rejected.token_ids))
        whole_tokens = len(pair.joined.token_ids)
        if longest <= self.limit:
            return PairExample(row, pair, whole_tokens)
        if self._long_rows is LongRows.REJECT:
            self.faults.add(where, too_long(longest, self.limit))
            return None
        shortened = _shortened(pair, self.limit) if self._long_rows is LongRows.TRUNCATE else None
        if shortened is None:
            self.dropped += 1
            return None
        self.truncated += 1
        return PairExample(row, shortened, whole_tokens)


def _shortened(pair: EncodedPair, limit: int) -> EncodedPair | None:
    """The pair without the ends of its answers; None where what is left of them is nothing, or the same."""
    chosen, rejected = (
        EncodedRow(row.token_ids[:limit], row.supervised[:limit]) for row in (pair.chosen, pair.rejected)
    )
    answered = any(chosen.supervised) and any(rejected.supervised)
    return EncodedPair(chosen, rejected) if answered and chosen.token_ids != rejected.token_ids else None
