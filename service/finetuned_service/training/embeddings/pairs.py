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
from finetuned_service.training.row_faults import RowFaults, refuse_none_held_out
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
    # By their lines.
    if eval_path is not None:
        train, held_out = dict(enumerate(rows, 1)), dict(enumerate(stored_rows(eval_path), 1))
    else:
        parts = split(rows, spec.data.holdout_fraction, spec.optimization.seed)
        train, held_out = ({index + 1: rows[index] for index in part} for part in parts)
    tokenizer = None if image else BaseTokenizer.load(base_directory, generates=False)
    encoding = _Encoding(TextFitter(tokenizer, spec.data))
    examples = encoding.examples(until_stopped(train.items(), stop), "line")
    dropped = encoding.dropped
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
    report = data_report(
        [_counted(example) for example in examples],
        [_counted(example) for example in heldout],
        truncated_rows=encoding.truncated,
        dropped_rows=encoding.dropped,
    )
    row_tokens = (len(example.token_ids) for example in examples)
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

    def examples(self, rows: Iterable[tuple[int, DatasetRow]], where: str) -> tuple[PairExample, ...]:
        """The rows that can be used; each comes with its line in the file that `where` names."""
        found: list[PairExample] = []
        for line, row in rows:
            try:
                example = self._example(row)
            except InvalidData as error:
                self.faults.add(f"{where} {line}", error.message)
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
        truncated_before = self._fitter.truncated_texts
        encoded = [self._fitter.fitted(text) for text in texts]
        tokens = [text.token_ids for text in encoded if text is not None]
        if len(tokens) < len(texts):
            return None
        self.truncated += self._fitter.truncated_texts > truncated_before
        return PairExample(tokens[0], tokens[1], tuple(tokens[2:]), score, texts)
