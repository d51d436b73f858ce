"""Datasets and uploads."""

from __future__ import annotations

from finetuned.v1 import dataset_service_pb2 as pb

from finetuned_service.datasets.kinds import RowKind
from finetuned_service.datasets.store import Dataset
from finetuned_service.errors import Unimplemented
from finetuned_service.rpc.convert.common import enum_name, time_to_proto


def dataset_to_proto(dataset: Dataset) -> pb.Dataset:
    return pb.Dataset(
        name=dataset.name,
        digest=dataset.digest,
        row_kind=f"ROW_KIND_{dataset.row_kind}",
        rows=dataset.rows,
        size_bytes=dataset.size_bytes,
        create_time=time_to_proto(dataset.create_time),
        source=dataset.source,
    )


def check_format(file_format: int) -> None:
    """Refuse a file format of later builds.

    Raises:
        Unimplemented: naming it.
    """
    name = enum_name(pb.DatasetFormat, file_format, "DATASET_FORMAT_", "format")
    if name not in {"", "JSONL"}:
        raise Unimplemented.feature(f"DATASET_FORMAT_{name}", "DATASET_FORMAT_JSONL")


def row_kind_from_proto(row_kind: int) -> RowKind | None:
    """None for unspecified."""
    name = enum_name(pb.RowKind, row_kind, "ROW_KIND_", "row_kind")
    return RowKind(name) if name else None
