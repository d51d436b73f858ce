"""A job process for tests: does what its first argument lists, in the language of `jobs/task.py`.

    python fake_job.py STEP,STEP,... TASK.json

Standard library only, so that it starts at once. Steps:

    note            tell this process's number, attempt and rows at once, and count the attempt in the work directory
    progress=N      report a step of training on N tokens
    estimated=N     report an estimate of N bytes and a second
    checkpoint=N    report the checkpoint after step N
    used=N          report N bytes used
    measured=N      report N tokens measured by a quantization
    once:STEP       only in the first process of the job
    third:STEP      only in the third one
    gate            go on when the file `go` lies in the job's directory
    stop            wait for SIGTERM, leave a checkpoint, exit as stopped
    stubborn        from now on SIGTERM is ignored
    hang            do nothing for long
    orphan          leave a process behind that holds the standard output
    garbage         print what is no report
    adapter=F       write an adapter whose numbers are F
    base=F          write a base whose numbers are F
    finished=A/B    report the end of a training run: exact match A, of the incumbent B (may be missing)
    quantized=A/B   report the end of a quantization: perplexity A, before it B; kept if A is below 9
    failed          report a failure of the user's
    paused          report that the job waits to be told to begin
    suspended       report a full disk
    no-engine       report that the engine has ended whose base the job computes with
    over-memory     report that the memory budget was reached
    crash           be killed
    exit=N          exit with that code
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tiny_files import write_adapter, write_base

LONG_SECONDS = 60.0
EXIT_STOPPED = 75
ONLY = {"once:": 1, "third:": 3}
"""Which of the job's processes does a step, by what stands before it."""
TOO_LONG = {"reason": "INVALID_DATA", "message": "row 3 is too long", "metadata": {}, "violations": []}

OVER_MEMORY = {
    "reason": "NO_ROOM",
    "message": "the job holds 9 MB",
    "metadata": {"memory_bytes": "9000000", "memory_budget_bytes": "8000000"},
    "violations": [],
}


def report(kind: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"kind": kind, **fields}) + "\n")
    sys.stdout.flush()


def report_step(tokens: str) -> None:
    report(
        "progress", phase="training", step=1, tokens=int(tokens), step_tokens=int(tokens), step_seconds=0.5
    )


def exact_match(value: str) -> list[object]:
    return [{"name": "exact_match", "value": float(value), "higher_is_better": True}] if value else []


def leave_an_orphan() -> None:
    orphan = subprocess.Popen([sys.executable, "-S", "-c", f"import time; time.sleep({LONG_SECONDS})"])
    report("notice", text=f"orphan {orphan.pid}")


def print_garbage() -> None:
    sys.stdout.buffer.write(b"Loading weights: 100%\n{}\n\xff\xfe\n" + b"x" * 100_000 + b"\n")
    sys.stdout.flush()


def report_trained(new: str, old: str = "") -> None:
    report("train_finished", metrics=exact_match(new), incumbent_metrics=exact_match(old))


def report_quantized(perplexity: float, before: float) -> None:
    measurements = {
        "source_bytes": 320,
        "quantized_bytes": 160,
        "source_perplexity": before,
        "quantized_perplexity": perplexity,
        "mean_kl_nats": 0.01,
        "top1_agreement": 0.99,
        "evaluated_tokens": 100,
        "quantized_modules": 2,
    }
    report("quantize_finished", report=measurements, accepted=perplexity < 9)


def wait_for(path: Path) -> None:
    end = time.monotonic() + LONG_SECONDS
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.005)


class Process:
    """One run of the program."""

    def __init__(self, task_file: Path) -> None:
        self.task = json.loads(task_file.read_text())
        self.directory = task_file.parent
        self.work = Path(self.task["work_directory"])
        self.output = Path(self.task["output_directory"])
        self.number = len(list(self.work.glob("process-*"))) + 1
        (self.work / f"process-{self.number}").touch()
        self.stopped = False
        signal.signal(signal.SIGTERM, self._stop)
        self.steps: dict[str, Callable[[str], object]] = {
            "note": lambda _: report("notice", text=self._note()),
            "progress": report_step,
            "measured": lambda value: report("progress", phase="measuring", tokens=int(value)),
            "estimated": lambda value: report(
                "estimated", estimate={"memory_bytes": int(value), "duration_seconds": 1.0}
            ),
            "checkpoint": lambda value: report("checkpoint", step=int(value)),
            "used": lambda value: report("usage", memory_bytes=int(value)),
            "gate": lambda _: wait_for(self.directory / "go"),
            "stop": lambda _: self._end_when_stopped(),
            "until-stop": lambda _: self._wait_for_stop(),
            "stubborn": lambda _: signal.signal(signal.SIGTERM, signal.SIG_IGN),
            "hang": lambda _: wait_for(self.directory / "never"),
            "orphan": lambda _: leave_an_orphan(),
            "garbage": lambda _: print_garbage(),
            "adapter": lambda value: write_adapter(self.output, fill=float(value)),
            "base": lambda value: self._write_base(float(value)),
            "finished": lambda value: report_trained(*value.split("/")),
            "quantized": lambda value: report_quantized(*map(float, value.split("/"))),
            "failed": lambda _: report("failed", error=TOO_LONG, fault="USER"),
            "over-memory": lambda _: report("failed", error=OVER_MEMORY, fault="USER"),
            "paused": lambda _: report("suspended", reason="ESTIMATED", text="it waits"),
            "suspended": lambda wanted: report(
                "suspended", reason="DISK_FULL", text="the disk is full", disk_bytes_wanted=int(wanted or 0)
            ),
            "no-engine": lambda _: report("suspended", reason="ENGINE_ENDED", text="the engine has ended"),
            "crash": lambda _: os.kill(os.getpid(), signal.SIGKILL),
            "exit": lambda value: sys.exit(int(value)),
        }

    def do(self, step: str) -> None:
        for prefix, number in ONLY.items():
            if step.startswith(prefix) and self.number != number:
                return
            step = step.removeprefix(prefix)
        name, _, value = step.partition("=")
        self.steps[name](value)

    def _stop(self, _number: int, _frame: object) -> None:
        self.stopped = True

    def _note(self) -> str:
        rows = self.task.get("micro_batch_rows", 0)
        return f"pid {os.getpid()} process {self.number} attempt {self.task['attempt']} rows={rows}"

    def _wait_for_stop(self) -> None:
        end = time.monotonic() + LONG_SECONDS
        while not self.stopped and time.monotonic() < end:
            time.sleep(0.005)

    def _end_when_stopped(self) -> None:
        self._wait_for_stop()
        (self.work / "checkpoint").touch()
        sys.exit(EXIT_STOPPED)

    def _write_base(self, fill: float) -> None:
        write_base(self.output, fill=fill)
        digest = f"sha256:{round(fill * 1000):064x}"
        manifest = {
            "name": "bases/output",
            "digest": digest,
            "root_digest": self.task["base_digest"],
            "architecture": "LlamaForCausalLM",
            "weight_format": "INT8",
            "parameters": 40,
            "weight_bytes": 160,
            "context_tokens": 256,
            "source": "bases/tiny",
            "create_time": "2026-01-01T00:00:00Z",
        }
        (self.output / "base.json").write_text(json.dumps(manifest))
        for path in self.output.iterdir():
            path.chmod(0o444)


if __name__ == "__main__":
    process = Process(Path(sys.argv[2]))
    for step in sys.argv[1].split(","):
        process.do(step)
