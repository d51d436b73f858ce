"""Rows of pairs as a base that encodes takes them. Torch-free: a submitted job is checked with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.bases.inputs import base_inputs
from finetuned_service.bases.manifest import read_config
from finetuned_service.datasets.holdout import split
from finetuned_service.datasets.kinds import DatasetRow
from finetuned_service.datasets.report import data_report, with_rows
from finetuned_service.datasets.rows import stored_rows
from finetuned_service.errors import InvalidData, InvalidField
from finetuned_service.jobs.pace import until_stopped
from finetuned_service.jobs.process import StopFlag
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Pair, ScoredPair
from finetuned_service.training.fitting import TextFitter
from finetuned_service.training.row_faults import RowFaults, refuse_none_held_out
from finetuned_service.vocabulary import DataReport, Pooling

Tokens = tuple[int, ...]
_LEAST_HELD_OUT, _MOST_HELD_OUT = 2, 0.5
"""Rows, where a pair is told apart from others; and the largest part that may be held out."""


@dataclass(frozen=True, slots=True)
class PairExample:
    """Two texts, and others or a score."""

    anchor: Tokens
    positive: Tokens
    negatives: tuple[Tokens, ...] = ()
    score: float | None = None
    """How alike the two are, -1 to 1; None where they belong together and no others do."""
    texts: tuple[str, ...] = ()
    """Of all of them, for people."""
    whole_tokens: int = 0
    """Of all of them before any was cut."""

    @property
    def all_texts(self) -> tuple[Tokens, ...]:
        return (self.anchor, self.positive, *self.negatives)

    @property
    def token_ids(self) -> Tokens:
        """Of all of them, one after the other."""
        return tuple(token for tokens in self.all_texts for token in tokens)

    @property
    def supervised_tokens(self) -> int:
        """The loss is a mean over rows."""
        return 1

    @property
    def needs_others(self) -> bool:
        """Whether its loss is 0, whatever is learnt, where no other row is beside it."""
        return self.score is None and not self.negatives


@dataclass(frozen=True, slots=True)
class EmbeddingData:
    """What a job trains on and what it holds out."""

    train: tuple[PairExample, ...]
    heldout: tuple[PairExample, ...]
    pooling: Pooling
    report: DataReport


def read_embedding_data(
    spec: TrainSpec,
    base_directory: Path,
    train_path: Path,
    eval_path: Path | None,
    stop: StopFlag | None = None,
) -> EmbeddingData:
    """Read, encode and split the rows of a resolved spec whose task is feature extraction.

    Raises:
        Stopped: the process was asked to stop (`stop`).
        InvalidData: rows that cannot be trained on, by line, or too few.
        InvalidField: they are pairs that need others, and a step has one row.
    """
    pooling, image = base_inputs(read_config(base_directory))
    tokenizer = None if image else BaseTokenizer.load(base_directory, generates=False)
    encoding = _Encoding(TextFitter(tokenizer, spec.data))
    # By their lines.
    train = encoding.fitting(until_stopped(stored_rows(train_path), stop))
    dropped = encoding.dropped
    if eval_path is not None:
        held_out = encoding.fitting(until_stopped(stored_rows(eval_path), stop))
    else:
        train, held_out = _split(train, spec)
    examples = encoding.examples(until_stopped(train.items(), stop), "line")
    heldout = encoding.examples(
        until_stopped(held_out.items(), stop), "eval_dataset line" if eval_path else "line"
    )
    encoding.faults.refuse()
    if len(examples) < 2:
        raise InvalidData(
            f"{len(examples)} rows are left to train on; a row is told apart from the others of its step, so at least 2 "
            "are needed: add rows, or raise max_row_tokens"
        )
    if eval_path is not None:
        refuse_none_held_out(heldout, encoding.dropped - dropped, spec.data.max_row_tokens)
    if spec.optimization.batch_rows == 1 and any(example.needs_others for example in examples):
        raise InvalidField.one(
            "spec.optimization.batch_rows",
            "is 1; a pair is told apart from the others of its step, so nothing would be learnt: set at least 2, or give "
            "the rows negatives",
        )
    if len(heldout) == 1 and heldout[0].needs_others:
        raise InvalidData(
            "1 row is held out; a pair is told apart from others, so its loss would be 0 whatever is learnt: hold out at least "
            "2 (add rows, raise holdout_fraction, or give an eval_dataset of more), or set holdout_fraction to 0"
        )
    report = data_report(
        [_counted(example) for example in examples],
        [_counted(example) for example in heldout],
        truncated_rows=encoding.truncated,
        dropped_rows=encoding.dropped,
    )
    row_tokens = (example.whole_tokens for example in examples)
    report = with_rows(report, list(train.values()), list(held_out.values()), row_tokens)
    return EmbeddingData(examples, heldout, pooling, report)


def _counted(example: PairExample) -> EncodedRow:
    ids = list(example.token_ids)
    return EncodedRow(ids, [True] * len(ids))


class _Encoding:
    """Encodes rows and remembers what is wrong with them."""

    def __init__(self, fitter: TextFitter) -> None:
        self._fitter = fitter
        self.faults = RowFaults()
        self.truncated = self.dropped = 0

    def fitting(self, rows: Iterable[DatasetRow]) -> dict[int, DatasetRow]:
        """The rows of a file that are used, by their lines; the others are counted."""
        found: dict[int, DatasetRow] = {}
        for line, row in enumerate(rows, 1):
            if all(map(self._fitter.fits, _texts_of(row))):
                found[line] = row
            else:
                self.dropped += 1
        return found

    def examples(self, rows: Iterable[tuple[int, DatasetRow]], where: str) -> tuple[PairExample, ...]:
        """The rows that can be used; each comes with its line in the file that `where` names."""
        found: list[PairExample] = []
        for line, row in rows:
            try:
                found.append(self._example(row))
            except (InvalidData, InvalidField) as error:
                self.faults.add(f"{where} {line}", error.message)
        return tuple(found)

    def _example(self, row: DatasetRow) -> PairExample:
        score, texts = row.score if isinstance(row, ScoredPair) else None, _texts_of(row)
        if score is not None and not -1 <= score <= 1:
            raise InvalidData(f"has the score {score:g}; a cosine is learned, -1 to 1: divide by the largest")
        truncated_before = self._fitter.truncated_texts
        fitted = [self._fitter.fitted(text) for text in texts]
        self.truncated += self._fitter.truncated_texts > truncated_before
        tokens = [text.encoded.token_ids for text in fitted]
        whole_tokens = sum(text.whole_tokens for text in fitted)
        return PairExample(tokens[0], tokens[1], tuple(tokens[2:]), score, texts, whole_tokens)


def _texts_of(row: DatasetRow) -> tuple[str, ...]:
    match row:
        case Pair(anchor, positive, negatives):
            return anchor, positive, *negatives
        case ScoredPair(sentence1, sentence2, _):
            return sentence1, sentence2
        case _:
            raise InvalidData("the rows are no pairs")


def _split(
    rows: Mapping[int, DatasetRow], spec: TrainSpec
) -> tuple[dict[int, DatasetRow], dict[int, DatasetRow]]:
    """Those to train on and those held out, by their lines; of a pair that is told apart from others at least two are held out."""
    lines, fraction = list(rows), spec.data.holdout_fraction
    if fraction and lines and not isinstance(rows[lines[0]], ScoredPair):
        fraction = min(_MOST_HELD_OUT, max(fraction, _LEAST_HELD_OUT / len(lines)))
    parts = split([rows[line] for line in lines], fraction, spec.optimization.seed) if lines else ([], [])
    train, held_out = ({lines[index]: rows[lines[index]] for index in part} for part in parts)
    return train, held_out
