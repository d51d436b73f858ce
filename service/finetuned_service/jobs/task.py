"""What a worker hands to the process that runs one job, and what that process reports back.

The job process knows no database and no gRPC. It reads one task as JSON from a file, writes one
report as a JSON line for everything that happens, and leaves its files in `output_directory`.
SIGTERM asks it to write a checkpoint and exit with `EXIT_STOPPED`; it may be killed at any byte
and is started again with the same task.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from finetuned_service.bases.lender import Lender
from finetuned_service.bases.shared_tensor import SharedTensor
from finetuned_service.jobs.events import (
    Checkpoint,
    Environment,
    Estimate,
    EvaluationFinished,
    Notice,
    Overfitting,
    Progress,
    Usage,
)
from finetuned_service.jobs.specs import QuantizeSpec, TrainSpec
from finetuned_service.jobs.states import Fault
from finetuned_service.jobs.values import EvaluationSample, QuantizeReport
from finetuned_service.vocabulary import ConfusionMatrix, DataReport, Metric, Value

TASK_FILE = "task.json"
"""In the job's directory; the one of the last attempt."""

TENSORBOARD = "tensorboard"
"""In the job's directory: event files of all its attempts."""

LAST_GOOD = "last-good"
"""In the job's directory: the adapter of its last good checkpoint, where its loss diverged."""

EXIT_FINISHED = 0
"""A `TrainFinished` or `QuantizeFinished` was reported."""
EXIT_FAILED = 1
"""A `Failed` or `Suspended` was reported."""
EXIT_STOPPED = 75
"""Stopped on SIGTERM with its state kept; run it again to go on (EX_TEMPFAIL of sysexits.h)."""


class TaskLimits(Value):
    """What the process must not exceed; applied and verified by itself at start."""

    threads: int
    memory_budget_bytes: int
    """Private memory (not the shared pages of the base) above which it stops itself."""
    checkpoint_bytes: int = 16 * 2**30
    """Disk space of the checkpoints that one job keeps."""
    reserved_disk_bytes: int = 0
    """Of the disk, which stay free whatever the process writes; see `jobs/room.py`."""
    device_budget_bytes: int = 0
    """GPU memory that the process may allocate; 0 is what is there."""
    yield_to_serving: bool = True
    """Run under SCHED_IDLE."""


class TrainTask(Value):
    kind: Literal["train"] = "train"
    job_name: str
    attempt: int
    spec: TrainSpec
    """Resolved: no None left in it but `promote_if` and its minimum."""
    micro_batch_rows: int = 0
    """Rows that run at once, where that is fewer than the spec says; 0 is as it says. Changes no result but
    for rounding, so that a checkpoint may be resumed with another number."""
    probe_steps: int = 0
    """Typical steps that are measured and undone before the first one, besides the largest; 0 measures none."""
    pause_after_estimate: bool = False
    """Measure, and end before the first step; `Suspended` says so."""
    base_directory: str
    base_digest: str
    train_path: str
    """Canonical rows, one JSON object a line."""
    train_digest: str
    eval_path: str = ""
    """Canonical rows; empty takes `spec.data.holdout_fraction` of the training rows."""
    eval_digest: str = ""
    start_directory: str = ""
    """The adapter, in PEFT's layout, that training goes on from; empty starts from the base alone."""
    incumbent_directory: str = ""
    """The adapter that `promote_if` compares with, in PEFT's layout; empty if there is none."""
    work_directory: str
    """Checkpoints; private to the job, kept between attempts."""
    device: str = "cpu"
    """As `Settings.device`."""
    resident: tuple[SharedTensor, ...] = ()
    """The base as the server beside it holds it on that GPU; empty loads a copy of its own."""
    lender: Lender | None = None
    """The process that holds `resident`; once it has ended, nothing that the job computes is worth anything."""
    cache_directory: str = ""
    """Where compiled code is kept; empty is the user's cache directory."""
    output_directory: str
    """Where adapter_config.json and adapter_model.safetensors go; absent until the end."""
    last_good_directory: str = ""
    """Where the adapter of the last good checkpoint goes when the loss diverges; empty keeps none."""
    log_directory: str = ""
    """Where TensorBoard's event files go; they stay. Empty writes none."""
    limits: TaskLimits


class QuantizeTask(Value):
    kind: Literal["quantize"] = "quantize"
    job_name: str
    attempt: int
    spec: QuantizeSpec
    base_directory: str
    base_digest: str
    text_path: str = ""
    """Canonical rows whose texts are measured; empty takes the built-in text."""
    work_directory: str
    output_directory: str
    """Where the new base's files go; absent until the end."""
    limits: TaskLimits


JobTask = Annotated[TrainTask | QuantizeTask, Field(discriminator="kind")]


class Prepared(Value):
    """The data was read and the run is about to begin."""

    kind: Literal["prepared"] = "prepared"
    environment: Environment
    estimate: Estimate | None = None
    data_report: DataReport | None = None


class Estimated(Value):
    """What the job will take was measured."""

    kind: Literal["estimated"] = "estimated"
    estimate: Estimate


class TrainFinished(Value):
    """The best checkpoint lies in `output_directory`."""

    kind: Literal["train_finished"] = "train_finished"
    metrics: tuple[Metric, ...]
    baseline_metrics: tuple[Metric, ...] = ()
    incumbent_metrics: tuple[Metric, ...] = ()
    samples: tuple[EvaluationSample, ...] = ()
    stopped_early: bool = False
    step: int = 0
    """How many optimiser steps it was trained for, by all attempts."""
    confusion: ConfusionMatrix | None = None
    """Of the adapter."""


class QuantizeFinished(Value):
    """The new base lies in `output_directory`, unless the quality gate failed (`accepted`)."""

    kind: Literal["quantize_finished"] = "quantize_finished"
    report: QuantizeReport
    accepted: bool


class Failed(Value):
    kind: Literal["failed"] = "failed"
    error: dict[str, Any]
    """`FinetunedError.to_wire`; for faults of ours an Internal."""
    fault: Fault


class Suspended(Value):
    """The process does not go on now, through no fault of the job's; what it has kept is whole."""

    kind: Literal["suspended"] = "suspended"
    reason: Literal["DISK_FULL", "ESTIMATED", "ENGINE_ENDED"]
    text: str
    disk_bytes_wanted: int = 0
    """Beyond what must stay free; 0 where a write has failed, and nobody knows what it would have taken."""


Report = Annotated[
    Progress
    | Checkpoint
    | EvaluationFinished
    | Notice
    | Prepared
    | TrainFinished
    | QuantizeFinished
    | Overfitting
    | Estimated
    | Usage
    | Failed
    | Suspended,
    Field(discriminator="kind"),
]

TASKS: TypeAdapter[TrainTask | QuantizeTask] = TypeAdapter(JobTask)
REPORTS: TypeAdapter[Any] = TypeAdapter(Report)
