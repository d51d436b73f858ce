"""Rows of pairs as a base that encodes takes them. Torch-free: a submitted job is checked with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.bases.inputs import base_inputs
from finetuned_service.bases.manifest import read_config
from finetuned_service.datasets.holdout import split
from finetuned_service.datasets.kinds import DatasetRow
from finetuned_service.datasets.report import data_report, with_rows
from finetuned_service.datasets.rows import stored_rows
from finetuned_service.errors import InvalidData
from finetuned_service.jobs.pace import until_stopped
from finetuned_service.jobs.process import StopFlag
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Pair, ScoredPair
from finetuned_service.training.fitting import TextFitter
from finetuned_service.training.row_faults import RowFaults
from finetuned_service.vocabulary import DataReport, Pooling

Tokens = tuple[int, ...]


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
    """
    pooling, image = base_inputs(read_config(base_directory))
    rows = tuple(stored_rows(train_path))
    if eval_path is not None:
        train, held_out = rows, tuple(stored_rows(eval_path))
    else:
        kept, taken = split(rows, spec.data.holdout_fraction, spec.optimization.seed)
        train, held_out = tuple(rows[i] for i in kept), tuple(rows[i] for i in taken)
    tokenizer = None if image else BaseTokenizer.load(base_directory, generates=False)
    encoding = _Encoding(TextFitter(tokenizer, spec.data))
    examples = encoding.examples(until_stopped(train, stop), "training row")
    heldout = encoding.examples(until_stopped(held_out, stop), "held-out row")
    encoding.faults.refuse()
    if len(examples) < 2:
        raise InvalidData(
            f"{len(examples)} rows are left to train on; a row is told apart from the others of its step, so at least 2 "
            "are needed: add rows, or raise max_row_tokens"
        )
    report = data_report(
        [_counted(example) for example in examples],
        [_counted(example) for example in heldout],
        truncated_rows=encoding.fitter.truncated,
        dropped_rows=encoding.dropped,
    )
    report = with_rows(report, train, held_out, (len(example.token_ids) for example in examples))
    return EmbeddingData(examples, heldout, pooling, report)


def _counted(example: PairExample) -> EncodedRow:
    ids = list(example.token_ids)
    return EncodedRow(ids, [True] * len(ids))


class _Encoding:
    """Encodes rows and remembers what is wrong with them."""

    def __init__(self, fitter: TextFitter) -> None:
        self.fitter = fitter
        self.faults = RowFaults()
        self.dropped = 0

    def examples(self, rows: Iterable[DatasetRow], where: str) -> tuple[PairExample, ...]:
        found: list[PairExample] = []
        for number, row in enumerate(rows, start=1):
            try:
                example = self._example(row)
            except InvalidData as error:
                self.faults.add(f"{where} {number}", error.message)
                continue
            if example is None:
                self.dropped += 1
            else:
                found.append(example)
        return tuple(found)

    def _example(self, row: DatasetRow) -> PairExample | None:
        match row:
            case Pair(anchor, positive, negatives):
                texts, score = (anchor, positive, *negatives), None
            case ScoredPair(sentence1, sentence2, score):
                if not -1 <= score <= 1:
                    raise InvalidData(
                        f"has the score {score:g}; a cosine is learned, -1 to 1: divide by the largest"
                    )
                texts = (sentence1, sentence2)
            case _:
                raise InvalidData("is no pair")
        encoded = [self.fitter.fitted(text) for text in texts]
        tokens = [text.token_ids for text in encoded if text is not None]
        if len(tokens) < len(texts):
            return None
        return PairExample(tokens[0], tokens[1], tuple(tokens[2:]), score, texts)
