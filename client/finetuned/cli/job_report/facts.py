"""The tables of a job's report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from finetuned.cli.cost import expected, taken
from finetuned.cli.output import duration, size, to_json
from finetuned.values.jobs import DataReport, Environment, Job

Facts = list[tuple[str, str]]


def metric_table(job: Job) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Who was measured; and for each figure its name and what each of them has."""
    known = {
        subject: {metric.name: metric.value for metric in found}
        for subject, found in {
            "plain base": job.baseline_metrics,
            "current version": job.incumbent_metrics,
            "this version": job.metrics,
        }.items()
        if found
    }
    names = list(dict.fromkeys(name for found in known.values() for name in found))
    rows = [
        (name, [f"{found[name]:.4g}" if name in found else "" for found in known.values()]) for name in names
    ]
    return list(known), rows


def settings(job: Job) -> Facts:
    """The resolved spec, by dotted names."""
    spec: Any = to_json(job.train or job.quantize)
    return list(_flat(spec, ""))


def cost(job: Job) -> Facts:
    """What the job took."""
    progress, estimate, usage = job.progress, job.estimate, job.usage
    seconds = (job.end_time - job.start_time).total_seconds() if job.start_time and job.end_time else None
    facts = {
        "from start to end": duration(seconds) if seconds is not None else None,
        "attempts": job.attempt,
        "steps": f"{max(c.step for c in job.checkpoints)}" if job.checkpoints else None,
        "tokens trained on": f"{progress.tokens:,}" if progress and progress.tokens else None,
        "threads": job.environment.threads if job.environment else None,
        "precision": precision(job.environment) if job.environment else None,
        "rows at once, for want of memory": job.micro_batch_rows or None,
        "took": taken(usage) if usage else None,
        "of that, interpreter and libraries": size(estimate.runtime_memory_bytes)
        if estimate and estimate.runtime_memory_bytes and usage
        else None,
        "pages of the base, shared with the server": size(estimate.base_memory_bytes)
        if estimate and estimate.base_memory_bytes
        else None,
        "expected beforehand": expected(estimate) if estimate else None,
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def lengths(report: DataReport) -> str:
    """How the lengths of rows are spread; empty where they have none, as images."""
    found = report.row_tokens
    if found is None or not found.longest:
        return ""
    spread = {
        "median": found.median,
        "90%": found.p90,
        "95%": found.p95,
        "99%": found.p99,
        "longest": found.longest,
    }
    return f"mean {found.mean:.1f}, " + ", ".join(f"{name} {value}" for name, value in spread.items())


def lineage(job: Job) -> Facts:
    """What it was made from, and what was made."""
    spec, result, environment = job.train, job.train_result, job.environment
    facts = {
        "job": job.name,
        "runs again": job.rerun_of,
        "dataset": spec.dataset if spec else "",
        "dataset digest": environment.dataset_digest if environment else "",
        "held-out dataset": spec.eval_dataset if spec else "",
        "held-out digest": environment.eval_dataset_digest if environment else "",
        "base": spec.base if spec else job.quantize.base if job.quantize else "",
        "base digest": environment.base_digest if environment else "",
        "goes on from": spec.continue_from if spec else "",
        "version": result.version if result else "",
        "version digest": result.digest if result else "",
        "promotion": result.promotion if result else "",
        "new base": job.quantize_result.base if job.quantize_result else "",
        "service": environment.service_version if environment else "",
        "torch": f"{environment.torch_version} ({environment.instruction_set})" if environment else "",
    }
    return [(name, value) for name, value in facts.items() if value]


def precision(environment: Environment) -> str | None:
    """In what products and what trains are computed; None of jobs of older servers."""
    if not environment.compute_dtype:
        return None
    trained = f", what trains in {environment.trained_dtype}" if environment.trained_dtype else ""
    return f"products in {environment.compute_dtype}{trained}"


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[str, Any]", value).items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    elif value not in (None, "", [], "UNKNOWN"):
        yield prefix, str(value)
