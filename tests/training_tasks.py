"""A tiny base with a tokenizer, rows that it can learn in a few steps, and TrainTasks on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from finetuned_service.bases.manifest import describe_base, write_manifest
from finetuned_service.jobs.events import Progress
from finetuned_service.jobs.methods import BaseFacts
from finetuned_service.jobs.process import environment_for_job_process
from finetuned_service.jobs.resolve import resolve_train
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.task import REPORTS, TaskLimits, TrainTask
from finetuned_service.names import BaseName
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.vocabulary import Value, WeightFormat
from on_device import DEVICE
from tiny_models import save_tiny_base
from tiny_tokenizers import write_tokenizer

T = TypeVar("T", bound=Value)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def make_base(directory: Path, *, dtype: torch.dtype = torch.float32, head_dim: int = 8) -> Path:
    """A base as the service stores it: random weights, a byte-level tokenizer with ChatML, base.json.

    In bfloat16 and with heads of 16 its layers train fused.
    """
    write_tokenizer(directory)
    vocabulary = BaseTokenizer.load(directory).vocabulary_size
    save_tiny_base(
        directory, dtype=dtype, vocab_size=vocabulary, max_position_embeddings=512, head_dim=head_dim
    )
    weight_format = WeightFormat.BF16 if dtype is torch.bfloat16 else WeightFormat.FP32
    manifest = describe_base(
        directory, name=BaseName.parse("bases/tiny"), weight_format=weight_format, source="random"
    )
    write_manifest(directory, manifest)
    return directory


def counting_rows(first: int, last: int) -> list[dict[str, str]]:
    """Numbers to be spelled digit by digit."""
    return [
        {"prompt": f"say {n}", "completion": " ".join(NUMBERS[int(digit)] for digit in str(n))}
        for n in range(first, last)
    ]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    return path


def make_task(
    directory: Path,
    base: Path,
    *,
    train: Sequence[dict[str, Any]] | None = None,
    heldout: Sequence[dict[str, Any]] | None = None,
    memory_budget_bytes: int = 8 * 10**9,
    incumbent: Path | None = None,
    **spec: Any,
) -> TrainTask:
    """A resolved task of its own directory; `spec` holds the parts of a TrainSpec."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = counting_rows(0, 24) if train is None else train
    train_path = write_rows(directory / "train.jsonl", rows)
    eval_path = "" if heldout is None else str(write_rows(directory / "heldout.jsonl", heldout))
    settings = {"optimization": {"max_steps": 6, "batch_rows": 4, "learning_rate": 1e-2}, **spec}
    wanted = TrainSpec.model_validate(
        {
            "dataset": "tenants/t/datasets/rows",
            "eval_dataset": "tenants/t/datasets/heldout" if eval_path else "",
            "adapter": "tenants/t/adapters/counting",
            "base": "bases/tiny",
            **settings,
        }
    )
    (directory / "work").mkdir(exist_ok=True)
    return TrainTask(
        job_name="tenants/t/jobs/j",
        attempt=1,
        spec=resolve_train(wanted, base=BaseFacts.of_directory(base), train_rows=len(rows)),
        base_directory=str(base),
        base_digest="sha256:" + "0" * 64,
        train_path=str(train_path),
        train_digest="sha256:" + "1" * 64,
        eval_path=eval_path,
        eval_digest="sha256:" + "2" * 64 if eval_path else "",
        incumbent_directory=str(incumbent or ""),
        device=DEVICE,
        work_directory=str(directory / "work"),
        output_directory=str(directory / "output"),
        limits=TaskLimits(threads=1, memory_budget_bytes=memory_budget_bytes),
    )


@dataclass(slots=True)
class Reports:
    """Takes reports like a job process's standard output, and sorts them."""

    all: list[Value] = field(default_factory=list)

    def __call__(self, report: Value) -> None:
        self.all.append(report)

    def of(self, kind: type[T]) -> list[T]:
        return [report for report in self.all if isinstance(report, kind)]


@dataclass(slots=True)
class StopAfter:
    """Reports and stop flag in one: set once `steps` training steps were reported, or a phase began."""

    steps: int = 10**9
    phase: str = ""
    reports: Reports = field(default_factory=Reports)

    def __call__(self, report: Value) -> None:
        self.reports(report)

    def is_set(self) -> bool:
        progress = self.reports.of(Progress)
        return any(p.phase == self.phase for p in progress) or (
            sum(p.phase == "training" for p in progress) >= self.steps
        )


@dataclass(slots=True)
class SetAfter:
    """A stop flag that is set once it was asked so many times."""

    questions: int

    def is_set(self) -> bool:
        self.questions -= 1
        return self.questions < 0


def start_process(task: TrainTask, directory: Path, **environment: str) -> subprocess.Popen[bytes]:
    """The task in a process of its own, as the dispatcher starts it."""
    path = directory / "task.json"
    path.write_text(task.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-m", "finetuned_service.training", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment_for_job_process(task.limits.threads), **environment},
    )


def parse_reports(output: bytes) -> Reports:
    return Reports([REPORTS.validate_json(line) for line in output.splitlines()])
