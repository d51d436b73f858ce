"""What every job process does around its work; the same for all kinds of jobs. Linux only.

At start, before torch is imported: its standard output becomes the stream of reports, SIGTERM becomes
a flag, and everything that lets it yield to serving is set, read back and reported. At the end: every
way out has a report or an exit code that the dispatcher knows (`jobs/task.py`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from pydantic import ValidationError

from finetuned_service.bases.lender import BORROWED
from finetuned_service.errors import FinetunedError, Internal, ResourceExhausted, Status
from finetuned_service.jobs.events import Notice, Usage
from finetuned_service.jobs.memory import MEMORY, memory_watchdog
from finetuned_service.jobs.room import DISK_FULL, NoRoom
from finetuned_service.jobs.states import Fault
from finetuned_service.jobs.task import EXIT_FAILED, Failed, QuantizeTask, Suspended, TaskLimits, TrainTask
from finetuned_service.storage.files import says_full_disk
from finetuned_service.telemetry.logs import configure, logger
from finetuned_service.vocabulary import Value

EXIT_USAGE = 64
"""The task could not be read (EX_USAGE of sysexits.h)."""
OOM_SCORE_ADJ = 1000
"""The highest: when memory runs out the kernel ends this process, not the server."""

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2  # prctl(2)
_PARENT_VARIABLE = "FINETUNED_JOB_PARENT_PID"
_SPINS = "1000"
"""Rounds that a thread of libgomp waits before it sleeps."""
ENGINE_ENDED = (
    "the engine that holds the job's base on the GPU has ended, and its memory with it: what was computed since then is "
    "dropped, and the job goes on from its last checkpoint when there is an engine again"
)
_USER_FAULTS = frozenset(
    {
        Status.INVALID_ARGUMENT,
        Status.NOT_FOUND,
        Status.FAILED_PRECONDITION,
        Status.RESOURCE_EXHAUSTED,
        Status.UNIMPLEMENTED,
    }
)
_LOG = logger("jobs")

T = TypeVar("T", TrainTask, QuantizeTask)
ReportFunction = Callable[[Value], None]
"""Takes any of `jobs.task.Report`."""


class StopFlag(Protocol):
    """Says whether the process was asked to stop; `threading.Event` is one."""

    def is_set(self) -> bool: ...


def environment_for_job_process(threads: int) -> dict[str, str]:
    """The environment in which the dispatcher starts a job process: its own, and what must be set
    before the process's libraries load.

    Waiting OpenMP threads spin for a few microseconds and then sleep: docs/decisions has what longer and
    shorter waits cost, alone and beside a busy server. Large buffers are reused instead of
    being given back to the kernel and faulted in again at every step, on huge pages where the kernel
    has them (measured: 9% of a training step). Nothing a job needs is on a hub.
    """
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": _SPINS,
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824"
        ":glibc.malloc.trim_threshold=1073741824:glibc.malloc.top_pad=67108864",
        # cuBLAS repeats its sums to the last bit only with a workspace of its own; read when it loads.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        _PARENT_VARIABLE: str(os.getpid()),
    }


@dataclass(frozen=True, slots=True)
class Applied:
    """What was set at start, as read back from the kernel."""

    threads: int
    scheduler: str
    oom_score_adj: int
    memory_budget_bytes: int
    problems: tuple[str, ...]
    """What is not as it should be, each with its consequence."""

    def notice(self) -> Notice:
        facts = (
            f"job process: {self.threads} threads, {self.scheduler}, oom_score_adj {self.oom_score_adj}, "
            f"memory budget {self.memory_budget_bytes / 1e6:,.0f} MB"
        )
        if self.problems:
            return Notice(severity="WARNING", text=f"{facts}; {'; '.join(self.problems)}")
        return Notice(text=facts)


def apply_limits(limits: TaskLimits, environment: Mapping[str, str] = os.environ) -> Applied:
    """Make this process yield to the server and die with it, and read back that it is so.

    Call it before other threads exist: they inherit the scheduling class.
    """
    problems: list[str] = []
    if environment.get("OMP_WAIT_POLICY", "").lower() != "passive":
        problems.append("OMP_WAIT_POLICY is not passive: waiting threads take processor time from serving")
    if environment.get("OMP_NUM_THREADS") != str(limits.threads):
        problems.append(f"OMP_NUM_THREADS is not {limits.threads}: start-up may use more threads")
    scheduler = _yield_to_serving(problems) if limits.yield_to_serving else "normal scheduling"
    oom_score_adj = _first_to_be_killed(problems)
    _die_with_parent(environment.get(_PARENT_VARIABLE), problems)
    return Applied(limits.threads, scheduler, oom_score_adj, limits.memory_budget_bytes, tuple(problems))


def _yield_to_serving(problems: list[str]) -> str:
    with suppress(OSError):  # a container's seccomp filter may forbid it; what counts is read back
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    idle = os.sched_getscheduler(0) == os.SCHED_IDLE
    if not idle:
        problems.append("SCHED_IDLE was not accepted: training competes with serving")
    autogroup = Path("/proc/sys/kernel/sched_autogroup_enabled")
    own_session = os.getsid(0) == os.getpid()
    if own_session and autogroup.exists() and autogroup.read_text().strip() == "1":
        # sched(7): with autogrouping the class counts only within the session.
        problems.append("in a session of its own: autogroup scheduling cancels SCHED_IDLE towards the server")
    return "SCHED_IDLE" if idle else "normal scheduling"


def _first_to_be_killed(problems: list[str]) -> int:
    path = Path("/proc/self/oom_score_adj")
    with suppress(OSError):  # as above, where /proc is mounted read-only
        path.write_text(str(OOM_SCORE_ADJ))
    found = int(path.read_text())
    if found != OOM_SCORE_ADJ:
        problems.append(f"oom_score_adj is {found}: out of memory may end the server instead of this job")
    return found


def _die_with_parent(parent_pid: str | None, problems: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    found = ctypes.c_int(0)
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(found), 0, 0, 0)
    if found.value != signal.SIGKILL:
        problems.append("PR_SET_PDEATHSIG was not accepted: this process outlives a server that is killed")
    if parent_pid is not None and os.getppid() != int(parent_pid):
        # The parent died between fork and prctl; its signal will never come.
        os.kill(os.getpid(), signal.SIGKILL)


class Reporter:
    """Writes reports as JSON lines, one whole line at a time, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    @classmethod
    def take_standard_output(cls) -> Reporter:
        """Reports get standard output to themselves; what libraries print goes to standard error."""
        stream = os.fdopen(os.dup(1), "wb")
        sys.stdout.flush()
        os.dup2(2, 1)
        return cls(stream)

    def __call__(self, report: Value) -> None:
        with self._lock:
            self._write(report)

    def last(self, report: Value, exit_code: int) -> None:
        """Write a last report and end the process; no other thread can write after it."""
        with self._lock:
            self._write(report)
            os._exit(exit_code)

    def _write(self, report: Value) -> None:
        self._stream.write(report.model_dump_json().encode() + b"\n")
        self._stream.flush()


def run_job(
    arguments: Sequence[str],
    kind: type[T],
    load: Callable[[], Callable[[T, ReportFunction, StopFlag], int]],
    *,
    memory_remedy: str,
) -> int:
    """The body of `python -m finetuned_service.KIND TASK.json`; returns the exit code.

    Args:
        arguments: `sys.argv`.
        kind: the task's class.
        load: imports the work, which reports as it goes and returns an exit code of `jobs/task.py`; called when the limits are in place, so that torch loads under them.
        memory_remedy: what the user can do when the memory budget is exceeded.
    """
    report = Reporter.take_standard_output()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    configure("console", "info")
    try:
        (path,) = arguments[1:]
        task = kind.model_validate_json(Path(path).read_bytes())
    except (ValueError, ValidationError, OSError) as error:
        sys.stderr.write(f"usage: {arguments[0]} TASK.json with a {kind.__name__}: {error}\n")
        return EXIT_USAGE

    def over_budget(private_bytes: int) -> None:
        refusal = memory_refusal(private_bytes, task.limits.memory_budget_bytes, memory_remedy)
        _LOG.error("memory_budget_exceeded", message=refusal.message)
        report(Usage(memory_bytes=private_bytes))
        report.last(Failed(error=refusal.to_wire(), fault=Fault.USER), EXIT_FAILED)

    def engine_ended() -> None:
        _LOG.error("job_engine_ended")
        report(Usage(memory_bytes=MEMORY.peak_bytes, device_memory_bytes=MEMORY.device_peak()))
        report.last(_suspended_without_engine(), EXIT_FAILED)

    try:
        notice = apply_limits(task.limits).notice()
        _LOG.info("job_process_started", job=task.job_name, attempt=task.attempt, limits=notice.text)
        report(notice)
        with memory_watchdog(task.limits.memory_budget_bytes, over_budget), BORROWED.watch(engine_ended):
            return _work(load(), task, report, stop)
    except Exception as error:  # noqa: BLE001 - the last stop: whatever happened becomes a report
        report(_failure(error, memory_remedy))
        return EXIT_FAILED


def _work(
    work: Callable[[T, ReportFunction, StopFlag], int], task: T, report: ReportFunction, stop: StopFlag
) -> int:
    def tell(found: Value) -> None:
        BORROWED.refuse_lost()
        report(found)

    MEMORY.begin()
    try:
        return work(task, tell, stop)
    finally:
        MEMORY.look()
        report(Usage(memory_bytes=MEMORY.peak_bytes, device_memory_bytes=MEMORY.device_peak()))


def _suspended_without_engine() -> Suspended:
    return Suspended(reason="ENGINE_ENDED", text=ENGINE_ENDED)


def memory_refusal(found_bytes: int, budget_bytes: int, remedy: str) -> ResourceExhausted:
    """The refusal of a job that needs more private memory than it may have."""
    return ResourceExhausted(
        f"the job holds {found_bytes / 1e6:,.0f} MB of memory of its own; allowed: "
        f"{budget_bytes / 1e6:,.0f} MB. {remedy}",
        metadata={"memory_bytes": str(found_bytes), "memory_budget_bytes": str(budget_bytes)},
    )


def _device_refusal(error: Exception, remedy: str) -> ResourceExhausted:
    """What a GPU has refused; `device_memory_bytes` lets the job go on with fewer rows at once."""
    held_bytes = MEMORY.device_peak()
    found = str(error).partition(". ")[0]
    return ResourceExhausted(
        f"the GPU has no more memory for the job, which held {held_bytes / 1e6:,.0f} MB of it; allowed: what is free, or "
        f"the server's job_device_bytes. {found}. {remedy}",
        metadata={"device_memory_bytes": str(held_bytes)},
    )


def _failure(error: Exception, memory_remedy: str) -> Failed | Suspended:
    """A refusal as it is; anything else as an opaque fault of ours, its cause in the log. A full disk, or the end of
    the engine whose memory the job computes with, only suspends it.
    """
    if BORROWED.lost:  # whatever it was, that is why
        _LOG.error("job_engine_ended", exc_info=error)
        return _suspended_without_engine()
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        # torch has no class of its own for this on CPU. It happens only where a single tensor is larger
        # than the machine's memory; otherwise the watchdog comes first.
        error = ResourceExhausted(f"a single tensor does not fit into the memory. {memory_remedy}")
    if type(error).__name__ == "OutOfMemoryError":  # torch's of a GPU; torch is not imported here
        error = _device_refusal(error, memory_remedy)
    if isinstance(error, NoRoom):
        _LOG.error("job_without_room", message=error.text)
        return Suspended(reason="DISK_FULL", text=error.text, disk_bytes_wanted=error.wanted_bytes)
    if says_full_disk(error):
        _LOG.error("job_disk_full", exc_info=error)
        return Suspended(reason="DISK_FULL", text=DISK_FULL)
    if isinstance(error, FinetunedError) and error.status is not Status.INTERNAL:
        _LOG.error("job_refused", reason=error.reason, message=error.message)
        fault = Fault.USER if error.status in _USER_FAULTS else Fault.SYSTEM
        return Failed(error=error.to_wire(), fault=fault)
    opaque = Internal.opaque()
    _LOG.error("job_failed", fault_id=opaque.metadata["fault_id"], exc_info=error)
    return Failed(error=opaque.to_wire(), fault=Fault.SYSTEM)
