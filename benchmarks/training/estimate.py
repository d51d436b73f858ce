"""How far a job's own estimate is off: small TrainJobs of several methods and bases, one at a time, through real servers.

What a job is expected to take is measured in its first seconds (`training/probe.py`); what it took is known at its end.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuned import (
    Bottleneck,
    Client,
    DataOptions,
    EstimateBasis,
    EvaluationOptions,
    Full,
    Head,
    JobUsage,
    Layers,
    Lora,
    Optimization,
    Task,
)

from benchmarks.figures import Figure, single
from benchmarks.quality.bases import base
from benchmarks.quality.rows import rows_of
from examples.demo.server import running_server

HOME = Path("build/bench/estimate")
TEST_ROWS = 40
WAIT_SECONDS = 300.0
_WRITTEN: Mapping[str, Any] = {
    "optimization": Optimization(max_steps=24),
    "data": DataOptions(holdout_fraction=0.05),
    "evaluation": EvaluationOptions(early_stopping_patience=0, generation_rows=8, generation_max_tokens=32),
}
_PATIENT: Mapping[str, Any] = {"evaluation": EvaluationOptions(early_stopping_patience=0)}
"""Early stopping ends a job before what was estimated; all else is as a user gets it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A TrainJob."""

    name: str
    base: str
    study: str
    """Whose rows it trains on; see `quality/rows.py`."""
    settings: Mapping[str, Any]


TRIALS = (
    Trial("lora, text", "smollm2", "redaction", {**_WRITTEN, "lora": Lora()}),
    Trial("layers, text", "smollm2", "redaction", {**_WRITTEN, "layers": Layers(last=4)}),
    Trial("preferences", "smollm2", "preferences", {**_WRITTEN, "lora": Lora()}),
    Trial(
        "head, classes", "minilm", "intents", {**_PATIENT, "task": Task.TEXT_CLASSIFICATION, "head": Head()}
    ),
    Trial("lora, classes", "minilm", "intents", {**_PATIENT, "task": Task.TEXT_CLASSIFICATION}),
    Trial(
        "bottleneck, tags",
        "minilm",
        "personal_data",
        {**_PATIENT, "task": Task.TOKEN_CLASSIFICATION, "bottleneck": Bottleneck()},
    ),
    Trial("lora, vectors", "minilm", "commands", {**_PATIENT, "task": Task.FEATURE_EXTRACTION}),
    Trial("lora, images", "digits", "digits", {**_PATIENT, "task": Task.IMAGE_CLASSIFICATION}),
    Trial(
        "full, images", "digits", "digits", {**_PATIENT, "task": Task.IMAGE_CLASSIFICATION, "full": Full()}
    ),
)


def estimate(*, quick: bool) -> Iterator[Figure]:
    """Of memory and of time: |estimated / used - 1| over the jobs, their median, and the worst as its maximum.

    Raises:
        RuntimeError: a job failed, or did not measure itself.
    """
    bases = dict.fromkeys(trial.base for trial in TRIALS)
    found: dict[str, JobUsage] = {}
    for name in bases:
        trials = [trial for trial in TRIALS if trial.base == name]
        found |= _used(name, trials[:1] if quick else trials)
    yield estimate_figure(
        "estimate_memory_error", {name: usage.memory_error for name, usage in found.items()}
    )
    yield estimate_figure(
        "estimate_time_error", {name: usage.duration_error for name, usage in found.items()}
    )


def _used(name: str, trials: list[Trial]) -> dict[str, JobUsage]:
    """What each job took, by the trials' names."""
    data = HOME / name
    shutil.rmtree(data, ignore_errors=True)
    used: dict[str, JobUsage] = {}
    with (
        running_server(data, "--base", str(base(name))) as server,
        Client(server.endpoint) as client,
    ):
        for study in dict.fromkeys(trial.study for trial in trials):
            client.datasets.upload(rows_of(study, TEST_ROWS).train, study.replace("_", "-"))
        for trial in trials:
            dataset = trial.study.replace("_", "-")
            started = client.train(dataset=dataset, adapter="trial", **trial.settings)
            job = client.jobs.wait(started.name, timeout_seconds=WAIT_SECONDS).check()
            if job.usage is None or job.estimate is None or job.estimate.basis is not EstimateBasis.MEASURED:
                raise RuntimeError(f"{trial.name}: the job has not measured itself")
            used[trial.name] = job.usage
    return used


def estimate_figure(figure: str, errors: Mapping[str, float | None]) -> Figure:
    """Of the errors of all jobs by their names: the median of their sizes, and the worst as its maximum.

    Raises:
        RuntimeError: a job has none.
    """
    known = {name: error for name, error in errors.items() if error is not None}
    if missing := errors.keys() - known.keys():
        raise RuntimeError(f"{figure}: nothing to compare for {', '.join(sorted(missing))}")
    told = ", ".join(f"{name} {error:+.0%}" for name, error in known.items())
    return single(figure, "of what was used", [abs(error) for error in known.values()], note=told)
