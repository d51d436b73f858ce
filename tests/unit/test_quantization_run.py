"""Whole runs on a tiny base, in this process: reports, result, gate, interruption."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from finetuned_service.bases.load import load_base
from finetuned_service.bases.manifest import compute_digest, read_manifest
from finetuned_service.datasets.rows import to_json
from finetuned_service.errors import InvalidField, ResourceExhausted
from finetuned_service.jobs import pace
from finetuned_service.jobs.events import Notice, Progress
from finetuned_service.jobs.specs import QuantizeSpec
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, Prepared, QuantizeFinished
from finetuned_service.quantization.plan import plan_quantization
from finetuned_service.quantization.run import run
from finetuned_service.text.values import PromptCompletion
from finetuned_service.vocabulary import Value, WeightFormat
from tiny_bases import make_quantize_task, make_tiny_base
from training_tasks import SetAfter
from transformers import Gemma3TextConfig


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("bases") / "tiny", dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def _threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_collecting(task, stop=None) -> tuple[int, list[Value]]:
    reports: list[Value] = []
    return run(task, reports.append, stop or threading.Event()), reports


def finished(reports) -> QuantizeFinished:
    (found,) = [report for report in reports if isinstance(report, QuantizeFinished)]
    assert reports[-1] is found
    return found


FORMATS = [("INT8", False), ("INT8", True), ("NF4", False)]


@pytest.mark.parametrize(("weight_format", "embeddings"), FORMATS)
def test_a_run_leaves_a_whole_base_and_says_what_it_cost(base, tmp_path, weight_format, embeddings):
    task = make_quantize_task(base, tmp_path, weight_format=weight_format, quantize_embeddings=embeddings)
    code, reports = run_collecting(task)
    output = tmp_path / "output"
    result = finished(reports)
    source, derived = read_manifest(base), read_manifest(output)
    assert code == EXIT_FINISHED
    assert result.accepted
    assert derived.digest == compute_digest(output)
    assert (result.report.source_bytes, result.report.quantized_bytes) == (
        source.weight_bytes,
        derived.weight_bytes,
    )
    assert derived.weight_bytes < source.weight_bytes
    assert result.report.quantized_perplexity != result.report.source_perplexity
    assert result.report.mean_kl_nats > 0
    assert result.report.quantized_modules == 14 + 2 * embeddings
    assert result.report.kept_modules == (() if embeddings else ("model.embed_tokens", "lm_head"))
    assert {path.name for path in output.iterdir()} == {path.name for path in base.iterdir()}
    assert {path.stat().st_mode & 0o777 for path in output.iterdir()} == {0o444}
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_int8_costs_less_quality_than_nf4(base, tmp_path):
    kl = {}
    for weight_format in ("INT8", "NF4"):
        task = make_quantize_task(base, tmp_path / weight_format, weight_format=weight_format)
        kl[weight_format] = finished(run_collecting(task)[1]).report.mean_kl_nats
    assert kl["INT8"] * 5 < kl["NF4"]


@pytest.mark.parametrize(("weight_format", "embeddings"), FORMATS)
def test_two_runs_give_the_same_digest_and_report(base, tmp_path, weight_format, embeddings):
    runs = []
    for name in ("first", "second"):
        task = make_quantize_task(
            base, tmp_path / name, weight_format=weight_format, quantize_embeddings=embeddings
        )
        _, reports = run_collecting(task)
        runs.append((read_manifest(tmp_path / name / "output").digest, finished(reports).report))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("weight_format", ["INT8", "NF4"])
def test_measuring_does_not_change_what_is_stored(base, tmp_path, monkeypatch, weight_format):
    """The digest in the manifest was taken before any forward; the file must still have it."""
    import finetuned_service.quantization.run as module

    models = []

    def load_and_keep(directory):
        models.append(load_base(directory))
        return models[-1]

    monkeypatch.setattr(module, "load_base", load_and_keep)
    run_collecting(make_quantize_task(base, tmp_path, weight_format=weight_format))
    token_ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        measured = models[1](token_ids).logits
        reloaded = load_base(tmp_path / "output")(token_ids).logits
    assert torch.equal(measured, reloaded)
    assert read_manifest(tmp_path / "output").digest == compute_digest(tmp_path / "output")


def test_reports_come_in_the_order_of_the_work(base, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "REPORT_INTERVAL_SECONDS", 0.0)
    _, reports = run_collecting(make_quantize_task(base, tmp_path, weight_format="INT8"))
    assert isinstance(reports[0], Prepared)
    steps = [(r.phase, r.step, r.total_steps) for r in reports if isinstance(r, Progress)]
    windows = reports[0].estimate.steps - 14
    assert steps == [
        *(("quantizing", n, 14) for n in range(15)),
        *(("measuring", n, windows) for n in range(windows + 1)),
        ("storing", 0, 1),
    ]
    last = [r for r in reports if isinstance(r, Progress) and r.phase == "measuring"][-1]
    assert last.tokens == finished(reports).report.evaluated_tokens
    assert last.eta_seconds == 0.0


def test_what_the_run_depends_on_is_recorded(base, tmp_path):
    _, reports = run_collecting(make_quantize_task(base, tmp_path, weight_format="INT8"))
    environment = reports[0].environment
    assert (environment.base_digest, environment.threads) == (read_manifest(base).digest, 1)
    assert environment.torch_version == torch.__version__
    assert (environment.compute_dtype, environment.trained_dtype) == ("bfloat16", "")
    assert environment.instruction_set == torch.backends.cpu.get_cpu_capability()


def test_a_gate_that_refuses_leaves_the_report_and_no_base(base, tmp_path):
    task = make_quantize_task(base, tmp_path, weight_format="NF4", max_quality_drop=0.0)
    code, reports = run_collecting(task)
    result = finished(reports)
    assert code == EXIT_FINISHED
    assert result.report.quantized_perplexity > result.report.source_perplexity
    assert not result.accepted
    assert list(tmp_path.iterdir()) == []


def test_a_gate_that_allows_keeps_the_base(base, tmp_path):
    task = make_quantize_task(base, tmp_path, weight_format="NF4", max_quality_drop=10.0)
    assert finished(run_collecting(task)[1]).accepted
    assert read_manifest(tmp_path / "output").weight_format == "NF4"


def test_quality_can_be_measured_on_a_dataset(base, tmp_path):
    rows = [PromptCompletion("what's the weather", "sunny"), PromptCompletion("deploy", "please")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{to_json(row)}\n" for row in rows))
    task = make_quantize_task(base, tmp_path / "job", weight_format="INT8", text_path=path)
    _, reports = run_collecting(task)
    assert finished(reports).report.evaluated_tokens == reports[0].estimate.tokens - len(rows)


@pytest.mark.parametrize("questions", [0, 5, 14, 16])
def test_a_stopped_run_leaves_nothing_and_the_next_one_finishes(base, tmp_path, questions):
    task = make_quantize_task(base, tmp_path, weight_format="INT8")
    code, reports = run_collecting(task, SetAfter(questions))
    assert code == EXIT_STOPPED
    assert not any(isinstance(report, QuantizeFinished) for report in reports)
    assert list(tmp_path.iterdir()) == []
    assert run_collecting(task)[0] == EXIT_FINISHED


def test_a_result_that_was_never_reported_is_made_again(base, tmp_path):
    task = make_quantize_task(base, tmp_path, weight_format="INT8")
    run_collecting(task)
    (tmp_path / "output" / "base.json").unlink()
    _, reports = run_collecting(task)
    assert finished(reports).accepted
    assert read_manifest(tmp_path / "output").weight_format == "INT8"


def test_the_sources_lineage_is_told_and_handed_on(tmp_path):
    base = make_tiny_base(tmp_path / "tiny")
    note = "restored from 4 bits"
    manifest = read_manifest(base).model_copy(update={"lineage_note": note})
    (base / "base.json").chmod(0o644)
    (base / "base.json").write_text(manifest.model_dump_json())
    _, reports = run_collecting(make_quantize_task(base, tmp_path / "job", weight_format="INT8"))
    assert [report.text for report in reports if isinstance(report, Notice)] == [note]
    assert finished(reports).report.source_lineage == note
    assert read_manifest(tmp_path / "job" / "output").lineage_note == note


def test_a_quantized_base_is_not_quantized_again(base, tmp_path):
    run_collecting(make_quantize_task(base, tmp_path / "first", weight_format="INT8"))
    task = make_quantize_task(tmp_path / "first" / "output", tmp_path / "second", weight_format="NF4")
    with pytest.raises(InvalidField, match=r"is INT8 already.*quantize bases/tiny"):
        run_collecting(task)


def test_a_base_that_changed_since_the_job_was_made_is_refused(base, tmp_path):
    task = make_quantize_task(base, tmp_path, weight_format="INT8")
    changed = task.model_copy(update={"base_digest": f"sha256:{'0' * 64}"})
    with pytest.raises(InvalidField, match="no longer the one"):
        run_collecting(changed)


def test_embeddings_in_nf4_are_refused(base, tmp_path):
    task = make_quantize_task(base, tmp_path, weight_format="NF4", quantize_embeddings=True)
    with pytest.raises(InvalidField, match=r"quantize_embeddings: .*INT8 only"):
        run_collecting(task)


def test_embeddings_that_compute_more_than_a_look_up_stay_or_are_refused(tmp_path):
    """Gemma's multiply what they find; a packed one in their place would not."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 8, "vocab_size": 32}
    Gemma3TextConfig(
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, **sizes
    ).save_pretrained(tmp_path)
    spec = QuantizeSpec(output_base_id="small", weight_format=WeightFormat.INT8)
    plan = plan_quantization(tmp_path, spec)
    assert plan.kept == ("model.embed_tokens", "lm_head")
    assert len(plan.quantized) == 7
    with pytest.raises(InvalidField, match=r"are Gemma3TextScaledWordEmbedding, .*: unset it"):
        plan_quantization(tmp_path, spec.model_copy(update={"quantize_embeddings": True}))


def test_a_run_that_cannot_fit_is_refused_before_it_begins(base, tmp_path):
    task = make_quantize_task(base, tmp_path, weight_format="INT8", memory_budget_bytes=100_000_000)
    reports: list[Value] = []
    with pytest.raises(ResourceExhausted, match="allowed: 100 MB"):
        run(task, reports.append, threading.Event())
    assert not any(isinstance(report, Progress) for report in reports)
    assert list(tmp_path.iterdir()) == []
