"""TuningService of the fake server. Time passes for a job when somebody looks at it.

Every event that WatchJob sends and every GetJob makes one more thing happen to the job, so a test
that watches or polls sees it run and finish, in the same steps every time. Only a watch of a paused job waits, for somebody to resume it.
"""

# ruff: noqa: N802 - the methods have the names of the RPCs

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, final

import grpc

from finetuned.errors import (
    AdapterIncompatible,
    AlreadyExists,
    InvalidField,
    JobStateConflict,
    OutOfRange,
    RerunRefused,
    ResourceInUse,
)
from finetuned.testing._costs import estimated
from finetuned.testing._figures import describe_data
from finetuned.testing._plan import FINAL, begin, cancel, pause, refuse_continued, resume, step
from finetuned.testing._specs import named_base, unimplemented
from finetuned.testing._specs import resolve as resolve_spec
from finetuned.testing._store import Answer, RunningJob, Store, check_name, lookup, page
from finetuned.testing._versions import resolve
from finetuned.v1 import common_pb2, job_pb2
from finetuned.v1 import tuning_service_pb2 as pb
from finetuned.v1.tuning_service_pb2_grpc import TuningServiceServicer

_PAUSED = {job_pb2.JOB_STATE_PAUSING, job_pb2.JOB_STATE_PAUSED}
_LOOK_SECONDS = 0.02
"""How often a watch of a paused job looks whether it goes on."""
_FORMATS = {common_pb2.WEIGHT_FORMAT_INT8, common_pb2.WEIGHT_FORMAT_NF4}


@final
class FakeTuning(TuningServiceServicer):
    def __init__(self, store: Store) -> None:
        self._store = store

    def TrainJob(self, request: pb.TrainJobRequest, context: grpc.ServicerContext) -> pb.TrainJobResponse:
        (tenant,) = check_name(request.parent, "tenants/{}", "parent")
        if request.rerun_of:
            return self._rerun(request, tenant)

        def make() -> pb.TrainJobResponse:
            job = job_pb2.Job(display_name=request.display_name, train=request.spec)
            resolve_spec(self._store, tenant, job.train)
            if job.train.continue_from:
                self._continue(job.train)
            answer: pb.TrainJobResponse = self._accept(request, job, pb.TrainJobResponse)
            if request.spec.WhichOneof("method") is None:
                self._store.methods_left_open.add(answer.job.name)
            return answer

        return self._once(request, make)

    def _continue(self, spec: job_pb2.TrainSpec) -> None:
        """Write back the full name of the version, or of the job, to continue from."""
        name = spec.continue_from
        if "/jobs/" in name:
            spec.continue_from = lookup(self._store.jobs, name).job.name
            return
        state, number = resolve(self._store, name, "spec.continue_from")
        version, base_digest = state.versions[number], self._store.bases[spec.base].digest
        if version.base_digest != base_digest:
            raise AdapterIncompatible(
                f"{version.name!r} was made for another base",
                metadata={"adapter_base_digest": version.base_digest, "server_base_digest": base_digest},
            )
        made, wanted = (
            common_pb2.Method.Name(version.method),
            f"METHOD_{str(spec.WhichOneof('method')).upper()}",
        )
        if made.replace("QLORA", "LORA") != wanted.replace("QLORA", "LORA"):
            raise InvalidField.one(
                "spec.continue_from", f"names {version.name}, of {made}; this job's is {wanted}"
            )
        if version.task != spec.task:
            task = common_pb2.Task.Name(version.task)
            raise InvalidField.one(
                "spec.continue_from", f"names {version.name}, for {task}; set spec.task to it"
            )
        spec.continue_from = version.name

    def _rerun(self, request: pb.TrainJobRequest, tenant: str) -> pb.TrainJobResponse:
        given = [field.name for field, _ in request.spec.ListFields() if field.name != "base"]
        if given:
            raise InvalidField.one(f"spec.{given[0]}", "is set beside rerun_of; leave it out")
        check_name(request.rerun_of, f"tenants/{tenant}/jobs/{{}}", "rerun_of")

        def make() -> pb.TrainJobResponse:
            record = lookup(self._store.jobs, request.rerun_of).job
            if record.WhichOneof("spec") != "train":
                raise InvalidField.one("rerun_of", f"is {record.name!r}, a Quantize run")
            self._refuse_changed(record)
            job = job_pb2.Job(
                display_name=request.display_name or record.display_name,
                train=record.train,
                rerun_of=record.name,
            )
            job.train.base = request.spec.base
            if record.name in self._store.methods_left_open:
                job.train.ClearField("method")
            resolve_spec(self._store, tenant, job.train)
            return self._accept(request, job, pb.TrainJobResponse)

        return self._once(request, make)

    def _refuse_changed(self, record: job_pb2.Job) -> None:
        recorded = {
            record.train.dataset: record.environment.dataset_digest,
            record.train.eval_dataset: record.environment.eval_dataset_digest,
        }
        for name, digest in recorded.items():
            if digest and (found := lookup(self._store.datasets, name).digest) != digest:
                raise RerunRefused(
                    f"{name} has the digest {found}; {record.name} was trained on {digest}",
                    metadata={"dataset": name, "recorded_digest": digest, "found_digest": found},
                )

    def Quantize(self, request: pb.QuantizeRequest, context: grpc.ServicerContext) -> pb.QuantizeResponse:
        (tenant,) = check_name(request.parent, "tenants/{}", "parent")
        spec = request.spec
        if spec.weight_format not in _FORMATS:
            name = common_pb2.WeightFormat.Name(spec.weight_format)
            raise unimplemented(name, ("WEIGHT_FORMAT_INT8", "WEIGHT_FORMAT_NF4"))
        check_name(spec.output_base_id, "{}", "spec.output_base_id")

        def make() -> pb.QuantizeResponse:
            base = named_base(self._store, tenant, spec.base)
            if base.weight_format in _FORMATS:
                raise InvalidField.one("spec.base", f"is {base.name}, which is quantized already")
            if spec.quantize_embeddings and spec.weight_format != common_pb2.WEIGHT_FORMAT_INT8:
                raise InvalidField.one("spec.quantize_embeddings", "is for WEIGHT_FORMAT_INT8 only; unset it")
            if spec.dataset:
                lookup(self._store.datasets, spec.dataset)
            output = f"{request.parent}/bases/{spec.output_base_id}"
            if output in self._store.bases:
                raise AlreadyExists(f"{output} exists; choose another id", metadata={"resource": output})
            job = job_pb2.Job(display_name=request.display_name, quantize=spec)
            job.quantize.base = base.name
            return self._accept(request, job, pb.QuantizeResponse)

        return self._once(request, make)

    def _once(self, request: Any, make: Callable[[], Answer]) -> Answer:
        """What the request has made before, whatever has changed since; else what it makes now."""
        with self._store.lock:
            if request.validate_only:
                return make()
            return self._store.once(request.parent, request.request_id, request, make)

    def _accept(self, request: Any, job: job_pb2.Job, answer: type[Any]) -> Any:
        pauses = answer is pb.TrainJobResponse and request.pause_after_estimate
        job.priority = request.priority or job_pb2.JOB_PRIORITY_NORMAL
        if job.WhichOneof("spec") == "train":
            describe_data(self._store, job)
            estimated(job)
        if request.validate_only:
            if pauses:
                raise InvalidField.one("pause_after_estimate", "is set beside validate_only; leave one out")
            job.state = job_pb2.JOB_STATE_QUEUED
            return answer(job=job)
        self._store.jobs_made += 1
        job.name = f"{request.parent}/jobs/job-{self._store.jobs_made}"
        self._store.jobs[job.name] = begin(self._store, job, pause_after_estimate=pauses)
        kept = answer()
        kept.job.CopyFrom(job)
        return kept

    def GetJob(self, request: pb.GetJobRequest, context: grpc.ServicerContext) -> pb.GetJobResponse:
        with self._store.lock:
            running = self._find(request.name)
            answer = pb.GetJobResponse()
            answer.job.CopyFrom(running.job)
            step(self._store, running)
            return answer

    def ListJobs(self, request: pb.ListJobsRequest, context: grpc.ServicerContext) -> pb.ListJobsResponse:
        check_name(request.parent, "tenants/{}", "parent")
        with self._store.lock:
            found = [
                running.job
                for name, running in reversed(self._store.jobs.items())
                if name.startswith(request.parent + "/") and _wanted(running.job, request)
            ]
            items, token = page(found, request)
            return pb.ListJobsResponse(jobs=items, next_page_token=token)

    def WatchJob(
        self, request: pb.WatchJobRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchJobResponse]:
        seen = request.after_event
        while True:
            with self._store.lock:
                running = self._find(request.name)
                if seen and seen + 1 < running.first_kept:
                    raise OutOfRange(
                        f"event {seen + 1} is no longer kept; the first kept is {running.first_kept}",
                        metadata={"first_kept": str(running.first_kept)},
                    )
                seen = max(seen, running.first_kept - 1)
                while seen >= len(running.events) and step(self._store, running):
                    pass
                event = running.events[seen] if seen < len(running.events) else None
                state = running.job.state
            if event is None:
                if state in FINAL or not context.is_active():
                    return
                time.sleep(_LOOK_SECONDS)
                continue
            yield pb.WatchJobResponse(event=event, state=state)
            seen = event.number

    def ListJobEvents(
        self, request: pb.ListJobEventsRequest, context: grpc.ServicerContext
    ) -> pb.ListJobEventsResponse:
        with self._store.lock:
            running = self._find(request.parent)
            kept = running.events[running.first_kept - 1 :]
            items, token = page(kept, request)
            return pb.ListJobEventsResponse(events=items, next_page_token=token)

    def ExportTensorBoard(
        self, request: pb.ExportTensorBoardRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExportTensorBoardResponse]:
        with self._store.lock:
            running = self._find(request.name)
            if running.job.WhichOneof("spec") != "train":
                raise InvalidField.one(
                    "name", f"is {request.name}, a Quantize run; only TrainJobs have figures"
                )
            steps = [event.progress for event in running.events if event.HasField("progress")]
            if not steps:
                raise _conflict(running, "it has written no figures for TensorBoard yet")
        # Not TensorBoard's format, which takes a checksum that the standard library does not have.
        data = "".join(f"{step.step} {step.loss}\n" for step in steps).encode()
        yield pb.ExportTensorBoardResponse(file_name="events.out.tfevents.000001", data=data)

    def CancelJob(self, request: pb.CancelJobRequest, context: grpc.ServicerContext) -> pb.CancelJobResponse:
        with self._store.lock:
            running = self._find(request.name)
            if running.job.state in FINAL:
                raise _conflict(running, "only an unfinished job can be cancelled")
            cancel(self._store, running)
            return pb.CancelJobResponse(job=running.job)

    def PauseJob(self, request: pb.PauseJobRequest, context: grpc.ServicerContext) -> pb.PauseJobResponse:
        with self._store.lock:
            running = self._find(request.name)
            if running.job.state in FINAL:
                raise _conflict(running, "only an unfinished job can be paused")
            if running.job.state not in _PAUSED:
                pause(self._store, running)
            return pb.PauseJobResponse(job=running.job)

    def ResumeJob(self, request: pb.ResumeJobRequest, context: grpc.ServicerContext) -> pb.ResumeJobResponse:
        with self._store.lock:
            running = self._find(request.name)
            if running.job.state in {*FINAL, job_pb2.JOB_STATE_PAUSING}:
                raise _conflict(running, "only a PAUSED job can be resumed")
            if running.job.state == job_pb2.JOB_STATE_PAUSED:
                resume(self._store, running)
            return pb.ResumeJobResponse(job=running.job)

    def DeleteJob(self, request: pb.DeleteJobRequest, context: grpc.ServicerContext) -> pb.DeleteJobResponse:
        with self._store.lock:
            running = self._find(request.name)
            if running.job.state not in FINAL:
                raise _conflict(running, "only a finished job can be deleted")
            version = running.job.train_result.version
            if version and self._has_version(version):
                raise ResourceInUse(
                    f"{version!r} was made by this job and exists", metadata={"used_by": version}
                )
            refuse_continued(self._store, request.name)
            del self._store.jobs[request.name]
            return pb.DeleteJobResponse()

    def _has_version(self, name: str) -> bool:
        adapter, _, number = name.rpartition("/versions/")
        state = self._store.adapters.get(adapter)
        return state is not None and int(number) in state.versions

    def _find(self, name: str) -> RunningJob:
        check_name(name, "tenants/{}/jobs/{}")
        return lookup(self._store.jobs, name)


def _conflict(running: RunningJob, allowed: str) -> JobStateConflict:
    state = job_pb2.JobState.Name(running.job.state).removeprefix("JOB_STATE_")
    return JobStateConflict(f"{running.job.name!r} is {state}; {allowed}", metadata={"state": state})


def _wanted(job: job_pb2.Job, request: pb.ListJobsRequest) -> bool:
    kind = pb.JOB_KIND_TRAIN if job.WhichOneof("spec") == "train" else pb.JOB_KIND_QUANTIZE
    return (
        (not request.states or job.state in request.states)
        and request.kind in {pb.JOB_KIND_UNSPECIFIED, kind}
        and request.adapter in {"", job.train.adapter}
    )
