"""Jobs and their events, from our values to the contract."""

from __future__ import annotations

from finetuned.v1 import common_pb2 as common
from finetuned.v1 import job_pb2 as pb

from finetuned_service.jobs.events import (
    Checkpoint,
    Estimate,
    EvaluationFinished,
    JobEvent,
    Notice,
    Progress,
    StateChanged,
)
from finetuned_service.jobs.specs import QuantizeSpec, TrainSpec
from finetuned_service.jobs.states import JobState, StateReason
from finetuned_service.jobs.usage import estimate_errors
from finetuned_service.jobs.values import Job, QuantizeResult, TrainResult
from finetuned_service.rpc.convert.common import (
    TASKS,
    metrics_to_proto,
    seconds_to_proto,
    time_to_proto,
    weight_format_to_proto,
    wire_error_to_proto,
)
from finetuned_service.rpc.convert.methods import method_fields
from finetuned_service.vocabulary import ConfusionMatrix, Objective, Task


def job_to_proto(job: Job) -> pb.Job:
    message = pb.Job(
        name=job.name,
        display_name=job.display_name,
        state=job_state_to_proto(job.state),
        state_reason=_reason(job.state_reason),
        create_time=time_to_proto(job.create_time),
        start_time=time_to_proto(job.start_time),
        end_time=time_to_proto(job.end_time),
        expire_time=time_to_proto(job.expire_time),
        events_expire_time=time_to_proto(job.events_expire_time),
        baseline_metrics=metrics_to_proto(job.baseline_metrics),
        metrics=metrics_to_proto(job.metrics),
        incumbent_metrics=metrics_to_proto(job.incumbent_metrics),
        baseline_confusion=_confusion(job.baseline_confusion),
        confusion=_confusion(job.confusion),
        checkpoints=[_checkpoint(checkpoint) for checkpoint in job.checkpoints],
        attempt=job.attempt,
        error=wire_error_to_proto(job.error),
        fault=f"FAULT_{job.fault or 'UNSPECIFIED'}",
        last_event=job.last_event,
        rerun_of=job.rerun_of,
        micro_batch_rows=job.micro_batch_rows,
        priority=f"JOB_PRIORITY_{job.priority}",
        samples=[pb.EvaluationSample(**sample.model_dump()) for sample in job.samples],
        estimate=_estimate(job.estimate),
        usage=_usage(job),
    )
    if isinstance(job.spec, TrainSpec):
        message.train.CopyFrom(_train_spec(job.spec))
    else:
        message.quantize.CopyFrom(_quantize_spec(job.spec))
    if job.environment is not None:
        message.environment.CopyFrom(pb.Environment(**job.environment.model_dump()))
    if job.data_report is not None:
        message.data_report.CopyFrom(pb.DataReport(**job.data_report.model_dump()))
    if job.overfitting is not None:
        message.overfitting.CopyFrom(pb.Overfitting(**job.overfitting.model_dump(exclude={"kind"})))
    if job.progress is not None:
        message.progress.CopyFrom(_progress(job.progress))
    match job.result:
        case TrainResult():
            message.train_result.CopyFrom(pb.TrainResult(**job.result.model_dump(exclude={"kind"})))
        case QuantizeResult():
            report = pb.QuantizeReport(**job.result.report.model_dump())
            result = pb.QuantizeResult(base=job.result.base, digest=job.result.digest, report=report)
            message.quantize_result.CopyFrom(result)
        case None:
            pass
    return message


def _estimate(estimate: Estimate | None) -> pb.Estimate | None:
    if estimate is None:
        return None
    fields = estimate.model_dump(exclude={"duration_seconds", "basis"})
    duration = seconds_to_proto(estimate.duration_seconds)
    return pb.Estimate(**fields, duration=duration, basis=f"ESTIMATE_BASIS_{estimate.basis}")


def _usage(job: Job) -> pb.JobUsage | None:
    if job.usage is None:
        return None
    errors = estimate_errors(job)
    return pb.JobUsage(
        memory_bytes=job.usage.memory_bytes,
        duration=seconds_to_proto(job.usage.duration_seconds),
        memory_error=errors.memory,
        duration_error=errors.duration,
        device_memory_bytes=job.usage.device_memory_bytes,
    )


def job_state_to_proto(state: JobState) -> str:
    return f"JOB_STATE_{state}"


def event_to_proto(event: JobEvent) -> pb.JobEvent:
    message = pb.JobEvent(number=event.number, time=time_to_proto(event.time))
    match event.body:
        case StateChanged() as body:
            state = pb.StateChanged(
                state=job_state_to_proto(body.state), reason=_reason(body.reason), attempt=body.attempt
            )
            message.state.CopyFrom(state)
        case Progress() as body:
            message.progress.CopyFrom(_progress(body))
        case EvaluationFinished() as body:
            evaluation = pb.EvaluationFinished(
                subject=body.subject,
                step=body.step,
                metrics=metrics_to_proto(body.metrics),
                confusion=_confusion(body.confusion),
            )
            message.evaluation.CopyFrom(evaluation)
        case Checkpoint() as body:
            message.checkpoint.CopyFrom(_checkpoint(body))
        case Notice() as body:
            severity = f"SEVERITY_{body.severity}"
            message.notice.CopyFrom(pb.Notice(severity=severity, text=body.text))
    return message


def _confusion(matrix: ConfusionMatrix | None) -> common.ConfusionMatrix | None:
    return None if matrix is None else common.ConfusionMatrix(**matrix.model_dump())


def _reason(reason: StateReason) -> str:
    return f"JOB_STATE_REASON_{reason or 'UNSPECIFIED'}"


def _checkpoint(checkpoint: Checkpoint) -> pb.Checkpoint:
    return pb.Checkpoint(step=checkpoint.step, eval_loss=checkpoint.eval_loss, best=checkpoint.best)


def _progress(progress: Progress) -> pb.Progress:
    fields = progress.model_dump(exclude={"kind", "eta_seconds", "step_tokens", "step_seconds"})
    return pb.Progress(**fields, eta=seconds_to_proto(progress.eta_seconds))


def _classification(spec: TrainSpec) -> pb.ClassificationOptions | None:
    options = spec.classification
    if options.class_weights is None:
        return None
    return pb.ClassificationOptions(
        class_weights=f"CLASS_WEIGHTS_{options.class_weights}", label_weights=options.label_weights
    )


def _contrastive(spec: TrainSpec) -> pb.ContrastiveOptions | None:
    if spec.task is not Task.FEATURE_EXTRACTION:
        return None
    return pb.ContrastiveOptions(**spec.contrastive.model_dump())


def _train_spec(spec: TrainSpec) -> pb.TrainSpec:
    optimization = spec.optimization.model_dump(exclude={"schedule"}, exclude_none=True)
    schedule = f"LEARNING_RATE_SCHEDULE_{spec.optimization.schedule}"
    data = spec.data.model_dump(exclude={"long_rows"}, exclude_none=True)
    evaluation = spec.evaluation.model_dump(exclude={"baseline"})
    return pb.TrainSpec(
        dataset=spec.dataset,
        eval_dataset=spec.eval_dataset,
        adapter=spec.adapter,
        base=spec.base,
        continue_from=spec.continue_from,
        task=TASKS[spec.task],
        objective=f"OBJECTIVE_{spec.objective or _usual_objective(spec.task)}",
        dpo=pb.DpoSettings(**spec.dpo.model_dump()) if spec.dpo else None,
        **method_fields(spec),
        classification=_classification(spec),
        contrastive=_contrastive(spec),
        optimization=pb.Optimization(**optimization, schedule=schedule),
        data=pb.DataOptions(**data, long_rows=f"LONG_ROWS_{spec.data.long_rows}"),
        evaluation=pb.EvaluationOptions(
            **evaluation, baseline=pb.Baseline(**spec.evaluation.baseline.model_dump())
        ),
        promote_if=pb.PromoteIf(**spec.promote_if.model_dump(exclude_none=True)) if spec.promote_if else None,
    )


def _usual_objective(task: Task) -> Objective:
    """Of the records of builds that had one for each task."""
    if task is Task.FEATURE_EXTRACTION:
        return Objective.CONTRASTIVE
    return Objective.SFT if task is Task.TEXT_GENERATION else Objective.CLASSIFICATION


def _quantize_spec(spec: QuantizeSpec) -> pb.QuantizeSpec:
    fields = spec.model_dump(exclude={"kind", "weight_format"}, exclude_none=True)
    return pb.QuantizeSpec(**fields, weight_format=weight_format_to_proto(spec.weight_format))
