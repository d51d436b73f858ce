"""The verbs of `client.datasets`."""

# ruff: noqa: D417 - `names` is filled in by `_verbs.py`; callers never see it

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetuned import _convert as convert
from finetuned._calls.call import Call, Kind, Method, Page, SendCall, new_request_id
from finetuned._calls.upload import DatasetFile, ReportProgress
from finetuned._names import Names, to_id
from finetuned.v1 import dataset_service_pb2 as pb
from finetuned.values.datasets import Dataset, DatasetFormat, RowKind, format_of_name

_SERVICE = "DatasetService"


def _dataset(answer: pb.GetDatasetResponse | pb.UploadDatasetResponse | pb.ImportDatasetResponse) -> Dataset:
    return convert.read(answer.dataset, Dataset)


def upload(
    names: Names,
    path: str | Path,
    dataset_id: str | None = None,
    *,
    file_format: DatasetFormat = DatasetFormat.UNKNOWN,
    columns: Mapping[str, str] | None = None,
    progress: ReportProgress | None = None,
) -> SendCall[Dataset]:
    """Upload a file and have it validated; a broken connection continues where it broke.

    Args:
        path: JSON lines, CSV, Parquet or CoNLL columns, as they are or through gzip, or a zip of images with one
            folder a class. `RowKind` says which fields rows have.
        dataset_id: the dataset's short name; made from the file's name if not given.
        file_format: the file's format; unless given, what its name ends with, and JSON lines where that tells
            nothing.
        columns: which column of the file is which field, such as {"sentence": "text"}; others are left out.
        progress: is told how much was sent; from another thread in `Client`.

    Raises:
        InvalidData: rows are not usable; `violations` name up to 20 lines, and nothing is stored.
        AlreadyExists: there is a dataset of this name.
        OSError: the file cannot be read.
    """
    file = DatasetFile(
        path=Path(path),
        parent=names.parent,
        dataset_id=dataset_id or to_id(Path(Path(path).name.removesuffix(".gz")).stem),
        file_format=convert.enum_name(
            pb.DatasetFormat.DESCRIPTOR,
            format_of_name(Path(path).name) if file_format is DatasetFormat.UNKNOWN else file_format,
        ),
        columns=dict(columns or {}),
        progress=progress,
    )
    committed = Method(_SERVICE, "GetUpload", pb.GetUploadResponse)
    return SendCall(
        Method(_SERVICE, "UploadDataset", pb.UploadDatasetResponse),
        file.messages,
        _dataset,
        committed_bytes=Call(
            committed,
            pb.GetUploadRequest(name=names.upload(file.upload_id)),
            lambda answer: answer.committed_bytes,
        ),
    )


def import_uri(
    names: Names,
    uri: str,
    dataset_id: str,
    *,
    file_format: DatasetFormat = DatasetFormat.UNKNOWN,
    columns: Mapping[str, str] | None = None,
) -> Call[Dataset]:
    """Make a dataset from a file that the server can read: `file:///...` under one of its import roots, or an URL
    such as `s3://bucket/prefix/file` under one of its import URLs.

    Args:
        uri: names the file.
        dataset_id: the dataset's short name.
        file_format: the file's format; unless given, what its name ends with.
        columns: which column of the file is which field, such as {"sentence": "text"}; others are left out.

    Raises:
        InvalidData: rows are not usable; nothing is stored.
        InvalidField: the URI is not under an import root or an import URL.
    """
    request = pb.ImportDatasetRequest(
        parent=names.parent,
        dataset_id=dataset_id,
        uri=uri,
        format=convert.enum_name(pb.DatasetFormat.DESCRIPTOR, file_format),
        columns=dict(columns or {}),
        request_id=new_request_id(),
    )
    return Call(Method(_SERVICE, "ImportDataset", pb.ImportDatasetResponse), request, _dataset, Kind.TRANSFER)


def get(names: Names, name: str) -> Call[Dataset]:
    """One dataset.

    Raises:
        NotFound: there is none of this name.
    """
    request = pb.GetDatasetRequest(name=names.dataset(name))
    return Call(Method(_SERVICE, "GetDataset", pb.GetDatasetResponse), request, _dataset)


def list_all(names: Names, *, row_kind: RowKind = RowKind.UNKNOWN, page_size: int = 0) -> Call[Page[Dataset]]:
    """The tenant's datasets in order of name, read page by page; UNKNOWN keeps every kind."""
    request = pb.ListDatasetsRequest(
        parent=names.parent,
        page_size=page_size,
        row_kind=convert.enum_name(pb.RowKind.DESCRIPTOR, row_kind),
    )

    def page(answer: pb.ListDatasetsResponse) -> Page[Dataset]:
        return Page(tuple(convert.read(item, Dataset) for item in answer.datasets), answer.next_page_token)

    return Call(Method(_SERVICE, "ListDatasets", pb.ListDatasetsResponse), request, page)


def delete(names: Names, name: str) -> Call[None]:
    """Delete a dataset that no unfinished job uses.

    Raises:
        NotFound: there is none of this name.
        ResourceInUse: an unfinished job uses it.
    """
    request = pb.DeleteDatasetRequest(name=names.dataset(name))
    method = Method(_SERVICE, "DeleteDataset", pb.DeleteDatasetResponse)
    return Call(method, request, lambda _: None, Kind.WRITE, repeatable=False)
