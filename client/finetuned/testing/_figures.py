"""What the fake server's TrainJobs tell of their data and of how well they do.

The figures are invented but hang together: the plain base scores 0 and version n of an adapter n / (n + 1); of each
label so large a part is told right, and the rest is taken for the next label.
"""

from __future__ import annotations

from finetuned.testing._specs import figures_of
from finetuned.testing._store import Store
from finetuned.v1 import common_pb2, dataset_service_pb2, job_pb2

TOKENS_IN_ROW = 10
_LABELLED = {
    dataset_service_pb2.ROW_KIND_LABELLED_TEXT,
    dataset_service_pb2.ROW_KIND_LABELLED_IMAGE,
    dataset_service_pb2.ROW_KIND_LABELLED_TOKENS,
}
"""Rows of one label each, or of one for each word."""
_ERRORS = {"loss", "mean_absolute_error"}
"""The lower, the better."""


def score_of(version: int) -> float:
    """0 is the plain base."""
    return version / (version + 1)


def figures(store: Store, version: int, spec: job_pb2.TrainSpec) -> list[common_pb2.Metric]:
    """All figures of a version of an adapter, by a resolved spec."""
    score = score_of(version)
    return [
        common_pb2.Metric(name=name, value=2.0 - score, higher_is_better=False)
        if name in _ERRORS
        else common_pb2.Metric(name=name, value=score, higher_is_better=True)
        for name in figures_of(spec, store.datasets[spec.eval_dataset or spec.dataset])
    ]


def describe_data(store: Store, job: job_pb2.Job) -> None:
    """Write down what a job that is accepted will see; its labels are held out as often as the dataset has them."""
    rows = store.datasets[job.train.dataset]
    if job.train.eval_dataset:
        train_rows, eval_rows = rows.rows, store.datasets[job.train.eval_dataset].rows
    else:
        eval_rows = round(job.train.data.holdout_fraction * rows.rows)
        train_rows = rows.rows - eval_rows
    tokens = TOKENS_IN_ROW
    job.data_report.CopyFrom(
        job_pb2.DataReport(
            train_rows=train_rows,
            eval_rows=eval_rows,
            train_tokens=tokens * train_rows,
            supervised_tokens=tokens * train_rows // 2,
            mean_row_tokens=tokens,
            longest_row_tokens=tokens,
            row_tokens=common_pb2.LengthSummary(
                median=tokens, p90=tokens, p95=tokens, p99=tokens, longest=tokens, mean=tokens
            ),
            train_labels=rows.report.labels,
            eval_labels=rows.report.labels,
            imbalance_ratio=rows.report.imbalance_ratio,
            duplicate_rows=rows.report.duplicate_rows,
        )
    )


def confusion(store: Store, job: job_pb2.Job, version: int) -> common_pb2.ConfusionMatrix | None:
    """Of a version of an adapter; None where rows have no one label."""
    rows = store.datasets.get(job.train.dataset)
    if rows is None or rows.row_kind not in _LABELLED:
        return None
    counted = sorted(job.data_report.eval_labels, key=lambda count: count.label)
    size = len(counted)
    counts = [0] * size**2
    for place, label in enumerate(counted):
        right = round(score_of(version) * label.count)
        counts[place * size + place] += right
        counts[place * size + (place + 1) % size] += label.count - right
    return common_pb2.ConfusionMatrix(labels=[label.label for label in counted], counts=counts)
