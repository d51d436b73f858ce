"""The page of a running server as Prometheus and its tool see it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


@dataclass
class Family:
    """One metric as docs and rules name it: counters with their `_total`."""

    name: str
    type: str
    help: str
    labels: set[str] | None = None
    """None where the page has no series of it: a counter by label that has counted nothing yet."""

    def row(self, labels: str | None = None) -> str:
        """As docs/metrics.md has it; `labels` stand for those that the page does not tell."""
        if self.labels is not None:
            labels = ", ".join(f"`{label}`" for label in sorted(self.labels))
        return f"| `{self.name}` | {self.type} | {labels} | {self.help} |"

    @property
    def series(self) -> set[str]:
        """The names that a query may use."""
        if self.type == "histogram":
            return {f"{self.name}_{suffix}" for suffix in ("bucket", "sum", "count")}
        return {self.name}


def families(page: str) -> dict[str, Family]:
    """The metrics of ours on a page, by name."""
    found: dict[str, Family] = {}
    for family in text_string_to_metric_families(page):
        if family.name.startswith("finetuned_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = {key for sample in family.samples for key in sample.labels} - {"le"}
            labels = labels if family.samples else None
            found[name] = Family(name, family.type, family.documentation, labels)
    return found


def promtool(*arguments: str | Path, stdin: str = "") -> str:
    """What Prometheus' own checker says; fails if it finds fault."""
    beside = Path(sys.executable).with_name("promtool")
    program = beside if beside.exists() else shutil.which("promtool")
    assert program is not None, "promtool is missing; `make .venv/bin/promtool` gets it"
    done = subprocess.run(
        [program, *arguments], input=stdin, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
