"""The verbs of `client.datasets`."""

# ruff: noqa: D417 - `names` is filled in by `_verbs.py`; callers never see it

from __future__ import annotations

from pathlib import Path

from finetuned import _convert as convert
from finetuned._calls.call import Call, Kind, Method, Page, SendCall, new_request_id
from finetuned._calls.upload import DatasetFile, ReportProgress
from finetuned._names import Names, to_id
from finetuned.v1 import dataset_service_pb2 as pb
from finetuned.values.datasets import Dataset, DatasetFormat, RowKind

_SERVICE = "DatasetService"


def _dataset(answer: pb.GetDatasetResponse | pb.UploadDatasetResponse | pb.ImportDatasetResponse) -> Dataset:
    return convert.read(answer.dataset, Dataset)


def upload(
    names: Names,
    path: str | Path,
    dataset_id: str | None = None,
    *,
    file_format: DatasetFormat = DatasetFormat.JSONL,
    progress: ReportProgress | None = None,
) -> SendCall[Dataset]:
    """Upload a file and have it validated; a broken connection continues where it broke.

    Args:
        path: a file of JSON lines: {"prompt", "completion"}, {"messages"} or {"text"} rows.
        dataset_id: the dataset's short name; made from the file's name if not given.
        progress: is told how much was sent; from another thread in `Client`.

    Raises:
        InvalidData: rows are not usable; `violations` name up to 20 lines, and nothing is stored.
        AlreadyExists: there is a dataset of this name.
        OSError: the file cannot be read.
    """
    file = DatasetFile(
        path=Path(path),
        parent=names.parent,
        dataset_id=dataset_id or to_id(Path(path).stem),
        file_format=convert.enum_name(pb.DatasetFormat.DESCRIPTOR, file_format),
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
    names: Names, uri: str, dataset_id: str, *, file_format: DatasetFormat = DatasetFormat.JSONL
) -> Call[Dataset]:
    """Make a dataset from a file that lies under one of the server's import roots (`file:///...`).

    Raises:
        InvalidData: rows are not usable; nothing is stored.
        InvalidField: the URI is not under an import root.
    """
    request = pb.ImportDatasetRequest(
        parent=names.parent,
        dataset_id=dataset_id,
        uri=uri,
        format=convert.enum_name(pb.DatasetFormat.DESCRIPTOR, file_format),
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
