"""The forgetting check: perplexity on general text before and after, as plain transformers and PEFT measure it."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
import torch
from finetuned_service.jobs.events import Notice
from finetuned_service.jobs.task import EXIT_FINISHED, TrainFinished
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.training.forgetting import GENERAL_PERPLEXITY, forgotten, general_rows
from finetuned_service.training.run import run
from finetuned_service.vocabulary import Metric
from peft import PeftModel
from tiny_models import load_plain
from training_tasks import Reports, counting_rows, make_base, make_task


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def plain_perplexity(model: torch.nn.Module, windows: list[list[int]]) -> float:
    """By transformers' own loss, a mean over the tokens of one window."""
    nats = tokens = 0.0
    for window in windows:
        ids = torch.tensor([window])
        with torch.no_grad():
            nats += model(input_ids=ids, labels=ids).loss.item() * (len(window) - 1)
        tokens += len(window) - 1
    return math.exp(nats / tokens)


def value(metrics: tuple[Metric, ...]) -> float:
    (found,) = [metric.value for metric in metrics if metric.name == GENERAL_PERPLEXITY]
    return found


def test_perplexity_before_and_after_is_that_of_plain_transformers_and_peft(tmp_path):
    base = make_base(tmp_path / "base")
    task = make_task(
        tmp_path,
        base,
        heldout=counting_rows(24, 27),
        optimization={"max_steps": 30, "batch_rows": 4, "learning_rate": 0.1},
        evaluation={"evaluations": 0, "generation_rows": 0},
    )
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    (finished,) = reports.of(TrainFinished)
    windows = [row.token_ids for row in general_rows(BaseTokenizer.load(base), 512)]
    assert sum(map(len, windows)) >= 2048
    before = plain_perplexity(load_plain(base), windows)
    after = plain_perplexity(
        PeftModel.from_pretrained(load_plain(base), task.output_directory).eval(), windows
    )
    assert value(finished.baseline_metrics) == pytest.approx(before, rel=1e-3)
    assert value(finished.metrics) == pytest.approx(after, rel=1e-3)
    told = [notice for notice in reports.of(Notice) if "has forgotten" in notice.text]
    assert [notice.severity for notice in told] == ["WARNING"] * (after > 1.1 * before)


def test_a_rise_of_more_than_a_tenth_is_told():
    def metrics(*values: float) -> list[Metric]:
        return [Metric(name=GENERAL_PERPLEXITY, value=value, higher_is_better=False) for value in values]

    assert forgotten(metrics(10.0), metrics(11.0)) is None
    assert forgotten((), metrics(11.0)) is None
    notice = forgotten(metrics(10.0), metrics(12.5))
    assert notice is not None
    assert notice.text.startswith("the perplexity on general text rose from 10.00 to 12.50, by 25%: ")


def test_windows_fit_the_context_and_score_all_but_their_first_id(tmp_path):
    tokenizer = BaseTokenizer.load(Path(make_base(tmp_path / "base")))
    rows = general_rows(tokenizer, 100)
    assert {len(row.token_ids) for row in rows[:-1]} == {100}
    assert all(row.supervised[0] is False and all(row.supervised[1:]) for row in rows)
