"""What a TrainJob will take, before anything of it runs: by arithmetic, and by what an earlier job like it took."""

from __future__ import annotations

from pathlib import Path

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.family import width_of
from finetuned_service.bases.manifest import WEIGHTS_FILE, read_config
from finetuned_service.errors import ResourceExhausted
from finetuned_service.jobs.events import Estimate, EstimateBasis
from finetuned_service.jobs.methods import adapter_elements
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.values import Job, TrainResult
from finetuned_service.vocabulary import DataReport, Method, Task

RUNTIME_BYTES = 280_000_000
"""Python with torch and transformers on two threads, before any weight is read: measured were 326 MB, and no job has
less."""
_STATE_BYTES = 4 * 4
"""Of each number that trains: itself, its gradient and two moments of AdamW, in 32 bits."""
_ACTIVATION_BYTES = 2
"""Of each number that a layer keeps: 16 bits."""
_LIKE_TOKENS = 3.0
"""An earlier job tells of one with at most so many times its tokens, or as few: of a trial's two steps little was training."""


def estimate_train(
    spec: TrainSpec, base_directory: Path, report: DataReport, budget_bytes: int, earlier: Job | None = None
) -> Estimate:
    """The least memory that sizes ask for, and the time of an earlier job, scaled by tokens.

    Args:
        spec: resolved.
        base_directory: of the base.
        report: on the rows.
        budget_bytes: what the job may hold; 0 when unknown.
        earlier: the newest that `is_like` it; None if there is none.
    """
    steps = spec.optimization.max_steps or 0
    tokens = round(steps * spec.optimization.batch_rows * report.train_tokens / max(1, report.train_rows))
    least_bytes = RUNTIME_BYTES + _STATE_BYTES * adapter_elements(spec, base_directory)
    if spec.task is Task.TEXT_GENERATION:
        # With activations checkpointed, each layer from the first that trains keeps its input alone, of one row at least.
        geometry, width = BaseGeometry.of_files(base_directory), width_of(read_config(base_directory))
        longest = min(report.longest_row_tokens, spec.data.max_row_tokens or report.longest_row_tokens)
        least_bytes += _ACTIVATION_BYTES * longest * width * _kept_layers(spec, len(geometry.layers))
    estimate = Estimate(
        steps=steps,
        tokens=tokens,
        memory_bytes=least_bytes,
        basis=EstimateBasis.ARITHMETIC,
        runtime_memory_bytes=RUNTIME_BYTES,
        base_memory_bytes=(base_directory / WEIGHTS_FILE).stat().st_size,
        memory_budget_bytes=budget_bytes,
    )
    refuse_over_budget(estimate)
    if earlier is None or earlier.usage is None or earlier.estimate is None:
        return estimate
    if not 1 / _LIKE_TOKENS <= tokens / earlier.estimate.tokens <= _LIKE_TOKENS:
        return estimate
    seconds_per_token = earlier.usage.duration_seconds / earlier.estimate.tokens
    found = {
        "memory_bytes": max(least_bytes, earlier.usage.memory_bytes),
        "duration_seconds": seconds_per_token * tokens,
        "basis": EstimateBasis.EARLIER_JOB,
    }
    return estimate.model_copy(update=found)


def _kept_layers(spec: TrainSpec, layers: int) -> int:
    """Layers of a decoder that keep something for the gradient, at least."""
    if spec.method is Method.HEAD:
        return 0
    if spec.method is Method.LAYERS:
        return 0 if spec.layers.modules else layers - min(spec.layers.layers, default=layers)
    chosen = (*spec.lora.target_modules, *spec.ia3.target_modules, *spec.bottleneck.target_modules)
    by_number = any(part.isdigit() for name in chosen for part in name.split("."))
    return 0 if by_number else layers  # which is the first of them is not worth looking for


def is_like(job: Job, spec: TrainSpec) -> bool:
    """Whether what a job that succeeded has taken tells what one of this resolved spec will take."""
    done = job.spec
    if not isinstance(done, TrainSpec) or job.usage is None or job.estimate is None:
        return False
    whole = isinstance(job.result, TrainResult) and not job.result.stopped_early
    same = all(getattr(done, name) == getattr(spec, name) for name in ("base", "method", "task", "objective"))
    batch = done.optimization.batch_rows == spec.optimization.batch_rows
    return whole and same and batch and job.estimate.tokens > 0 and job.usage.memory_bytes > 0


def refuse_over_budget(estimate: Estimate) -> None:
    """Refuse a job that cannot fit; a budget of 0 is not known.

    Raises:
        ResourceExhausted: with both figures.
    """
    allowed_bytes = estimate.memory_budget_bytes
    if not allowed_bytes or estimate.memory_bytes <= allowed_bytes:
        return
    measured = estimate.basis is EstimateBasis.MEASURED
    amount, how = ("about", "measured at its largest step") if measured else ("at least", "by its sizes")
    # By its sizes it has one row at a time already, and keeps no more than it must.
    remedy = (
        "Lower spec.optimization.micro_batch_rows or spec.data.max_row_tokens, turn "
        "spec.optimization.activation_checkpointing on where the base generates text, or train fewer parameters"
        if measured
        else "Train fewer parameters, or lower spec.data.max_row_tokens where the base generates text"
    )
    raise ResourceExhausted(
        f"the job needs {amount} {estimate.memory_bytes / 1e6:,.0f} MB of memory of its own, {how} "
        f"({estimate.runtime_memory_bytes / 1e6:,.0f} MB of it are interpreter and libraries); allowed: "
        f"{allowed_bytes / 1e6:,.0f} MB (job_memory_bytes). {remedy}",
        metadata={"memory_bytes": str(estimate.memory_bytes), "memory_budget_bytes": str(allowed_bytes)},
    )
