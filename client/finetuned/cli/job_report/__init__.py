"""The report of a job: one HTML page that holds everything, made from its record and its events.

Needs jinja2 and matplotlib, the extra `report`; imported only where a report is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, select_autoescape
from markupsafe import Markup

from finetuned._names import short
from finetuned.cli.data_report import imbalance
from finetuned.cli.job_report.charts import line_chart
from finetuned.cli.job_report.confusion import confusion_tables
from finetuned.cli.job_report.curves import Curves
from finetuned.cli.job_report.facts import cost, lengths, lineage, metric_table, settings
from finetuned.values.events import JobEvent, Severity
from finetuned.values.jobs import Job

MOST_SAMPLES = 20
MOST_LABELS = 50


def html_report(job: Job, events: Iterable[JobEvent]) -> str:
    """The page, without anything that a browser would have to fetch.

    Args:
        job: as it is now; final or not.
        events: all that are kept of it, in their order.
    """
    known = list(events)
    curves = Curves.of(known)
    notices = [(event.time, event.notice) for event in known if event.notice is not None]
    environment = Environment(
        autoescape=select_autoescape(default=True, default_for_string=True), undefined=StrictUndefined
    )
    template = environment.from_string(
        (files("finetuned.cli.job_report") / "report.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        job=job,
        title=short(job.name),
        # Matplotlib escapes what it writes.
        charts=[(chart.title, Markup(line_chart(chart))) for chart in curves.charts(job)],  # noqa: S704 - see above
        subjects=metric_table(job),
        confusions=list(confusion_tables(job)),
        samples=job.samples[:MOST_SAMPLES],
        lengths=lengths(job.data_report) if job.data_report else "",
        imbalance=imbalance(job.data_report.imbalance_ratio) if job.data_report else None,
        labels=(job.data_report.train_labels[:MOST_LABELS] if job.data_report else ()),
        eval_labels={c.label: c.count for c in job.data_report.eval_labels} if job.data_report else {},
        settings=settings(job),
        cost=cost(job),
        lineage=lineage(job),
        warnings=[notice.text for _, notice in notices if notice.severity is Severity.WARNING],
    )
