"""The verbs that make jobs, and those of `client.jobs`."""

# ruff: noqa: D417 - `names` is filled in by `_verbs.py`; callers never see it

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from finetuned import _convert as convert
from finetuned._calls.call import Call, Kind, Method, Page, StreamCall, new_request_id
from finetuned._names import Names
from finetuned.errors import FinetunedError, OutOfRange
from finetuned.v1 import common_pb2, job_pb2
from finetuned.v1 import tuning_service_pb2 as pb
from finetuned.values.common import Task, WeightFormat
from finetuned.values.events import JobEvent, JobState
from finetuned.values.jobs import Job, JobKind, JobPriority
from finetuned.values.specs import (
    Bottleneck,
    ClassificationOptions,
    ContrastiveOptions,
    DataOptions,
    Dpo,
    EvaluationOptions,
    Full,
    Head,
    Ia3,
    Layers,
    Lora,
    Objective,
    Optimization,
    PromoteIf,
    Qlora,
)

_SERVICE = "TuningService"


def _job(
    answer: pb.TrainJobResponse
    | pb.QuantizeResponse
    | pb.GetJobResponse
    | pb.CancelJobResponse
    | pb.PauseJobResponse
    | pb.ResumeJobResponse,
) -> Job:
    return convert.read(answer.job, Job)


def train(
    names: Names,
    *,
    dataset: str,
    adapter: str,
    eval_dataset: str | None = None,
    base: str | None = None,
    task: Task | None = None,
    objective: Objective | None = None,
    lora: Lora | None = None,
    head: Head | None = None,
    dpo: Dpo | None = None,
    ia3: Ia3 | None = None,
    qlora: Qlora | None = None,
    bottleneck: Bottleneck | None = None,
    layers: Layers | None = None,
    full: Full | None = None,
    classification: ClassificationOptions | None = None,
    contrastive: ContrastiveOptions | None = None,
    optimization: Optimization | None = None,
    data: DataOptions | None = None,
    evaluation: EvaluationOptions | None = None,
    promote_if: PromoteIf | None = None,
    continue_from: str | None = None,
    display_name: str = "",
    validate_only: bool = False,
    pause_after_estimate: bool = False,
    priority: JobPriority | str = JobPriority.NORMAL,
    request_id: str | None = None,
) -> Call[Job]:
    """Start a TrainJob: it adapts the base to the dataset and makes the adapter's next version.

    Args:
        dataset: the rows to learn from.
        adapter: the adapter's name; it is made if it does not exist.
        eval_dataset: the held-out rows; without it a part of the dataset is held out.
        base: the base to train on; without it the server's.
        task: what the adapter is for; text generation by default.
        objective: the loss; by default DPO where the rows are preferences, else the task's usual one.
        lora, qlora, head, ia3, bottleneck, layers, full: the method and its settings, one of them; by default LoRA, and
            where the base does not take it QLoRA (quantized bases) or a head (vision models with grouped convolutions).
        dpo: settings of that objective.
        classification, contrastive: settings of those tasks and objectives; what is None is the service's default.
        optimization, data, evaluation: settings, alike.
        promote_if: moves an alias to the new version when the evaluation says so.
        continue_from: a version to start from, such as "redact@3"; or the full name of a job that failed with
            TRAINING_DIVERGED, for its last good checkpoint.
        display_name: your own name for the job.
        validate_only: check everything and return the job without a name; nothing is stored.
        pause_after_estimate: have it measure what it will take, and then wait (PAUSED, with the reason ESTIMATED) until
            `jobs.resume`, or `jobs.cancel`.
        priority: "LOW", "NORMAL", or for admins "HIGH": how soon the job is taken.
        request_id: makes the call the same call when repeated within 24 hours; a new one by default.

    Raises:
        ValueError: more than one method is given.
        InvalidField: a setting is not allowed.
        NotFound: the dataset, the base or the version to continue from does not exist.
        AdapterIncompatible: that version is of another base.
        Unimplemented: the method is not for the task; `server_info` lists the methods.
    """
    methods: list[tuple[str, object, type[Any]]] = [
        ("lora", lora, job_pb2.LoraMethod),
        ("head", head, job_pb2.HeadMethod),
        ("ia3", ia3, job_pb2.Ia3Method),
        ("qlora", qlora, job_pb2.QloraMethod),
        ("bottleneck", bottleneck, job_pb2.BottleneckMethod),
        ("layers", layers, job_pb2.LayersMethod),
        ("full", full, job_pb2.FullMethod),
    ]
    given: dict[str, Any] = {
        name: convert.write(value, kind) for name, value, kind in methods if value is not None
    }
    if len(given) > 1:
        raise ValueError(f"a job has one method; given: {', '.join(given)}")
    spec = job_pb2.TrainSpec(
        dataset=names.dataset(dataset),
        eval_dataset=names.dataset(eval_dataset) if eval_dataset else "",
        adapter=names.adapter(adapter),
        base=names.base(base) if base else "",
        task=convert.enum_name(common_pb2.Task.DESCRIPTOR, task or Task.UNKNOWN),
        objective=convert.enum_name(common_pb2.Objective.DESCRIPTOR, objective or Objective.UNKNOWN),
        dpo=convert.write(dpo, job_pb2.DpoSettings) if dpo else None,
        classification=convert.write(classification, job_pb2.ClassificationOptions)
        if classification
        else None,
        contrastive=convert.write(contrastive, job_pb2.ContrastiveOptions) if contrastive else None,
        **given,
        optimization=convert.write(optimization or Optimization(), job_pb2.Optimization),
        data=convert.write(data or DataOptions(), job_pb2.DataOptions),
        evaluation=convert.write(evaluation or EvaluationOptions(), job_pb2.EvaluationOptions),
        promote_if=convert.write(promote_if, job_pb2.PromoteIf) if promote_if else None,
        continue_from=names.adapter_like(continue_from) if continue_from else "",
    )
    request = pb.TrainJobRequest(
        parent=names.parent,
        spec=spec,
        display_name=display_name,
        validate_only=validate_only,
        pause_after_estimate=pause_after_estimate,
        priority=convert.enum_name(job_pb2.JobPriority.DESCRIPTOR, JobPriority(priority)),
        request_id=request_id or new_request_id(),
    )
    return Call(Method(_SERVICE, "TrainJob", pb.TrainJobResponse), request, _job, Kind.WRITE)


def rerun(
    names: Names,
    name: str,
    *,
    base: str | None = None,
    display_name: str = "",
    validate_only: bool = False,
    pause_after_estimate: bool = False,
    priority: JobPriority | str = JobPriority.NORMAL,
    request_id: str | None = None,
) -> Call[Job]:
    """Run a TrainJob again from its own record: on the same data, with the settings that its caller had made;
    what the old base had decided is chosen anew. It makes the adapter's next version.

    Args:
        name: the job to repeat.
        base: the base to train on; without it the server's.
        display_name, validate_only, pause_after_estimate, priority, request_id: as for `train`.

    Raises:
        NotFound: there is no such job, or its data or the base are gone.
        RerunRefused: the data has changed since it ran.
        InvalidField: it is no TrainJob, or its settings do not fit the base.
    """
    request = pb.TrainJobRequest(
        parent=names.parent,
        spec=job_pb2.TrainSpec(base=names.base(base)) if base else None,
        display_name=display_name,
        validate_only=validate_only,
        pause_after_estimate=pause_after_estimate,
        priority=convert.enum_name(job_pb2.JobPriority.DESCRIPTOR, JobPriority(priority)),
        request_id=request_id or new_request_id(),
        rerun_of=names.job(name),
    )
    return Call(Method(_SERVICE, "TrainJob", pb.TrainJobResponse), request, _job, Kind.WRITE)


def quantize(
    names: Names,
    weight_format: WeightFormat | str,
    output_base_id: str,
    *,
    base: str | None = None,
    dataset: str | None = None,
    max_quality_drop: float | None = None,
    quantize_embeddings: bool = False,
    display_name: str = "",
    validate_only: bool = False,
    priority: JobPriority | str = JobPriority.NORMAL,
    request_id: str | None = None,
) -> Call[Job]:
    """Start a Quantize run: it compresses a base into a new base and measures what that costs.

    Args:
        weight_format: the target, for example "INT8" or "NF4"; `server_info` lists what is available.
        output_base_id: the last part of the new base's name.
        base: the source; without it the server's base.
        dataset: the rows on which quality is measured; without it the built-in text.
        max_quality_drop: fails the job, with its report, when the relative rise of perplexity is greater.
        quantize_embeddings: include the token embeddings, for INT8.
        display_name, validate_only, priority, request_id: as for `train`.

    Raises:
        ValueError: there is no such weight format.
        NotFound: the base or the dataset does not exist.
    """
    target = WeightFormat(weight_format.upper())
    spec = job_pb2.QuantizeSpec(
        base=names.base(base) if base else "",
        output_base_id=output_base_id,
        weight_format=convert.enum_name(common_pb2.WeightFormat.DESCRIPTOR, target),
        dataset=names.dataset(dataset) if dataset else "",
        max_quality_drop=max_quality_drop,
        quantize_embeddings=quantize_embeddings,
    )
    request = pb.QuantizeRequest(
        parent=names.parent,
        spec=spec,
        display_name=display_name,
        validate_only=validate_only,
        priority=convert.enum_name(job_pb2.JobPriority.DESCRIPTOR, JobPriority(priority)),
        request_id=request_id or new_request_id(),
    )
    return Call(Method(_SERVICE, "Quantize", pb.QuantizeResponse), request, _job, Kind.WRITE)


def get(names: Names, name: str) -> Call[Job]:
    """One job.

    Raises:
        NotFound: there is none of this name.
    """
    request = pb.GetJobRequest(name=names.job(name))
    return Call(Method(_SERVICE, "GetJob", pb.GetJobResponse), request, _job)


def list_all(
    names: Names,
    *,
    states: Sequence[JobState] = (),
    kind: JobKind = JobKind.UNKNOWN,
    adapter: str | None = None,
    page_size: int = 0,
) -> Call[Page[Job]]:
    """The tenant's jobs, newest first, read page by page.

    Args:
        states: keep only jobs in one of these; empty keeps all.
        kind: keep only this kind; UNKNOWN keeps both.
        adapter: keep only TrainJobs for this adapter.
        page_size: jobs in one answer; 0 leaves it to the service.
    """
    request = pb.ListJobsRequest(
        parent=names.parent,
        page_size=page_size,
        states=[convert.enum_name(job_pb2.JobState.DESCRIPTOR, state) for state in states],
        kind=convert.enum_name(pb.JobKind.DESCRIPTOR, kind),
        adapter=names.adapter(adapter) if adapter else "",
    )

    def page(answer: pb.ListJobsResponse) -> Page[Job]:
        return Page(tuple(convert.read(item, Job) for item in answer.jobs), answer.next_page_token)

    return Call(Method(_SERVICE, "ListJobs", pb.ListJobsResponse), request, page)


def events(names: Names, name: str, *, page_size: int = 0) -> Call[Page[JobEvent]]:
    """The events of a job that are kept, oldest first, without waiting for more.

    Raises:
        NotFound: there is no job of this name.
    """
    request = pb.ListJobEventsRequest(parent=names.job(name), page_size=page_size)

    def page(answer: pb.ListJobEventsResponse) -> Page[JobEvent]:
        return Page(tuple(convert.read(item, JobEvent) for item in answer.events), answer.next_page_token)

    return Call(Method(_SERVICE, "ListJobEvents", pb.ListJobEventsResponse), request, page)


def watch(
    names: Names, name: str, *, after_event: int = 0, timeout_seconds: float | None = None
) -> StreamCall[JobEvent]:
    """The events of a job as they happen, until its final state; reconnects by itself.

    Args:
        name: the job.
        after_event: the number of the last event already seen; 0 starts with the first kept.
        timeout_seconds: bound of the whole watch; without it, it lasts as long as the job.

    Raises:
        NotFound: there is no job of this name.
        OutOfRange: events after `after_event` are no longer kept; metadata `first_kept` says from where.
        DeadlineExceeded: timeout_seconds were over.
        Unavailable: the service did not come back within the deadline for watching.
    """
    return _watch(names.job(name), after_event, timeout_seconds)


def follow(names: Names, name: str, *, timeout_seconds: float | None = None) -> StreamCall[JobEvent]:
    """Like `watch`, but goes on with the first kept event where others were trimmed."""
    job = names.job(name)

    def skip_trimmed(error: FinetunedError) -> pb.WatchJobRequest | None:
        first_kept = error.metadata.get("first_kept", "")
        if not isinstance(error, OutOfRange) or not first_kept.isdecimal():
            return None
        return pb.WatchJobRequest(name=job, after_event=int(first_kept) - 1)

    return dataclasses.replace(_watch(job, 0, timeout_seconds), recover=skip_trimmed)


def _watch(job: str, after_event: int, timeout_seconds: float | None) -> StreamCall[JobEvent]:
    def request(last_seen: int) -> pb.WatchJobRequest:
        return pb.WatchJobRequest(name=job, after_event=last_seen)

    def resume(event: JobEvent) -> pb.WatchJobRequest | None:
        return None if event.final else request(event.number)

    def event(answer: pb.WatchJobResponse) -> JobEvent:
        return convert.read(answer.event, JobEvent)

    method = Method(_SERVICE, "WatchJob", pb.WatchJobResponse)
    return StreamCall(
        method, request(after_event), event, Kind.WATCH, resume=resume, timeout_seconds=timeout_seconds
    )


def tensorboard(names: Names, name: str) -> StreamCall[pb.ExportTensorBoardResponse]:
    """The pieces of a job's event files; `_export.py` writes them."""

    def piece(answer: pb.ExportTensorBoardResponse) -> pb.ExportTensorBoardResponse:
        return answer

    method = Method(_SERVICE, "ExportTensorBoard", pb.ExportTensorBoardResponse)
    return StreamCall(method, pb.ExportTensorBoardRequest(name=names.job(name)), piece, Kind.TRANSFER)


def cancel(names: Names, name: str) -> Call[Job]:
    """Stop a job; it is CANCELLING until its worker has stopped.

    Raises:
        NotFound: there is no job of this name.
        JobStateConflict: it has already finished.
    """
    request = pb.CancelJobRequest(name=names.job(name))
    method = Method(_SERVICE, "CancelJob", pb.CancelJobResponse)
    return Call(method, request, _job, Kind.WRITE, repeatable=False)


def pause(names: Names, name: str) -> Call[Job]:
    """Have a job write a checkpoint and stop; it is PAUSING until its worker has, then PAUSED until `resume`.

    Raises:
        NotFound: there is no job of this name.
        JobStateConflict: it is finished or being cancelled.
    """
    request = pb.PauseJobRequest(name=names.job(name))
    return Call(Method(_SERVICE, "PauseJob", pb.PauseJobResponse), request, _job, Kind.WRITE)


def resume(names: Names, name: str) -> Call[Job]:
    """Queue a paused job again; it goes on from its checkpoint.

    Raises:
        NotFound: there is no job of this name.
        JobStateConflict: it is still stopping, or finished.
    """
    request = pb.ResumeJobRequest(name=names.job(name))
    return Call(Method(_SERVICE, "ResumeJob", pb.ResumeJobResponse), request, _job, Kind.WRITE)


def delete(names: Names, name: str) -> Call[None]:
    """Remove a finished job's record, events and files.

    Raises:
        NotFound: there is no job of this name.
        JobStateConflict: it is not finished; cancel it first.
        ResourceInUse: the adapter version that it made exists.
    """
    request = pb.DeleteJobRequest(name=names.job(name))
    method = Method(_SERVICE, "DeleteJob", pb.DeleteJobResponse)
    return Call(method, request, lambda _: None, Kind.WRITE, repeatable=False)
