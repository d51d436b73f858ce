"""What a TrainJob will take, before anything of it runs: by arithmetic, and by what an earlier job like it took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.family import width_of
from finetuned_service.bases.inputs import base_inputs
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
DECODED_IMAGES_BYTES = 128 * 1024 * 1024
"""Images that a job keeps decoded between its steps take no more, a byte for each value; others are decoded each time."""
_LIKE_TOKENS = 3.0
"""An earlier job tells of one with at most so many times its tokens, or as few: of a trial's two steps little was training."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a job may hold; 0 is not known."""

    memory_bytes: int = 0
    device_bytes: int = 0
    """Of a GPU."""
    on_device: bool = False
    """It trains on a GPU: all but interpreter and libraries is there."""


NO_BUDGET = Budget()


def estimate_train(
    spec: TrainSpec,
    base_directory: Path,
    report: DataReport,
    budget: Budget = NO_BUDGET,
    earlier: Job | None = None,
) -> Estimate:
    """The least memory that sizes ask for, and the time of an earlier job, scaled by tokens.

    Args:
        spec: resolved.
        base_directory: of the base.
        report: on the rows.
        budget: of the server that runs it.
        earlier: the newest that `is_like` it; None if there is none.
    """
    steps = spec.optimization.max_steps or 0
    tokens = round(steps * spec.optimization.batch_rows * report.train_tokens / max(1, report.train_rows))
    trained_bytes = _STATE_BYTES * adapter_elements(spec, base_directory)
    if spec.task is Task.TEXT_GENERATION:
        # With activations checkpointed, each layer from the first that trains keeps its input alone, of one row at least.
        geometry, width = BaseGeometry.of_files(base_directory), width_of(read_config(base_directory))
        longest = min(report.longest_row_tokens, spec.data.max_row_tokens or report.longest_row_tokens)
        trained_bytes += _ACTIVATION_BYTES * longest * width * _kept_layers(spec, len(geometry.layers))
    # A head alone trains on what the base has made of the rows, which comes back to the processor.
    alone = spec.method is Method.HEAD and spec.task is not Task.TEXT_GENERATION
    on_device = budget.on_device and not alone
    least_bytes = RUNTIME_BYTES + (0 if on_device else trained_bytes)
    if spec.task is Task.IMAGE_CLASSIFICATION:
        least_bytes += _images_bytes(base_directory, report)
    estimate = Estimate(
        steps=steps,
        tokens=tokens,
        memory_bytes=least_bytes,
        device_memory_bytes=trained_bytes if on_device else 0,
        basis=EstimateBasis.ARITHMETIC,
        runtime_memory_bytes=RUNTIME_BYTES,
        base_memory_bytes=(base_directory / WEIGHTS_FILE).stat().st_size,
        memory_budget_bytes=budget.memory_bytes,
        device_memory_budget_bytes=budget.device_bytes if budget.on_device else 0,
    )
    refuse_over_budget(estimate)
    if earlier is None or earlier.usage is None or earlier.estimate is None:
        return estimate
    if not 1 / _LIKE_TOKENS <= tokens / earlier.estimate.tokens <= _LIKE_TOKENS:
        return estimate
    seconds_per_token = earlier.usage.duration_seconds / earlier.estimate.tokens
    found = {
        "memory_bytes": max(least_bytes, earlier.usage.memory_bytes),
        "device_memory_bytes": max(estimate.device_memory_bytes, earlier.usage.device_memory_bytes),
        "duration_seconds": seconds_per_token * tokens,
        "basis": EstimateBasis.EARLIER_JOB,
    }
    return estimate.model_copy(update=found)


def _images_bytes(base_directory: Path, report: DataReport) -> int:
    """Of the images that are kept decoded."""
    _, form = base_inputs(read_config(base_directory))
    if form is None:
        return 0
    image_bytes = form.channels * form.height * form.width
    return min(report.train_rows + report.eval_rows, DECODED_IMAGES_BYTES // image_bytes) * image_bytes


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
    by_sizes = estimate.basis is EstimateBasis.ARITHMETIC  # what ran on a GPU has fitted
    if by_sizes and 0 < estimate.device_memory_budget_bytes < estimate.device_memory_bytes:
        raise device_refusal(
            estimate.device_memory_bytes, estimate.device_memory_budget_bytes, "job_device_bytes"
        )
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


def device_refusal(needed_bytes: int, allowed_bytes: int, bound: str) -> ResourceExhausted:
    """The refusal of a job whose parameters, gradients and moments alone are more than a GPU has for it; `bound` says
    what bounds that.
    """
    return ResourceExhausted(
        f"the job needs at least {needed_bytes / 1e6:,.0f} MB of GPU memory, by its sizes: what trains, its gradients and "
        f"its optimizer's moments; allowed: {allowed_bytes / 1e6:,.0f} MB ({bound}). Train fewer parameters, or lower "
        "spec.data.max_row_tokens where the base generates text",
        # Not `device_memory_bytes`, at which a job goes on with half the rows at once: that cannot help here.
        metadata={
            "least_device_memory_bytes": str(needed_bytes),
            "device_memory_budget_bytes": str(allowed_bytes),
        },
    )
