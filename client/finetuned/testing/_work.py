"""The work of the fake server's jobs: one happening for each event between start and end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from finetuned.errors import QualityGateFailed
from finetuned.testing._costs import TOKENS_IN_STEP, estimated, measured, steps_of
from finetuned.testing._figures import confusion, figures
from finetuned.testing._refusals import to_message
from finetuned.testing._store import Happening, Store
from finetuned.testing._versions import add_version, set_alias
from finetuned.v1 import adapter_service_pb2, base_service_pb2, common_pb2, job_pb2

SAVED = {common_pb2.WEIGHT_FORMAT_INT8: 2, common_pb2.WEIGHT_FORMAT_NF4: 4}
"""By how much a format divides the bytes of the fake base."""
RISE_OF_PERPLEXITY = {common_pb2.WEIGHT_FORMAT_INT8: 0.01, common_pb2.WEIGHT_FORMAT_NF4: 0.05}


def train(store: Store, job: job_pb2.Job) -> Iterator[Happening]:
    """A TrainJob: baseline, steps, checkpoint, publication with the adapter's evaluation."""
    steps = steps_of(job)
    yield _baseline(store)
    for number in range(1, steps + 1):
        yield _step(number, steps)
    yield _checkpoint(steps)
    yield lambda job, event: _publish(store, job, event)


def quantize(store: Store) -> Iterator[Happening]:
    """A Quantize run: one measurement, then the new base."""
    yield _measure
    yield lambda job, event: _store_base(store, job, event)


def _baseline(store: Store) -> Happening:
    def happen(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
        job.baseline_metrics.extend(figures(store, 0, job.train))
        event.evaluation.subject = "baseline"
        event.evaluation.metrics.extend(job.baseline_metrics)
        if (matrix := confusion(store, job, 0)) is not None:
            job.baseline_confusion.CopyFrom(matrix)
            event.evaluation.confusion.CopyFrom(matrix)
        measured(job)

    return happen


def _measure(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
    estimated(job)
    job.progress.CopyFrom(job_pb2.Progress(phase="measuring", step=1, total_steps=1))
    event.progress.CopyFrom(job.progress)


def _step(number: int, total: int) -> Happening:
    def happen(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
        progress = job_pb2.Progress(
            phase="training",
            step=number,
            total_steps=total,
            loss=2.0 / number,
            tokens_per_second=TOKENS_IN_STEP,
            learning_rate=1e-3,
            tokens=TOKENS_IN_STEP * number,
        )
        progress.eta.FromSeconds(total - number)
        job.progress.CopyFrom(progress)
        event.progress.CopyFrom(progress)

    return happen


def _checkpoint(step: int) -> Happening:
    def happen(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
        event.checkpoint.CopyFrom(job_pb2.Checkpoint(step=step, eval_loss=2.0 / step, best=True))
        job.checkpoints.append(event.checkpoint)

    return happen


def _publish(store: Store, job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
    dataset = store.datasets.get(job.train.dataset)
    lineage = adapter_service_pb2.Lineage(
        job=job.name,
        dataset=job.train.dataset,
        dataset_digest=dataset.digest if dataset is not None else "",
        parent_version=job.train.continue_from,
    )
    method = str(job.train.WhichOneof("method")).upper()
    content = {
        "adapter_config.json": f'{{"peft_type": "{method}"}}'.encode(),
        "adapter_model.safetensors": job.name.encode(),
    }
    version = add_version(
        store,
        job.train.adapter,
        content,
        lineage,
        rank=(job.train.qlora.lora if method == "QLORA" else job.train.lora).rank,
        base=job.train.base,
        method=method,
        task=job.train.task,
    )
    number = int(version.name.rpartition("/")[2])
    version.metrics.extend(figures(store, number, job.train))
    job.metrics.extend(version.metrics)
    if (matrix := confusion(store, job, number)) is not None:
        job.confusion.CopyFrom(matrix)
        event.evaluation.confusion.CopyFrom(matrix)
    job.samples.add(prompt="ping", expected="pong", answer="pong", correct=True)
    event.evaluation.subject = "adapter"
    event.evaluation.step = job.progress.step
    event.evaluation.metrics.extend(version.metrics)
    job.train_result.version = version.name
    job.train_result.digest = version.digest
    if job.train.HasField("promote_if"):
        _promote(store, job, version)


def _promote(store: Store, job: job_pb2.Job, version: adapter_service_pb2.AdapterVersion) -> None:
    condition = job.train.promote_if
    metric = condition.metric
    ours = next((item for item in version.metrics if item.name == metric), None)
    if ours is None:
        job.train_result.promotion = f"not moved: {metric} was not measured"
        return
    sign = 1 if ours.higher_is_better else -1
    state = store.adapters[job.train.adapter]
    alias = state.aliases.get(condition.alias)
    reached = not condition.HasField("minimum") or sign * ours.value >= sign * condition.minimum
    if alias is not None:
        incumbent = state.versions[int(alias.version.rpartition("/")[2])]
        job.incumbent_metrics.extend(incumbent.metrics)
        theirs = next((item.value for item in incumbent.metrics if item.name == metric), -sign * 1e9)
        reached = reached and (not condition.better_than_current or sign * ours.value > sign * theirs)
    if reached:
        set_alias(store, f"{job.train.adapter}/aliases/{condition.alias}", version.name)
    job.train_result.promoted = reached
    job.train_result.promotion = f"{metric} {ours.value:.3f} {'is' if reached else 'is not'} enough"


def _store_base(store: Store, job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
    spec = job.quantize
    source = store.bases[spec.base or store.resident]
    rise = RISE_OF_PERPLEXITY[spec.weight_format]
    report = job.quantize_result.report
    report.source_bytes = source.weight_bytes
    report.quantized_bytes = source.weight_bytes // SAVED[spec.weight_format]
    report.source_perplexity = 10.0
    report.quantized_perplexity = 10.0 * (1 + rise)
    report.mean_kl_nats = rise
    report.top1_agreement = 1 - rise
    report.evaluated_tokens = 1000
    report.quantized_modules = 8
    report.kept_modules.append("lm_head")
    event.notice.severity = job_pb2.SEVERITY_INFO
    event.notice.text = f"perplexity {report.source_perplexity:.2f} -> {report.quantized_perplexity:.2f}"
    if spec.HasField("max_quality_drop") and rise > spec.max_quality_drop:
        refusal = QualityGateFailed(
            f"perplexity rises by {rise:.1%}; max_quality_drop allows {spec.max_quality_drop:.1%}",
            metadata={"perplexity_rise": str(rise), "max_quality_drop": str(spec.max_quality_drop)},
        )
        job.error.CopyFrom(to_message(refusal))
        job.fault = job_pb2.FAULT_USER
        return
    base = base_service_pb2.Base()
    base.CopyFrom(source)
    base.name = f"{job.name.partition('/jobs/')[0]}/bases/{spec.output_base_id}"
    base.digest = "sha256:" + hashlib.sha256(base.name.encode()).hexdigest()
    base.weight_format = spec.weight_format
    base.weight_bytes = report.quantized_bytes
    base.recipe = f"Quantize of {source.name}"
    base.resident = False
    base.create_time.CopyFrom(store.now())
    store.bases[base.name] = base
    job.quantize_result.base = base.name
    job.quantize_result.digest = base.digest
