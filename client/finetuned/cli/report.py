"""A job in words and tables: as it was accepted, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from finetuned import Job, JobKind, JobState, Metric, QuantizeReport
from finetuned._names import short
from finetuned.cli.cost import expected, taken
from finetuned.cli.data_report import show_data_report
from finetuned.cli.output import Cell, err, print_facts, print_table, size


def show_job(job: Job) -> None:
    """The facts of a job, and its figures if it has any."""
    report, estimate = job.data_report, job.estimate
    print_facts(
        short(job.name) or "(checked only)",
        {
            "name": job.display_name,
            "kind": job.kind.lower(),
            "state": f"{job.state.lower()}{f' ({job.state_reason.lower()})' if job.state_reason != 'UNKNOWN' else ''}",
            "adapter": short(job.train.adapter) if job.train else None,
            "dataset": short(job.train.dataset) if job.train else None,
            "to": job.quantize.weight_format if job.quantize else None,
            "created": job.create_time,
            "ended": job.end_time,
            "kept until": job.expire_time,
            "priority": job.priority.lower() if job.priority not in {"NORMAL", "UNKNOWN"} else None,
            "attempt": job.attempt if job.attempt > 1 else None,
            "rows": f"{report.train_rows} to train on, {report.eval_rows} held out" if report else None,
            "tokens a pass": f"{report.train_tokens} ({report.supervised_tokens} supervised)"
            if report
            else None,
            "repeated rows": report.duplicate_rows or None if report else None,
            "leaked rows": report.leaked_rows or None if report else None,
            "estimate": expected(estimate) if estimate else None,
            "took": taken(job.usage) if job.usage else None,
            "overfitting": f"held-out loss {job.overfitting.best_loss:.4f} at step {job.overfitting.best_step}, "
            f"{job.overfitting.loss:.4f} at step {job.overfitting.step}"
            if job.overfitting
            else None,
            "error": job.error.message if job.error else None,
            "version": short(job.train_result.version) if job.train_result else None,
            "promotion": job.train_result.promotion if job.train_result else None,
            "base": job.quantize_result.base if job.quantize_result else None,
        },
    )
    if report is not None:
        show_data_report(report)
    show_metrics(job)
    if job.quantize_result is not None:
        show_quantize_report(job.quantize_result.report)


def show_metrics(job: Job) -> None:
    """The adapter's figures beside those of the plain base, on the same held-out rows."""
    subjects = {
        "plain base": job.baseline_metrics,
        "current version": job.incumbent_metrics,
        "this version": job.metrics,
    }
    known = {subject: found for subject, found in subjects.items() if found}
    if known:
        names = list(dict.fromkeys(metric.name for found in known.values() for metric in found))
        rows = [[name, *(_figure(found, name) for found in known.values())] for name in names]
        print_table("On the held-out rows", ["metric", *known], rows)


def _figure(found: Sequence[Metric], name: str) -> Cell:
    return next((metric.value for metric in found if metric.name == name), None)


def show_quantize_report(report: QuantizeReport) -> None:
    print_table(
        "Measured",
        ["", "source", "result"],
        [
            ["weights", size(report.source_bytes), size(report.quantized_bytes)],
            ["perplexity", report.source_perplexity, report.quantized_perplexity],
        ],
    )
    print_facts(
        "",
        {
            "mean KL divergence": f"{report.mean_kl_nats:.4g} nats",
            "same first token": f"{report.top1_agreement:.1%}",
            "measured on": f"{report.evaluated_tokens} tokens",
            "modules": report.quantized_modules,
            "kept as they were": ", ".join(report.kept_modules),
            "the source": report.source_lineage,
        },
    )


def say_next(job: Job) -> None:
    """What to type when a job has succeeded, or waits to begin."""
    if job.state is JobState.PAUSED:
        name = short(job.name)
        err().print(f"[dim]Next: finetuned jobs resume {name}, or finetuned jobs cancel {name}[/dim]")
    elif job.kind is JobKind.TRAIN and job.train_result is not None:
        err().print(
            f"[dim]Next: finetuned chat --adapter {short(job.train_result.version)}, or "
            f"finetuned jobs report {short(job.name)}[/dim]"
        )
    elif job.quantize_result is not None:
        err().print(f"[dim]Next: finetuned serve --base {short(job.quantize_result.base)}[/dim]")
