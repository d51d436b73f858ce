"""Whether a quantized base is good enough to keep."""

from __future__ import annotations

from finetuned_service.jobs.values import QuantizeReport


def relative_rise(report: QuantizeReport) -> float:
    """How much the perplexity rose: 0.02 is 2% above the source's, negative is better than it."""
    return report.quantized_perplexity / report.source_perplexity - 1


def passes(report: QuantizeReport, max_quality_drop: float | None) -> bool:
    """Whether the rise is at most `max_quality_drop`; without one, everything passes."""
    return max_quality_drop is None or relative_rise(report) <= max_quality_drop
