"""The job process of a Quantize run, as the dispatcher starts it, on a tiny base."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from finetuned_service.bases.manifest import compute_digest, read_manifest
from finetuned_service.jobs.events import Notice
from finetuned_service.jobs.process import EXIT_USAGE, environment_for_job_process
from finetuned_service.jobs.states import Fault
from finetuned_service.jobs.task import EXIT_FAILED, EXIT_FINISHED, REPORTS, Failed, QuantizeFinished, Usage
from tiny_bases import make_quantize_task, make_tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


def run_process(task_file: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "finetuned_service.quantization", str(task_file)],
        env=environment_for_job_process(1),
        capture_output=True,
        check=False,
        timeout=300,
    )


def run_task(task, directory: Path):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "task.json").write_text(task.model_dump_json())
    done = run_process(directory / "task.json")
    return done.returncode, [REPORTS.validate_json(line) for line in done.stdout.splitlines()]


def test_standard_output_is_nothing_but_reports_and_the_base_is_there(base, tmp_path):
    task = make_quantize_task(base, tmp_path, weight_format="INT8", quantize_embeddings=True)
    code, reports = run_task(task, tmp_path)
    assert code == EXIT_FINISHED
    finished, usage = reports[-2:]
    assert isinstance(finished, QuantizeFinished)
    assert isinstance(usage, Usage)
    assert usage.memory_bytes > 0
    assert read_manifest(tmp_path / "output").digest == compute_digest(tmp_path / "output")


def test_limits_are_set_and_told_first(base, tmp_path):
    task = make_quantize_task(base, tmp_path, weight_format="INT8")
    _, reports = run_task(task, tmp_path)
    assert isinstance(reports[0], Notice)
    assert "SCHED_IDLE" in reports[0].text


def test_a_refusal_is_reported_as_the_users_fault(base, tmp_path):
    task = make_quantize_task(base, tmp_path, weight_format="NF4", quantize_embeddings=True)
    code, reports = run_task(task, tmp_path)
    assert code == EXIT_FAILED
    assert isinstance(reports[-1], Failed)
    assert reports[-1].fault is Fault.USER
    assert reports[-1].error["reason"] == "INVALID_FIELD"
    assert not (tmp_path / "output").exists()


def test_a_task_that_cannot_be_read_is_a_usage_error(tmp_path):
    (tmp_path / "task.json").write_text("{}")
    done = run_process(tmp_path / "task.json")
    assert (done.returncode, done.stdout) == (EXIT_USAGE, b"")
