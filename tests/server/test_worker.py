"""Jobs run by workers of their own, beside a server that runs none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from finetuned import Client, JobState
from served_jobs import eventually, finished, start
from tiny_server import TinyServer, make_data_directory, running


@pytest.fixture
def jobless(tmp_path: Path) -> Iterator[TinyServer]:
    make_data_directory(tmp_path)
    with running(tmp_path / "data", run_jobs=False) as server:
        yield server


@contextmanager
def worker(server: TinyServer, name: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "finetuned_service", "worker", "--worker-name", name]
    command += ["--data-dir", str(server.data_directory), "--base", "tiny", "--replica", "test"]
    command += ["--health-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    command += ["--job-threads", "1", "--lease-seconds", "2"]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_worker_runs_and_publishes_what_the_server_queues(jobless: TinyServer, tmp_rows: Path) -> None:
    with Client(jobless.endpoint) as client:
        client.datasets.upload(tmp_rows, "rows")
        job = start(client, "rows", "made-apart")
        with worker(jobless, "one") as process:
            done = finished(client, job).check()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert done.train_result is not None
        served = client.generate("say 3", adapter="made-apart", max_tokens=4).served_by
        assert served.adapter_digest == done.train_result.digest


def test_a_killed_worker_is_followed_by_another(jobless: TinyServer, tmp_rows: Path) -> None:
    """The second one goes on from the checkpoint; the server answers all the while."""
    with Client(jobless.endpoint) as client:
        client.datasets.upload(tmp_rows, "rows")
        job = start(client, "rows", "interrupted", steps=300, every=2)
        with worker(jobless, "one") as first:
            eventually(lambda: bool(client.jobs.get(job.name).checkpoints))
            os.kill(first.pid, signal.SIGKILL)
        assert client.generate("say 3", plain_base=True, max_tokens=2).text is not None
        with worker(jobless, "two"):
            done = finished(client, job).check()
        assert done.attempt == 2
        assert done.state is JobState.SUCCEEDED


def test_a_worker_that_stops_gives_its_job_back(jobless: TinyServer, tmp_rows: Path) -> None:
    with Client(jobless.endpoint) as client:
        client.datasets.upload(tmp_rows, "rows")
        job = start(client, "rows", "handed-on", steps=100_000, every=2)
        with worker(jobless, "one") as process:
            eventually(lambda: bool(client.jobs.get(job.name).checkpoints))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert client.jobs.get(job.name).state is JobState.QUEUED
        client.jobs.cancel(job.name)


def refusal(*flags: str) -> str:
    """What a worker says that does not start."""
    command = [sys.executable, "-m", "finetuned_service", "worker", *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr


def test_two_of_one_name_and_no_data_directory_are_refused(jobless: TinyServer, tmp_path: Path) -> None:
    with worker(jobless, "one") as process:
        eventually((jobless.data_directory / ".lock-test-one").exists)
        data_dir = str(jobless.data_directory)
        said = refusal("--data-dir", data_dir, "--replica", "test", "--worker-name", "one")
        assert "runs already; stop it, or choose another worker_name" in said
        assert process.poll() is None
    assert "start the server first" in refusal("--data-dir", str(tmp_path / "nowhere"))
