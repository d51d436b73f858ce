"""Rows of a labelled dataset as a base that encodes takes them. Torch-free: a submitted job is checked with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.adapters.head import Head, Problem
from finetuned_service.bases.inputs import base_inputs
from finetuned_service.bases.manifest import read_config
from finetuned_service.datasets.job_rows import JobRows, read_job_rows
from finetuned_service.datasets.kinds import DatasetRow, LabelledImage
from finetuned_service.datasets.report import data_report, with_rows
from finetuned_service.datasets.rows import stored_rows
from finetuned_service.errors import InvalidData, InvalidField
from finetuned_service.jobs.estimate import DECODED_IMAGES_BYTES
from finetuned_service.jobs.pace import go_on, until_stopped
from finetuned_service.jobs.process import StopFlag
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import LabelledText, LabelledTokens, MultiLabelText, ScoredText
from finetuned_service.text.words import places_of
from finetuned_service.training.fitting import TextFitter
from finetuned_service.training.heads.images import HeldImage, ImageShelf
from finetuned_service.training.heads.unit import Unit
from finetuned_service.training.heads.weights import label_weights
from finetuned_service.training.row_faults import RowFaults, refuse_none_held_out
from finetuned_service.vocabulary import DataReport, Pooling

MOST_SCORE = 1e38
"""Heads answer in float32, and what is furthest away is not the mean."""

LabelledRow = LabelledText | MultiLabelText | ScoredText | LabelledTokens | LabelledImage


@dataclass(frozen=True, slots=True)
class Example:
    """One input with what the head is to say of it."""

    number: int
    """Among all of the job."""
    token_ids: tuple[int, ...]
    """An image is one token that says nothing."""
    targets: tuple[float, ...]
    """One label's index; 0 or 1 for each label; the number; or for tokens the index of each at `places`."""
    places: tuple[int, ...] = ()
    """Of the tokens that have targets: the one that answers for each word (`text/words.py`)."""
    second_start: int = 0
    """See `Encode.second_start`."""
    image: HeldImage | None = None
    shown: str = ""
    """For people."""
    whole_tokens: int = 0
    """Of the text before it was cut."""

    @property
    def supervised_tokens(self) -> int:
        """Over how many the loss is a mean."""
        return len(self.places) or 1


@dataclass(frozen=True, slots=True)
class HeadData:
    """What a job trains on and what it holds out."""

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    head: Head
    weights: tuple[float, ...] | None
    """How much each output counts in the loss; None for all alike."""
    report: DataReport

    @property
    def unit(self) -> Unit:
        """Of the numbers to learn; labels have none."""
        if self.head.problem is not Problem.REGRESSION:
            return Unit()
        return Unit.of([example.targets[0] for example in self.train])


def read_head_data(
    spec: TrainSpec,
    base_directory: Path,
    train_path: Path,
    eval_path: Path | None,
    *,
    decoded_bytes: int = DECODED_IMAGES_BYTES,
    stop: StopFlag | None = None,
) -> HeadData:
    """Read, encode and split the rows of a resolved spec whose task is not text generation.

    Args:
        spec: resolved.
        base_directory: of the base.
        train_path: canonical rows.
        eval_path: canonical rows to hold out; None takes `holdout_fraction` of the training rows.
        decoded_bytes: room for images that stay decoded; none is for whoever asks for the report alone.
        stop: asks to end between two rows; None never does.

    Raises:
        Stopped: the process was asked to stop (`stop`).
        InvalidData: rows that cannot be trained on, by line, labels that only one part has, or a part without rows.
    """
    kind = type(next(stored_rows(train_path)))
    pooling, image = base_inputs(read_config(base_directory))
    shelf = ImageShelf(image, decoded_bytes) if image else None
    texts = TextFitter(None if shelf else BaseTokenizer.load(base_directory, generates=False), spec.data)

    def fits(row: DatasetRow) -> bool:
        go_on(stop)
        return texts.fits(*_text_of(row))

    rows: JobRows[DatasetRow] = read_job_rows(
        kind,
        train_path,
        eval_path,
        holdout_fraction=spec.data.holdout_fraction,
        seed=spec.optimization.seed,
        fits=fits,
    )
    head = _head(spec, kind, rows.classes, pooling)
    encoding = _Encoding(head, texts, shelf)
    lines = zip(rows.train_lines, rows.train, strict=True)
    train = encoding.examples(until_stopped(lines, stop), "line", 0)
    lines = zip(rows.held_out_lines, rows.held_out, strict=True)
    heldout = encoding.examples(
        until_stopped(lines, stop), "eval_dataset line" if eval_path else "line", len(train)
    )
    encoding.faults.refuse()
    if eval_path is not None:
        refuse_none_held_out(heldout, rows.dropped_held_out, spec.data.max_row_tokens)
    weights = label_weights(spec.classification, head, [example.targets for example in train])
    report = data_report(
        [_counted(example) for example in train],
        [_counted(example) for example in heldout],
        # A row has one text.
        truncated_rows=texts.truncated_texts,
        dropped_rows=rows.dropped,
    )
    # An image has no length that anything is cut to.
    row_tokens = (example.whole_tokens for example in train if example.image is None)
    report = with_rows(report, rows.train, rows.held_out, row_tokens)
    if encoding.lost_words:
        warning = (
            f"of {encoding.lost_words} words the tokenizer makes no token of their own, so their tags are neither trained "
            "nor evaluated; leave out words of invisible characters alone"
        )
        report = report.model_copy(update={"warnings": (*report.warnings, warning)})
    return HeadData(train, heldout, head, weights, report)


def _counted(example: Example) -> EncodedRow:
    # Images have one token each; told apart by what they show, so that repeated ones are counted.
    ids = [example.image.content] if example.image else list(example.token_ids)
    return EncodedRow(ids, [True] * len(ids))


def _head(spec: TrainSpec, kind: type[DatasetRow], classes: tuple[str, ...], usual: Pooling) -> Head:
    problem = Problem.SINGLE_LABEL
    if kind is MultiLabelText:
        problem = Problem.MULTI_LABEL
    elif kind is ScoredText:
        problem = Problem.REGRESSION
    if problem is not Problem.REGRESSION and len(classes) < 2:
        raise InvalidData(
            f"the rows have {len(classes)} different labels; a head tells at least 2 apart: add rows of others"
        )
    pooling = (spec.head.pooling or usual) if kind in {LabelledText, MultiLabelText, ScoredText} else None
    return Head(task=spec.task, problem=problem, labels=classes, pooling=pooling)


class _Encoding:
    """Encodes rows and remembers what is wrong with them."""

    def __init__(self, head: Head, texts: TextFitter, images: ImageShelf | None) -> None:
        self._images, self._texts = images, texts
        self._place = {label: place for place, label in enumerate(head.labels)}
        self.faults = RowFaults()
        self.lost_words = 0
        """Of the rows that can be used, those of which the tokenizer makes no token."""

    def examples(self, rows: Iterable[tuple[int, DatasetRow]], where: str, first: int) -> tuple[Example, ...]:
        """The rows that can be used, numbered from `first` on; each comes with its line in the file that `where` names."""
        found: list[Example] = []
        for line, row in rows:
            try:
                found.append(self._example(row, first + len(found)))
            except (InvalidData, InvalidField) as error:
                self.faults.add(f"{where} {line}", error.message)
        return tuple(found)

    def _example(self, row: DatasetRow, number: int) -> Example:
        match row:
            case LabelledImage(image, label):
                return self._of_image(image, number, self._index(label))
            case LabelledTokens(tokens, tags):
                return self._of_tokens(tokens, tags, number)
            case LabelledText(text, label, pair):
                return self._of_text(text, pair, number, lambda: (self._index(label),))
            case MultiLabelText(text, labels, pair):
                return self._of_text(text, pair, number, lambda: self._flags(labels))
            case ScoredText(text, score, pair):
                return self._of_text(text, pair, number, lambda: (_number(score),))
            case _:
                raise InvalidData("has no label")

    def _index(self, label: str) -> float:
        return float(self._place[label])

    def _flags(self, labels: Sequence[str]) -> tuple[float, ...]:
        return tuple(float(label in labels) for label in self._place)

    def _of_image(self, data: bytes, number: int, target: float) -> Example:
        if self._images is None:
            raise InvalidData("is an image; this base takes text")
        return Example(number, (0,), (target,), image=self._images.take(data), shown=f"image {number}")

    def _of_text(
        self, text: str, pair: str, number: int, targets: Callable[[], tuple[float, ...]]
    ) -> Example:
        fitted = self._texts.fitted(text, pair or None)
        return Example(
            number,
            fitted.encoded.token_ids,
            targets(),
            second_start=fitted.encoded.second_start,
            shown=f"{text} | {pair}" if pair else text,
            whole_tokens=fitted.whole_tokens,
        )

    def _of_tokens(self, tokens: Sequence[str], tags: Sequence[str], number: int) -> Example:
        text = " ".join(tokens)
        fitted = self._texts.fitted(text)
        encoded = fitted.encoded
        spans = list(_spans(tokens))
        answers = zip(places_of(spans, encoded, text), tags, strict=True)
        tagged = [(place, self._index(tag)) for place, tag in answers if place is not None]
        if not tagged:
            raise InvalidData("has no word of which the tokenizer makes a token")
        # Not those that were cut away with the end of a long row.
        self.lost_words += places_of(spans, fitted.whole, text).count(None)
        return Example(
            number,
            encoded.token_ids,
            tuple(target for _, target in tagged),
            tuple(place for place, _ in tagged),
            shown=text,
            whole_tokens=fitted.whole_tokens,
        )


def _text_of(row: DatasetRow) -> tuple[str, str | None]:
    """A row's text, and the other one of a pair; an image has none."""
    match row:
        case LabelledTokens(tokens, _):
            return " ".join(tokens), None
        case LabelledText(text, _, pair) | MultiLabelText(text, _, pair) | ScoredText(text, _, pair):
            return text, pair or None
        case _:
            return "", None


def _number(score: float) -> float:
    if abs(score) > MOST_SCORE:
        raise InvalidData(
            f"has the score {score:g}; a head tells numbers up to {MOST_SCORE:.1e}: give them in another unit"
        )
    return score


def _spans(tokens: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where each word begins and ends in the text that joins them by spaces."""
    place = 0
    for token in tokens:
        yield place, place + len(token)
        place += len(token) + 1
