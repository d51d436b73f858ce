"""Datasets and uploads."""

from __future__ import annotations

from finetuned.v1 import dataset_service_pb2 as pb

from finetuned_service.datasets.formats.choose import DataFormat
from finetuned_service.datasets.kinds import RowKind
from finetuned_service.datasets.store import Dataset
from finetuned_service.rpc.convert.common import enum_name, time_to_proto


def dataset_to_proto(dataset: Dataset, *, with_report: bool = True) -> pb.Dataset:
    message = pb.Dataset(
        name=dataset.name,
        digest=dataset.digest,
        row_kind=f"ROW_KIND_{dataset.row_kind}",
        rows=dataset.rows,
        size_bytes=dataset.size_bytes,
        create_time=time_to_proto(dataset.create_time),
        source=dataset.source,
    )
    if with_report and dataset.report is not None:
        message.report.CopyFrom(pb.DatasetReport(**dataset.report.model_dump()))
    return message


def format_from_proto(file_format: int) -> DataFormat | None:
    """None for unspecified."""
    name = enum_name(pb.DatasetFormat, file_format, "DATASET_FORMAT_", "format")
    return DataFormat(name) if name else None


def row_kind_from_proto(row_kind: int) -> RowKind | None:
    """None for unspecified."""
    name = enum_name(pb.RowKind, row_kind, "ROW_KIND_", "row_kind")
    return RowKind(name) if name else None
