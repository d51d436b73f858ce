"""Held-out rows that are all too long: refused where they were given, told where they were drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetuned_service.errors import InvalidData
from finetuned_service.training.preview import RowPreview
from finetuned_service.vocabulary import DataReport
from tiny_encoders import make_encoder_base
from training_tasks import counting_rows, make_base, make_task

MOODS = [{"text": f"the {word} {animal}", "label": word} for word in ("good", "bad") for animal in "abcdefgh"]
LONG = "cat " * 60
LORA = {"method": "LORA"}
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "sft": (counting_rows(0, 8), {"prompt": "say 1", "completion": LONG}, LORA),
    "nothing supervised is left": (
        counting_rows(0, 8),
        {"prompt": LONG, "completion": "one"},
        {**LORA, "data": {"long_rows": "TRUNCATE", "max_row_tokens": 40}},
    ),
    "preferences": (
        [{"prompt": f"open {n}", "chosen": "yes", "rejected": "no"} for n in range(8)],
        {"prompt": "open 9", "chosen": LONG, "rejected": "no"},
        {**LORA, "objective": "DPO"},
    ),
    "classes": (
        MOODS,
        {"text": LONG, "label": "good"},
        {**LORA, "task": "text-classification"},
    ),
    "numbers": (
        [{"text": row["text"], "score": float(n)} for n, row in enumerate(MOODS)],
        {"text": LONG, "score": 2.0},
        {**LORA, "task": "text-classification"},
    ),
    "vectors": (
        [{"anchor": f"the {n}", "positive": f"a {n}"} for n in "abcdefgh"],
        {"anchor": LONG, "positive": "a cat"},
        {**LORA, "task": "feature-extraction"},
    ),
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_base(tmp_path_factory.mktemp("bases") / "tiny")


class OneBase:
    """A catalog of one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, _: object) -> Path:
        return self._directory


def preview(directory: Path, base: Path, **settings: Any) -> DataReport:
    task = make_task(directory, base, **settings)
    catalog: Any = OneBase(base)
    return RowPreview(catalog)(
        task.spec, Path(task.train_path), Path(task.eval_path) if task.eval_path else None
    )


@pytest.mark.parametrize("case", CASES)
def test_an_eval_dataset_of_which_nothing_is_left_is_refused(
    decoder: Path, encoder: Path, tmp_path: Path, case: str
) -> None:
    rows, long, settings = CASES[case]
    settings = {"data": {"long_rows": "DROP", "max_row_tokens": 40}, **settings}
    base = encoder if "task" in settings else decoder
    # One that is too long to train on is not counted among them.
    made: dict[str, Any] = {"train": [*rows, long], **settings}
    second = {**long, "label": "bad"} if "label" in long else long
    with pytest.raises(
        InvalidData,
        match=r"eval_dataset: all 2 rows are longer than max_row_tokens \(40\) and long_rows leaves them out, so "
        r"nothing would be evaluated; raise max_row_tokens, shorten the rows, or unset eval_dataset",
    ):
        preview(tmp_path / "none", base, heldout=[long, second], **made)
    report = preview(tmp_path / "some", base, heldout=[*rows[:1], *rows[-1:], long], **made)
    assert (report.eval_rows, report.dropped_rows) == (2, 2)


def test_nothing_left_to_train_on_counts_the_training_rows(decoder: Path, tmp_path: Path) -> None:
    long = {"prompt": "say 1", "completion": LONG}
    options = {"long_rows": "DROP", "max_row_tokens": 40}
    with pytest.raises(InvalidData, match=r"^all 1 rows are longer than max_row_tokens \(40\)"):
        preview(tmp_path, decoder, train=[long], heldout=[long, long], data=options, **LORA)


def test_rows_are_held_out_of_those_that_fit(encoder: Path, tmp_path: Path) -> None:
    # Of each label there are two different rows, and one is held out.
    rows = [{"text": f"{word} {LONG}{n}", "label": word} for word in ("good", "bad") for n in "ab"]
    short = [{"text": row["text"][:9] + str(n), "label": row["label"]} for n, row in enumerate(rows)]
    settings: dict[str, Any] = {"task": "text-classification", **LORA}
    options = {"long_rows": "DROP", "max_row_tokens": 40}
    for seed in range(8):
        report = preview(
            tmp_path / str(seed),
            encoder,
            train=[*rows, *short],
            data={**options, "holdout_fraction": 0.2},
            optimization={"seed": seed},
            **settings,
        )
        assert (report.train_rows, report.eval_rows, report.dropped_rows) == (2, 2, 4)
        assert [count.count for count in report.train_labels] == [1, 1]
    none = preview(
        tmp_path / "none", encoder, train=MOODS, data={**options, "holdout_fraction": 0}, **settings
    )
    assert none.warnings == ()


def test_a_label_of_which_no_row_fits_is_refused(encoder: Path, tmp_path: Path) -> None:
    rare = [{"text": f"{LONG}{n}", "label": "rare"} for n in range(4)]
    settings: dict[str, Any] = {"task": "text-classification", **LORA}
    with pytest.raises(
        InvalidData, match="the label 'rare' has no row left: all of them are longer than max_row_tokens"
    ):
        preview(
            tmp_path,
            encoder,
            train=[*MOODS, *rare],
            data={"long_rows": "DROP", "max_row_tokens": 40},
            **settings,
        )


def test_lengths_are_told_before_anything_is_cut(encoder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{word} {LONG}{n}", "label": word} for word in ("good", "bad") for n in "abc"]
    settings: dict[str, Any] = {"task": "text-classification", **LORA}
    found = [
        preview(
            tmp_path / str(most),
            encoder,
            train=rows,
            data={"long_rows": "TRUNCATE", "max_row_tokens": most},
            **settings,
        )
        for most in (16, 40)
    ]
    assert found[0].row_tokens == found[1].row_tokens
    assert found[0].row_tokens.median > 40
