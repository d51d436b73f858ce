"""One Quantize run: encode, store in a scratch directory, measure what was stored, keep it if it is good.

Small enough to be done again from the start after an interruption, so there are no checkpoints.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from finetuned_service._version import VERSION
from finetuned_service.bases.device import CPU, instruction_set
from finetuned_service.bases.load import load_base
from finetuned_service.bases.manifest import BaseManifest, compute_digest, compute_dtype, read_manifest
from finetuned_service.bases.publish import building
from finetuned_service.errors import InvalidField
from finetuned_service.jobs.events import Environment, Notice, Progress
from finetuned_service.jobs.pace import Phase, Stopped
from finetuned_service.jobs.process import ReportFunction, StopFlag
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, Prepared, QuantizeFinished, QuantizeTask
from finetuned_service.jobs.values import QuantizeReport
from finetuned_service.names import BaseName, ResourceName
from finetuned_service.quantization.estimate import check_memory, estimate_run
from finetuned_service.quantization.formats import FORMATS
from finetuned_service.quantization.gate import passes
from finetuned_service.quantization.measure import Comparison, compare
from finetuned_service.quantization.plan import Plan, plan_quantization
from finetuned_service.quantization.store import store_quantized
from finetuned_service.quantization.text import measured_windows
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.vocabulary import WeightFormat

UNQUANTIZED = frozenset({WeightFormat.FP32, WeightFormat.FP16, WeightFormat.BF16})


def run(task: QuantizeTask, report: ReportFunction, stop: StopFlag) -> int:
    """Do the task; returns an exit code of `jobs/task.py`.

    Raises:
        FinetunedError: a refusal, to be reported as Failed.
    """
    torch.set_num_threads(task.limits.threads)
    source, output = Path(task.base_directory), Path(task.output_directory)
    manifest = _check_source(source, task)
    plan = plan_quantization(source, task.spec)
    rows_path = Path(task.text_path) if task.text_path else None
    windows = measured_windows(BaseTokenizer.load(source), rows_path, manifest.context_tokens)
    budget_bytes = task.limits.memory_budget_bytes
    estimate = estimate_run(source, plan, FORMATS[task.spec.weight_format], windows, budget_bytes)
    report(Prepared(environment=_environment(manifest, source), estimate=estimate))
    check_memory(estimate)
    if manifest.lineage_note:
        report(Notice(text=manifest.lineage_note))
    shutil.rmtree(output, ignore_errors=True)  # of an attempt that was killed before it could say so
    name = BaseName(task.spec.output_base_id, ResourceName.parse(task.job_name, "jobs").tenant)
    try:
        with building(output) as scratch:
            encoding = Phase("quantizing", len(plan.stored), report, stop)
            derived = store_quantized(source, scratch, plan, task.spec.weight_format, name, encoding.advance)
            measuring = Phase("measuring", len(windows), report, stop)
            comparison = compare(load_base(source), load_base(scratch), windows, measuring.advance)
            measured = _report(manifest, derived, plan, comparison)
            accepted = passes(measured, task.spec.max_quality_drop)
            report(Progress(phase="storing", total_steps=1))
            if not accepted:
                for path in scratch.iterdir():
                    path.unlink()
    except Stopped:
        return EXIT_STOPPED
    report(QuantizeFinished(report=measured, accepted=accepted))
    return EXIT_FINISHED


def _check_source(directory: Path, task: QuantizeTask) -> BaseManifest:
    manifest = read_manifest(directory)
    if manifest.weight_format not in UNQUANTIZED:
        raise InvalidField.one(
            "base",
            f"{manifest.name} is {manifest.weight_format} already; rounding twice only adds errors: quantize "
            f"{manifest.source}, which it was made from",
        )
    if compute_digest(directory) != task.base_digest:
        raise InvalidField.one(
            "base", f"{manifest.name} is no longer the one that the job was made for; submit the job again"
        )
    return manifest


def _environment(source: BaseManifest, directory: Path) -> Environment:
    return Environment(
        base_digest=source.digest,
        service_version=VERSION,
        torch_version=version("torch"),
        instruction_set=instruction_set(CPU),
        threads=torch.get_num_threads(),
        compute_dtype=compute_dtype(directory),
    )


def _report(
    source: BaseManifest, derived: BaseManifest, plan: Plan, comparison: Comparison
) -> QuantizeReport:
    return QuantizeReport(
        source_bytes=source.weight_bytes,
        quantized_bytes=derived.weight_bytes,
        source_perplexity=comparison.source_perplexity,
        quantized_perplexity=comparison.quantized_perplexity,
        mean_kl_nats=comparison.mean_kl_nats,
        top1_agreement=comparison.top1_agreement,
        evaluated_tokens=comparison.tokens,
        quantized_modules=len(plan.quantized),
        kept_modules=plan.kept,
        source_lineage=source.lineage_note,
    )
