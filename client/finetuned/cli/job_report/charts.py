"""Charts as SVG for a page that fetches nothing, by matplotlib."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from finetuned.cli.job_report.curves import Chart

WIDTH_INCHES, HEIGHT_INCHES = 7.2, 2.8
MOST_MARKED_POINTS = 30
"""Fewer are drawn as points too: one alone is no line."""
COLORS = ("#1f6fb2", "#c8571b", "#3b8f4a", "#7b4fa3")


def line_chart(chart: Chart) -> str:
    """An `<svg>` element; equal for equal charts."""
    # Text stays text, and names within the picture are this chart's own among those of one page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.size": 9}):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
        axes: Any = figure.add_subplot()
        for (name, values), color in zip(chart.lines.items(), COLORS, strict=False):
            marker = "o" if len(values) <= MOST_MARKED_POINTS else ""
            axes.plot(
                list(values), list(values.values()), label=name, color=color, marker=marker, markersize=3
            )
        if chart.mark is not None:
            axes.axvline(chart.mark, color="#888888", linestyle=":", label=f"kept: step {chart.mark}")
        axes.set_xlabel("step")
        axes.grid(visible=True, alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if len(chart.lines) > 1 or chart.mark is not None:
            axes.legend(frameon=False)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    return text[text.index("<svg") :]
