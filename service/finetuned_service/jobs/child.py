"""One job process as the dispatcher sees it: started, read, asked to stop, killed."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from finetuned_service.jobs.record import JobReport
from finetuned_service.jobs.task import REPORTS, TASK_FILE, QuantizeTask, TrainTask
from finetuned_service.storage.files import write_atomically
from finetuned_service.telemetry.logs import logger

_MAX_REPORT_BYTES = 64 * 1024 * 1024
"""A longer line is no report; it is not held in memory."""
_LAST_WORDS_SECONDS = 5.0
"""How long to read on after the end of the process, should something outside its group hold its output."""
_LOG = logger("jobs")


class JobProcess:
    """A running job process; its standard output is reports, its standard error the job's log.

    It stays in the session of the server: with autogroup scheduling a session of its own would cancel
    SCHED_IDLE, and serving would no longer come first. It has a process group of its own: Ctrl-C at a
    terminal is for the server, which then asks its jobs to stop.
    """

    def __init__(
        self,
        program: Sequence[str],
        task: TrainTask | QuantizeTask,
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        """Write the task into `directory` and start `program` with its path as the last argument."""
        task_file = directory / TASK_FILE
        write_atomically(task_file, task.model_dump_json(indent=1).encode())
        self._job_name = task.job_name
        self._log = (directory / "log").open("ab", buffering=0)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the program of our settings, our own file
                [*program, str(task_file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=dict(environment),
                process_group=0,
            )
        except BaseException:
            self._log.close()
            raise
        self._reports: queue.Queue[JobReport] = queue.Queue()
        if self._process.stdout is None:
            raise RuntimeError("the job process has no standard output")
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), name="job-reports", daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative numbers are signals."""
        if self._process.returncode is None and _is_over(self._process.pid):
            # What it has left running would hold its output open. As long as nobody has waited for the
            # process its number, and that of its group, cannot be another's.
            self._signal_group(signal.SIGKILL)
        return self._process.poll()

    def reports(self, timeout_seconds: float) -> list[JobReport]:
        """All reports that came, after waiting for the first at most so long."""
        found: list[JobReport] = []
        try:
            found.append(self._reports.get(timeout=timeout_seconds))
            while True:
                found.append(self._reports.get_nowait())
        except queue.Empty:
            return found

    def remaining_reports(self) -> list[JobReport]:
        """The last reports of a process that has ended."""
        self._reader.join(_LAST_WORDS_SECONDS)
        return self.reports(timeout_seconds=0.0)

    def ask_to_stop(self) -> None:
        """Let it write a checkpoint and exit."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all that it has started."""
        if self.exit_code is None:
            self._signal_group(signal.SIGKILL)

    def close(self) -> None:
        """Wait for its end and free what it held."""
        self._process.wait()
        self._reader.join(_LAST_WORDS_SECONDS)
        if self._reader.is_alive():
            return
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read(self, stream: IO[bytes]) -> None:
        understood = True
        while line := stream.readline(_MAX_REPORT_BYTES):
            try:
                self._reports.put(REPORTS.validate_json(line))
            except ValidationError:
                # A library printed to standard output; the job goes on. What it printed may hold rows of
                # the data, which have no place in the server's log.
                self._log.write(line)
                if understood:
                    _LOG.warning("job_output_not_understood", job=self._job_name, see="the job's log")
                understood = False


def _is_over(pid: int) -> bool:
    """Whether a child has ended, without taking note of it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
