"""One job process as the dispatcher sees it: started, read, asked to stop, killed."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from finetuned_service.jobs.record import JobReport
from finetuned_service.jobs.task import REPORTS, QuantizeTask, TrainTask
from finetuned_service.storage.files import write_atomically
from finetuned_service.telemetry.logs import logger

MODULES: Mapping[str, str] = {
    "train": "finetuned_service.training",
    "quantize": "finetuned_service.quantization",
}
_LOG = logger("jobs")


class JobProcess:
    """A running job process; its standard output is reports, its standard error the job's log.

    It stays in the session of the server: with autogroup scheduling a session of its own would cancel
    SCHED_IDLE, and serving would no longer come first.
    """

    def __init__(
        self, task: TrainTask | QuantizeTask, directory: Path, environment: Mapping[str, str]
    ) -> None:
        task_file = directory / "task.json"
        write_atomically(task_file, task.model_dump_json(indent=1).encode())
        self._log = (directory / "log").open("ab")
        self._process = subprocess.Popen(  # noqa: S603 - our own module, our own file
            [sys.executable, "-m", MODULES[task.kind], str(task_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=dict(environment),
        )
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
        self._reader.join()
        return self.reports(timeout_seconds=0.0)

    def ask_to_stop(self) -> None:
        """Let it write a checkpoint and exit."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Wait for its end and free what it held."""
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            try:
                self._reports.put(REPORTS.validate_json(line))
            except ValidationError:
                # A library printed to standard output; the job goes on, the line is kept for us.
                _LOG.warning("job_output_not_understood", line=line[:200].decode(errors="replace"))
