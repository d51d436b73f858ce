"""Limits of a job process, set and read back; its reports; its ways out. Each in a real process."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from finetuned_service.jobs.events import Notice, Progress, Usage
from finetuned_service.jobs.memory import count_oom_kills, memory_report, private_memory_bytes
from finetuned_service.jobs.process import environment_for_job_process
from finetuned_service.jobs.states import Fault
from finetuned_service.jobs.task import EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED, REPORTS, Failed

MEGABYTE = 10**6


def run_python(
    body: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), *arguments],
        capture_output=True,
        env=environment_for_job_process(1) if environment is None else environment,
        timeout=60,
        check=False,
    )


JOB = """
import sys
from finetuned_service.jobs.process import run_job
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, QuantizeTask
from finetuned_service.jobs.events import (Progress)

def work(task, report, stop):
    BODY
    return EXIT_FINISHED

sys.exit(run_job(sys.argv, QuantizeTask, lambda: work, memory_remedy="Lower it"))
"""


def write_task(tmp_path: Path, memory_budget_bytes: int = 4000 * MEGABYTE) -> str:
    """A task that needs no data: what runs is the test's own body."""
    path = tmp_path / "task.json"
    limits = {"threads": 1, "memory_budget_bytes": memory_budget_bytes}
    path.write_text(
        json.dumps(
            {
                "kind": "quantize",
                "job_name": "tenants/t/jobs/j",
                "attempt": 1,
                "spec": {"output_base_id": "b", "weight_format": "INT8"},
                **dict.fromkeys(("base_directory", "base_digest", "work_directory", "output_directory"), "x"),
                "limits": limits,
            }
        )
    )
    return str(path)


def job(body: str) -> str:
    return textwrap.dedent(JOB).replace("BODY", textwrap.indent(textwrap.dedent(body), "    ").strip())


def reports_of(done: subprocess.CompletedProcess[bytes]) -> list[object]:
    return [REPORTS.validate_json(line) for line in done.stdout.splitlines()]


def test_limits_are_set_and_read_back():
    done = run_python(
        """
        import os, sys, threading
        from pathlib import Path
        from finetuned_service.jobs.process import apply_limits
        from finetuned_service.jobs.task import TaskLimits
        applied = apply_limits(TaskLimits(threads=1, memory_budget_bytes=10**9))
        classes = []
        thread = threading.Thread(target=lambda: classes.append(os.sched_getscheduler(0)))
        thread.start(); thread.join()
        print(applied.scheduler, os.sched_getscheduler(0) == os.SCHED_IDLE, classes == [os.SCHED_IDLE])
        print(applied.oom_score_adj, Path("/proc/self/oom_score_adj").read_text().strip())
        print(applied.problems)
        """
    )
    assert done.stdout.decode().splitlines() == ["SCHED_IDLE True True", "1000 1000", "()"], done.stderr


def test_a_session_of_its_own_is_reported_where_autogroup_makes_it_matter():
    enabled = Path("/proc/sys/kernel/sched_autogroup_enabled")
    if not enabled.exists() or enabled.read_text().strip() != "1":
        pytest.skip("autogroup scheduling is off on this machine")
    done = run_python(
        """
        import os
        from finetuned_service.jobs.process import apply_limits
        from finetuned_service.jobs.task import TaskLimits
        os.setsid()
        print(apply_limits(TaskLimits(threads=1, memory_budget_bytes=10**9)).notice().text)
        """
    )
    assert b"autogroup scheduling cancels SCHED_IDLE" in done.stdout


def test_what_the_environment_lacks_is_a_warning():
    done = run_python(
        """
        from finetuned_service.jobs.process import apply_limits
        from finetuned_service.jobs.task import TaskLimits
        applied = apply_limits(TaskLimits(threads=3, memory_budget_bytes=10**9, yield_to_serving=False))
        print(applied.notice().model_dump_json())
        """,
        environment={**os.environ, "OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "2"},
    )
    notice = Notice.model_validate_json(done.stdout)
    assert notice.severity == "WARNING"
    assert "normal scheduling" in notice.text
    assert "OMP_WAIT_POLICY is not passive" in notice.text
    assert "OMP_NUM_THREADS is not 3" in notice.text


def test_it_dies_with_its_parent():
    """A parent starts a job process, says its pid, and is killed; the kernel must end the child."""
    done = run_python(
        """
        import os, subprocess, sys, signal
        from finetuned_service.jobs.process import environment_for_job_process
        child = subprocess.Popen(
            [sys.executable, "-c", '''
        import signal
        from finetuned_service.jobs.process import apply_limits
        from finetuned_service.jobs.task import TaskLimits
        apply_limits(TaskLimits(threads=1, memory_budget_bytes=10**9))
        print("ready", flush=True)
        signal.pause()
        '''.replace("        ", "")],
            stdout=subprocess.PIPE, env=environment_for_job_process(1),
        )
        child.stdout.readline()
        # The pipe of standard error is held by parent and child: it ends when both have.
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert done.returncode == -signal.SIGKILL


def test_an_orphan_does_not_begin():
    environment = {**environment_for_job_process(1), "FINETUNED_JOB_PARENT_PID": "1"}
    done = run_python(
        """
        from finetuned_service.jobs.process import apply_limits
        from finetuned_service.jobs.task import TaskLimits
        apply_limits(TaskLimits(threads=1, memory_budget_bytes=10**9))
        """,
        environment=environment,
    )
    assert done.returncode == -signal.SIGKILL


def test_reports_have_standard_output_to_themselves(tmp_path):
    done = run_python(
        job("print('chatter'); report(Progress(phase='measuring', step=3))"), write_task(tmp_path)
    )
    assert done.returncode == EXIT_FINISHED, done.stderr
    notice, progress, usage = reports_of(done)
    assert isinstance(notice, Notice)
    assert progress == Progress(phase="measuring", step=3)
    assert isinstance(usage, Usage)
    assert MEGABYTE < usage.memory_bytes < 1000 * MEGABYTE
    assert b"chatter" in done.stderr


def test_sigterm_is_a_flag(tmp_path):
    body = """
    import os, signal
    assert not stop.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    if stop.is_set():
        return EXIT_STOPPED
    """
    assert run_python(job(body), write_task(tmp_path)).returncode == EXIT_STOPPED


def test_a_refusal_is_the_users_fault(tmp_path):
    body = """
    from finetuned_service.errors import InvalidField
    raise InvalidField.one("spec.x", "is 3; allowed: 1 to 2")
    """
    done = run_python(job(body), write_task(tmp_path))
    failed = reports_of(done)[-1]
    assert done.returncode == EXIT_FAILED
    assert isinstance(failed, Failed)
    assert failed.fault is Fault.USER
    assert failed.error["violations"] == [["spec.x", "is 3; allowed: 1 to 2"]]


def test_a_fault_of_ours_is_opaque_and_its_cause_is_in_the_log(tmp_path):
    done = run_python(job("raise RuntimeError('/secret/path')"), write_task(tmp_path))
    failed = reports_of(done)[-1]
    assert done.returncode == EXIT_FAILED
    assert isinstance(failed, Failed)
    assert failed.fault is Fault.SYSTEM
    assert "secret" not in json.dumps(failed.error)
    assert b"/secret/path" in done.stderr
    assert failed.error["metadata"]["fault_id"].encode() in done.stderr


def test_too_much_memory_is_a_report_not_a_kill(tmp_path):
    body = """
    import threading
    held = bytearray(300_000_000)
    held[::4096] = b"x" * len(held[::4096])
    threading.Event().wait()
    """
    done = run_python(job(body), write_task(tmp_path, memory_budget_bytes=200 * MEGABYTE))
    failed = reports_of(done)[-1]
    assert done.returncode == EXIT_FAILED
    assert isinstance(failed, Failed)
    assert failed.fault is Fault.USER
    assert failed.error["reason"] == "NO_ROOM"
    assert int(failed.error["metadata"]["memory_bytes"]) > 300 * MEGABYTE
    assert failed.error["metadata"]["memory_budget_bytes"] == str(200 * MEGABYTE)
    assert str(failed.error["message"]).endswith("allowed: 200 MB. Lower it")


def test_a_full_disk_suspends_the_job(tmp_path):
    done = run_python(
        job("open('/dev/full', 'w', buffering=1).write('checkpoint' * 10_000)"), write_task(tmp_path)
    )
    suspended = reports_of(done)[-1]
    assert (done.returncode, suspended.kind, suspended.reason) == (EXIT_FAILED, "suspended", "DISK_FULL")
    assert suspended.disk_bytes_wanted == 0, "nobody knows"
    assert "goes on by itself when there is more room than now" in suspended.text


def test_what_has_no_room_on_the_disk_suspends_the_job_and_tells_how_much_it_wants(tmp_path):
    done = run_python(
        "from finetuned_service.jobs.room import Room\n"
        + job("Room('.', 10**6, lambda _: 3 * 10**6).refuse_without(4 * 10**6, 'a checkpoint')"),
        write_task(tmp_path),
    )
    suspended = reports_of(done)[-1]
    assert (done.returncode, suspended.reason, suspended.disk_bytes_wanted) == (
        EXIT_FAILED,
        "DISK_FULL",
        4 * 10**6,
    )
    assert suspended.text.startswith(
        "the server's disk has 3.0 MB left, of which 1.0 MB must stay free (min_free_disk_bytes), and a checkpoint "
        "takes 4.0 MB: the job is paused without it"
    )
    assert "goes on by itself when 68 MB are free" in suspended.text


@pytest.mark.parametrize(
    "raised",
    [
        "OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))",
        "OSError(errno.ENOSPC, '')",
        "RuntimeError('SafetensorError: I/O error: ' + os.strerror(errno.EDQUOT))",
    ],
)
def test_a_full_quota_suspends_the_job_as_a_full_disk_does(tmp_path, raised):
    done = run_python(job(f"import errno, os; raise {raised}"), write_task(tmp_path))
    suspended = reports_of(done)[-1]
    assert (done.returncode, suspended.kind, suspended.reason) == (EXIT_FAILED, "suspended", "DISK_FULL")


def test_a_tensor_larger_than_the_machine_is_the_users_fault(tmp_path):
    done = run_python(job("import torch; torch.empty(2**50)"), write_task(tmp_path))
    failed = reports_of(done)[-1]
    assert done.returncode == EXIT_FAILED
    assert isinstance(failed, Failed)
    assert (failed.fault, failed.error["reason"]) == (Fault.USER, "NO_ROOM")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"kind": "train"}'])
def test_a_task_that_cannot_be_read_is_an_exit_code_of_its_own(tmp_path, content):
    (tmp_path / "task.json").write_bytes(content)
    done = run_python(job("pass"), str(tmp_path / "task.json"))
    assert (done.returncode, done.stdout) == (64, b"")
    assert b"usage" in done.stderr
    assert run_python(job("pass")).returncode == 64


def write_weights(path: Path) -> Path:
    with path.open("wb") as file:
        file.write(os.urandom(8 * 2**20))
        os.fsync(file.fileno())
    return path


def test_pages_of_one_file_are_shared_by_two_processes(tmp_path):
    """What a trainer and a server have in common: one mapped file, counted once."""
    path = write_weights(tmp_path / "model.safetensors")
    body = """
    import mmap, sys
    from finetuned_service.jobs.memory import memory_report
    with open(sys.argv[1], "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    sum(mapped[::4096])
    print("mapped", flush=True)
    sys.stdin.read(1)
    sum(mapped[::4096])
    (mapping,) = memory_report()
    print(mapping.rss_bytes, mapping.shared_bytes, mapping.private_bytes, mapping.copied_bytes)
    """
    command = [sys.executable, "-c", textwrap.dedent(body), str(path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"
    answer, _ = processes[0].communicate("x")
    processes[1].communicate("x")
    rss, shared, private, copied = map(int, answer.split())
    # The kernel may have taken some pages back from the other process meanwhile.
    assert path.stat().st_size // 2 < shared == rss - private
    assert copied == 0


def test_kills_for_memory_are_counted_where_the_kernel_tells_of_them(tmp_path):
    assert count_oom_kills() >= 0
    vmstat, cgroup = tmp_path / "vmstat", tmp_path / "memory.events"
    vmstat.write_text("nr_free_pages 12\noom_kill 3\n")
    assert count_oom_kills((vmstat, cgroup)) == 3
    cgroup.write_text("low 0\noom 5\noom_kill 2\noom_group_kill 1\n")
    assert count_oom_kills((vmstat, cgroup)) == 5


def test_a_page_written_to_is_a_copy(tmp_path):
    path = write_weights(tmp_path / "weights")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    mapped[0] = (mapped[0] + 1) % 256
    (mapping,) = memory_report("weights")
    mapped.close()
    assert (mapping.path, mapping.copied_bytes) == (str(path), mmap.PAGESIZE)
    assert "copied" in str(mapping)


def test_private_memory_is_what_this_process_alone_holds():
    before = private_memory_bytes()
    # Pages of its own, which no allocator can take from what was freed before.
    with mmap.mmap(-1, 50 * MEGABYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert 45 * MEGABYTE < private_memory_bytes() - before < 60 * MEGABYTE
    assert memory_report("no such file") == ()


def test_the_environment_is_the_dispatchers_own_and_what_must_be_set_early():
    environment = environment_for_job_process(7)
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert 0 < int(environment["GOMP_SPINCOUNT"]) <= 1000
    assert environment["FINETUNED_JOB_PARENT_PID"] == str(os.getpid())
    assert environment["PATH"] == os.environ["PATH"]


def test_what_a_gpu_refuses_is_the_users_to_decide_and_may_be_halved():
    """As torch raises it; the class has no base of its own that this process could name without torch."""
    done = run_python(
        """
        from finetuned_service.jobs.memory import MEMORY
        from finetuned_service.jobs.process import _failure

        class OutOfMemoryError(RuntimeError):
            pass

        MEMORY.device_peak = lambda: 70_000_000
        message = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB"
        print(_failure(OutOfMemoryError(message), "Lower it").model_dump_json())
        """
    )
    failed = REPORTS.validate_json(done.stdout.splitlines()[-1])
    assert failed.fault is Fault.USER
    assert failed.error["reason"] == "NO_ROOM"
    assert "held 70 MB of it; allowed: what is free" in failed.error["message"]
    assert failed.error["message"].endswith("job_device_bytes. CUDA out of memory. Lower it")
    assert failed.error["metadata"] == {"device_memory_bytes": "70000000"}
