"""Quantize on the real SmolLM2-135M-Instruct: known bytes and digests, and what each format costs."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetuned_service.bases.load import load_base
from finetuned_service.bases.manifest import compute_digest, read_manifest
from finetuned_service.datasets.rows import to_json
from finetuned_service.jobs.events import Notice, Progress
from finetuned_service.jobs.process import environment_for_job_process
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, REPORTS, QuantizeFinished
from finetuned_service.jobs.values import QuantizeReport
from finetuned_service.quantization.gate import relative_rise
from finetuned_service.text.general import general_text
from finetuned_service.text.values import Text
from tiny_bases import make_quantize_task
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE_DIGEST = "sha256:aea61215864b46e4e9b8b067e5fb57fddae246339aaf07b251b2c08b0b495bfa"
INT8_DIGEST = "sha256:042f42c6e675c464fbd4c65b6d6076f108682bd5267707318d36f5bc0ec6e59a"


class Process:
    """A running job process and its reports."""

    def __init__(self, base: Path, directory: Path, **spec) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        task = make_quantize_task(base, directory, yield_to_serving=False, **spec)
        (directory / "task.json").write_text(task.model_dump_json())
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "finetuned_service.quantization", str(directory / "task.json")],
            env=environment_for_job_process(1),
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def reports(self):
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                yield REPORTS.validate_json(line)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        self._log.close()
        return self._process.wait(timeout=60)


def test_the_packaged_base_is_the_known_one(smollm2_directory):
    manifest = read_manifest(smollm2_directory)
    assert manifest.digest == BASE_DIGEST == compute_digest(smollm2_directory)
    assert (manifest.parameters, manifest.weight_bytes) == (134_515_008, 269_030_016)
    assert "4-bit (Q4_1)" in manifest.lineage_note


@pytest.fixture(scope="module")
def int8(smollm2_directory, tmp_path_factory) -> tuple[Path, QuantizeReport]:
    directory = tmp_path_factory.mktemp("int8")
    process = Process(smollm2_directory, directory, weight_format="INT8", quantize_embeddings=True)
    *_, last, _ = process.reports()
    assert process.wait() == EXIT_FINISHED
    assert isinstance(last, QuantizeFinished)
    return directory / "output", last.report


def test_int8_halves_the_bytes_and_costs_about_a_percent(int8):
    directory, report = int8
    assert read_manifest(directory).digest == INT8_DIGEST
    assert (report.source_bytes, report.quantized_bytes) == (269_030_016, 134_959_488)
    assert report.quantized_modules == 212
    assert relative_rise(report) == pytest.approx(0.007, abs=0.005)
    assert report.mean_kl_nats < 0.01
    assert report.top1_agreement > 0.92
    assert "4-bit (Q4_1)" in report.source_lineage


@torch.inference_mode()
def test_the_reported_perplexities_are_those_of_plain_transformers(int8, smollm2_directory):
    directory, report = int8
    token_ids = AutoTokenizer.from_pretrained(smollm2_directory)(
        general_text(), return_tensors="pt"
    ).input_ids
    for model, expected in (
        (AutoModelForCausalLM.from_pretrained(smollm2_directory), report.source_perplexity),
        (load_base(directory), report.quantized_perplexity),
    ):
        nats = tokens = 0.0
        for window in token_ids.split(512, dim=1):
            nats += model(window, labels=window).loss.double().item() * (window.shape[1] - 1)
            tokens += window.shape[1] - 1
        assert tokens == report.evaluated_tokens
        # Other thread counts sum bfloat16 products in other orders.
        assert math.exp(nats / tokens) == pytest.approx(expected, rel=2e-3)


def test_nf4_is_smaller_still_and_its_cost_is_told(smollm2_directory, tmp_path):
    rows = [Text(paragraph) for paragraph in general_text().split("\n\n")[:6]]
    (tmp_path / "rows.jsonl").write_text("".join(f"{to_json(row)}\n" for row in rows))
    process = Process(
        smollm2_directory,
        tmp_path / "job",
        weight_format="NF4",
        max_quality_drop=0.02,
        text_path=tmp_path / "rows.jsonl",
    )
    *before, last, _ = process.reports()
    assert process.wait() == EXIT_FINISHED
    assert isinstance(last, QuantizeFinished)
    assert last.report.quantized_bytes == 111_726_673
    assert 0.05 < relative_rise(last.report) < 0.6
    assert not last.accepted
    assert not (tmp_path / "job" / "output").exists()
    assert any(isinstance(report, Notice) and "4-bit (Q4_1)" in report.text for report in before)


def test_sigterm_ends_the_process_between_two_windows(smollm2_directory, tmp_path):
    process = Process(smollm2_directory, tmp_path, weight_format="INT8")
    reports = []
    for report in process.reports():
        reports.append(report)
        if isinstance(report, Progress) and report.phase == "measuring" and report.step == 0:
            process.stop()
    assert process.wait() == EXIT_STOPPED
    assert not any(isinstance(report, QuantizeFinished) for report in reports)
    assert {path.name for path in tmp_path.iterdir()} == {"task.json", "log"}
