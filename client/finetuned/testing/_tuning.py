"""TuningService of the fake server. Time passes for a job when somebody looks at it.

Every event that WatchJob sends and every GetJob makes one more thing happen to the job, so a test
that watches or polls sees it run and finish, in the same steps every time. Only a watch of a paused job waits, for somebody to resume it.
"""

# ruff: noqa: N802 - the methods have the names of the RPCs

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, final

import grpc

from finetuned.errors import (
    AdapterIncompatible,
    InvalidField,
    JobStateConflict,
    OutOfRange,
    ResourceInUse,
    Unimplemented,
)
from finetuned.testing._costs import estimated
from finetuned.testing._plan import FINAL, begin, cancel, pause, resume, step
from finetuned.testing._store import METHODS, RunningJob, Store, check_name, lookup, page
from finetuned.testing._versions import resolve
from finetuned.v1 import common_pb2, dataset_service_pb2, job_pb2
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
        check_name(request.parent, "tenants/{}", "parent")
        if request.rerun_of:
            return self._rerun(request)
        spec = request.spec
        check_name(spec.adapter, "tenants/{}/adapters/{}", "spec.adapter")
        method = spec.WhichOneof("method")
        generates = spec.task in {common_pb2.TASK_UNSPECIFIED, common_pb2.TASK_TEXT_GENERATION}
        allowed = (
            METHODS if generates or spec.task == common_pb2.TASK_FEATURE_EXTRACTION else ("head", *METHODS)
        )
        if spec.task == common_pb2.TASK_IMAGE_CLASSIFICATION:
            allowed = ("head", "lora", "layers", "full")
        if method not in {None, *allowed}:
            available = ", ".join(f"METHOD_{name.upper()}" for name in allowed)
            raise _unimplemented(f"METHOD_{str(method).upper()}", available)
        if spec.lora.HasField("rank") and not 1 <= spec.lora.rank <= 256:
            raise InvalidField.one("spec.lora.rank", f"is {spec.lora.rank}; allowed: 1 to 256")
        with self._store.lock:
            for name in filter(None, (spec.dataset, spec.eval_dataset)):
                lookup(self._store.datasets, name)
            if not spec.dataset:
                raise InvalidField.one("spec.dataset", "is empty; expected a dataset's name")
            base = lookup(self._store.bases, spec.base or self._store.resident)
            job = job_pb2.Job(display_name=request.display_name, train=spec)
            self._resolve_objective(job.train)
            if spec.continue_from:
                job.train.continue_from = self._start(spec.continue_from, base.digest)
            return self._accept(request, job, pb.TrainJobResponse)

    def _resolve_objective(self, spec: job_pb2.TrainSpec) -> None:
        """The objective that the rows are for, as the service writes it back."""
        preferences = self._store.datasets[spec.dataset].row_kind == dataset_service_pb2.ROW_KIND_PREFERENCE
        generates = spec.task in {common_pb2.TASK_UNSPECIFIED, common_pb2.TASK_TEXT_GENERATION}
        usual = common_pb2.OBJECTIVE_SFT if generates else common_pb2.OBJECTIVE_CLASSIFICATION
        if spec.task == common_pb2.TASK_FEATURE_EXTRACTION:
            usual = common_pb2.OBJECTIVE_CONTRASTIVE
        fitting = common_pb2.OBJECTIVE_DPO if preferences and generates else usual
        spec.objective = spec.objective or fitting
        if spec.objective == common_pb2.OBJECTIVE_DPO and not preferences:
            raise InvalidField.one(
                "spec.dataset",
                f"{spec.dataset} holds no preferences; OBJECTIVE_DPO trains on PREFERENCE rows",
            )
        if spec.objective == common_pb2.OBJECTIVE_DPO:
            spec.dpo.beta = spec.dpo.beta or 0.1
        elif spec.HasField("dpo"):
            raise InvalidField.one("spec.dpo", "is set, and the objective does not read it; leave it out")

    def _start(self, name: str, base_digest: str) -> str:
        """The full name of the version, or of the job, to continue from."""
        if "/jobs/" in name:
            return lookup(self._store.jobs, name).job.name
        state, number = resolve(self._store, name, "spec.continue_from")
        version = state.versions[number]
        if version.base_digest != base_digest:
            raise AdapterIncompatible(
                f"{version.name!r} was made for another base",
                metadata={"adapter_base_digest": version.base_digest, "server_base_digest": base_digest},
            )
        return version.name

    def _rerun(self, request: pb.TrainJobRequest) -> pb.TrainJobResponse:
        given = [field.name for field, _ in request.spec.ListFields() if field.name != "base"]
        if given:
            raise InvalidField.one(f"spec.{given[0]}", "is set beside rerun_of; leave it out")
        check_name(request.rerun_of, "tenants/{}/jobs/{}", "rerun_of")
        with self._store.lock:
            record = lookup(self._store.jobs, request.rerun_of).job
            if record.WhichOneof("spec") != "train":
                raise InvalidField.one("rerun_of", f"is {record.name!r}, a Quantize run")
            lookup(self._store.datasets, record.train.dataset)
            base = lookup(self._store.bases, request.spec.base or self._store.resident)
            job = job_pb2.Job(
                display_name=request.display_name or record.display_name,
                train=record.train,
                rerun_of=record.name,
            )
            job.train.base = base.name
            return self._accept(request, job, pb.TrainJobResponse)

    def Quantize(self, request: pb.QuantizeRequest, context: grpc.ServicerContext) -> pb.QuantizeResponse:
        check_name(request.parent, "tenants/{}", "parent")
        spec = request.spec
        check_name(spec.output_base_id, "{}", "spec.output_base_id")
        if spec.weight_format not in _FORMATS:
            name = common_pb2.WeightFormat.Name(spec.weight_format)
            raise _unimplemented(name, "WEIGHT_FORMAT_INT8, WEIGHT_FORMAT_NF4")
        with self._store.lock:
            lookup(self._store.bases, spec.base or self._store.resident)
            job = job_pb2.Job(display_name=request.display_name, quantize=spec)
            return self._accept(request, job, pb.QuantizeResponse)

    def _accept(self, request: Any, job: job_pb2.Job, answer: type[Any]) -> Any:
        job.priority = request.priority or job_pb2.JOB_PRIORITY_NORMAL
        if job.WhichOneof("spec") == "train":
            estimated(job)
        if request.validate_only:
            if answer is pb.TrainJobResponse and request.pause_after_estimate:
                raise InvalidField.one("pause_after_estimate", "is set beside validate_only; leave one out")
            job.state = job_pb2.JOB_STATE_VALIDATING
            return answer(job=job)

        def make() -> Any:
            self._store.jobs_made += 1
            job.name = f"{request.parent}/jobs/job-{self._store.jobs_made}"
            pauses = answer is pb.TrainJobResponse and request.pause_after_estimate
            self._store.jobs[job.name] = begin(self._store, job, pause_after_estimate=pauses)
            kept = answer()
            kept.job.CopyFrom(job)
            return kept

        return self._store.once(request.parent, request.request_id, request, make)

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
            items, token = page(found, request.page_size, request.page_token)
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
            items, token = page(kept, request.page_size, request.page_token)
            return pb.ListJobEventsResponse(events=items, next_page_token=token)

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


def _unimplemented(feature: str, available: str) -> Unimplemented:
    return Unimplemented(
        f"{feature} is in the contract but not in this build; available: {available}",
        metadata={"feature": feature},
    )
