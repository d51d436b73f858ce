"""`finetuned metrics`: the server's Prometheus page, for people."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, final

import typer

from finetuned.cli.output import Cell, print_json, print_table
from finetuned.cli.session import AsJson
from finetuned.errors import Unavailable
from finetuned.settings import Settings

TIMEOUT_SECONDS = 10.0
_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """One line of Prometheus' text format."""

    name: str
    labels: dict[str, str]
    value: float


def parse(page: str) -> Iterator[Sample]:
    """The samples of a page (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    for line in page.splitlines():
        found = _SAMPLE.fullmatch(line.strip())
        if found is not None and not line.startswith("#"):
            labels = {key: _unescape(value) for key, value in _LABEL.findall(found["labels"] or "")}
            yield Sample(found["name"], labels, float(found["value"]))


def _unescape(value: str) -> str:
    return re.sub(r"\\[\\\"n]", lambda match: _ESCAPES[match[0]], value)


def metrics(
    *,
    contains: Annotated[str, typer.Argument(help="Only names that contain this.")] = "",
    url: Annotated[
        str | None,
        typer.Option(
            envvar="FINETUNED_METRICS_URL", help="The page.", show_default="http://localhost:9464/metrics"
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Python's own and histogram buckets too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the server measures; of histograms the count and the mean."""
    page_url = url or Settings().metrics_url
    samples = [
        sample
        for sample in parse(fetch(page_url))
        if contains in sample.name and (everything or sample.name.startswith("finetuned_"))
    ]
    if as_json:
        print_json(samples)
        return
    rows = _all_rows(samples) if everything else _rows(samples)
    print_table(page_url, ["metric", "labels", "value"], rows, empty=f"{page_url} has no such metric")


def fetch(url: str) -> str:
    """The page.

    Raises:
        ValueError: it is no URL of HTTP.
        Unavailable: there is no answer.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no http:// URL")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - checked above
            return str(answer.read().decode("utf-8"))
    except urllib.error.HTTPError as error:
        error.close()  # it is the answer, too, and holds the connection
        raise Unavailable(f"{url} answers {error.code}; is it the page in FINETUNED_METRICS_URL?") from None
    except OSError as error:
        raise Unavailable(f"{url} does not answer ({error}); set FINETUNED_METRICS_URL") from None


def _all_rows(samples: Sequence[Sample]) -> Iterator[Sequence[Cell]]:
    for sample in samples:
        yield sample.name, _labels(sample), sample.value


def _rows(samples: Sequence[Sample]) -> Iterator[Sequence[Cell]]:
    """A histogram is three names in Prometheus; here it is one row with its count and mean."""
    counts = {(sample.name, _labels(sample)): sample.value for sample in samples}
    histograms = {sample.name.removesuffix("_bucket") for sample in samples if "le" in sample.labels}
    for sample in samples:
        family, _, suffix = sample.name.rpartition("_")
        if family in histograms and suffix in {"bucket", "sum", "created"}:
            continue
        if family in histograms and suffix == "count":
            total = counts.get((f"{family}_sum", _labels(sample)), 0.0)
            mean = f", mean {total / sample.value:.4g}" if sample.value else ""
            yield family, _labels(sample), f"{sample.value:.0f} times{mean}"
        elif not sample.name.endswith("_created"):
            yield sample.name, _labels(sample), sample.value


def _labels(sample: Sample) -> str:
    return ", ".join(f"{key}={value}" for key, value in sample.labels.items())
