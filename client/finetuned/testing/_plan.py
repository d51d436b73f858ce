"""What happens to a job of the fake server, event by event.

What it tells on its way is invented, but hangs together: the loss falls with the steps.
"""

from __future__ import annotations

from finetuned.errors import FinetunedError, ResourceInUse
from finetuned.testing._costs import used
from finetuned.testing._refusals import to_message
from finetuned.testing._store import Happening, RunningJob, Store
from finetuned.testing._work import quantize, train
from finetuned.v1 import job_pb2

_BEFORE_STEPS = 3
"""What happens to a TrainJob before its steps: queued, started, its baseline measured."""
FINAL = {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}


def refuse_continued(store: Store, name: str, *, whole_adapter: bool = False) -> None:
    """Refuse to delete weights (an adapter's, of all its versions) that an unfinished job continues from."""
    for running in store.jobs.values():
        start = running.job.train.continue_from
        continued = start.rpartition("/versions/")[0] if whole_adapter else start
        if continued == name and running.job.state not in FINAL:
            raise ResourceInUse(
                f"{name!r} is what an unfinished job continues from", metadata={"used_by": running.job.name}
            )


def begin(store: Store, job: job_pb2.Job, *, pause_after_estimate: bool = False) -> RunningJob:
    """A queued job with all that is to come, or that comes once it is resumed."""
    job.create_time.CopyFrom(store.now())
    job.attempt = 1
    work = list(train(store, job) if job.WhichOneof("spec") == "train" else quantize(store))
    if store.job_errors:
        work[-1] = _fail(store.job_errors.pop(0))
    running = RunningJob(job, [], [_enter(job_pb2.JOB_STATE_QUEUED), _start(store), *work, _end(store)])
    if pause_after_estimate:
        running.paused, running.to_come = running.to_come[_BEFORE_STEPS:], running.to_come[:_BEFORE_STEPS]
        for state in (job_pb2.JOB_STATE_PAUSING, job_pb2.JOB_STATE_PAUSED):
            running.to_come.append(_move(state, job_pb2.JOB_STATE_REASON_ESTIMATED))
    step(store, running)
    return running


def step(store: Store, running: RunningJob) -> bool:
    """Make the next thing happen; False if nothing is left."""
    if not running.to_come:
        return False
    event = job_pb2.JobEvent(number=len(running.events) + 1, time=store.now())
    running.to_come.pop(0)(running.job, event)
    running.job.last_event = event.number
    running.events.append(event)
    return True


def cancel(store: Store, running: RunningJob) -> None:
    def stop(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
        job.state = job_pb2.JOB_STATE_CANCELLED
        job.state_reason = job_pb2.JOB_STATE_REASON_USER
        _end(store)(job, event)

    running.to_come = [stop]
    step(store, running)


def pause(store: Store, running: RunningJob) -> None:
    """A queued job pauses at once, a running one with the next event."""
    running.paused, running.to_come = running.to_come, []
    if running.job.state == job_pb2.JOB_STATE_RUNNING:
        running.to_come = [_move(job_pb2.JOB_STATE_PAUSING)]
    running.to_come.append(_move(job_pb2.JOB_STATE_PAUSED))
    step(store, running)


def resume(store: Store, running: RunningJob) -> None:
    started = running.job.HasField("start_time")
    again = [_move(job_pb2.JOB_STATE_RUNNING)] if started else []
    running.to_come = [_move(job_pb2.JOB_STATE_QUEUED), *again, *running.paused]
    running.paused = []
    step(store, running)


def _move(
    state: job_pb2.JobState, reason: job_pb2.JobStateReason = job_pb2.JOB_STATE_REASON_USER
) -> Happening:
    """Another state, for the user's sake where nothing else is said; RUNNING needs no reason."""

    def happen(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
        if state == job_pb2.JOB_STATE_PAUSED and job.state == job_pb2.JOB_STATE_PAUSING:
            used(job)  # its process has ended
        job.state = state
        running = state == job_pb2.JOB_STATE_RUNNING
        job.state_reason = job_pb2.JOB_STATE_REASON_UNSPECIFIED if running else reason
        _tell_state(job, event)

    return happen


def _enter(state: job_pb2.JobState) -> Happening:
    def happen(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
        job.state = state
        _tell_state(job, event)

    return happen


def _start(store: Store) -> Happening:
    def happen(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
        job.start_time.CopyFrom(store.now())
        job.state = job_pb2.JOB_STATE_RUNNING
        _record_environment(store, job)
        _tell_state(job, event)

    return happen


def _record_environment(store: Store, job: job_pb2.Job) -> None:
    digests = {
        name: store.datasets[name].digest if name in store.datasets else ""
        for name in (job.train.dataset, job.train.eval_dataset)
    }
    job.environment.CopyFrom(
        job_pb2.Environment(
            base_digest=store.bases[job.train.base or job.quantize.base].digest,
            dataset_digest=digests[job.train.dataset],
            eval_dataset_digest=digests[job.train.eval_dataset],
            service_version="fake",
            threads=1,
            compute_dtype="bfloat16",
            trained_dtype="float32" if job.HasField("train") else "",
        )
    )


def _end(store: Store) -> Happening:
    """The last event; what came before may already have decided how the job ends."""

    def happen(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
        job.end_time.CopyFrom(store.now())
        if job.state not in FINAL:
            failed = job.HasField("error")
            job.state = job_pb2.JOB_STATE_FAILED if failed else job_pb2.JOB_STATE_SUCCEEDED
        used(job)
        _tell_state(job, event)

    return happen


def _tell_state(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
    event.state.state = job.state
    event.state.reason = job.state_reason
    event.state.attempt = job.attempt


def _fail(error: FinetunedError) -> Happening:
    def happen(job: job_pb2.Job, event: job_pb2.JobEvent) -> None:
        job.error.CopyFrom(to_message(error))
        job.fault = job_pb2.FAULT_SYSTEM if error.reason == "INTERNAL_FAULT" else job_pb2.FAULT_USER
        event.notice.severity = job_pb2.SEVERITY_WARNING
        event.notice.text = error.message

    return happen
