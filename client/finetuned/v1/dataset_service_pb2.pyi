import datetime

from finetuned.v1 import common_pb2 as _common_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DatasetFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATASET_FORMAT_UNSPECIFIED: _ClassVar[DatasetFormat]
    DATASET_FORMAT_JSONL: _ClassVar[DatasetFormat]
    DATASET_FORMAT_CSV: _ClassVar[DatasetFormat]
    DATASET_FORMAT_PARQUET: _ClassVar[DatasetFormat]
    DATASET_FORMAT_CONLL: _ClassVar[DatasetFormat]
    DATASET_FORMAT_IMAGE_FOLDER: _ClassVar[DatasetFormat]

class RowKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_KIND_UNSPECIFIED: _ClassVar[RowKind]
    ROW_KIND_PROMPT_COMPLETION: _ClassVar[RowKind]
    ROW_KIND_CHAT: _ClassVar[RowKind]
    ROW_KIND_TEXT: _ClassVar[RowKind]
    ROW_KIND_LABELLED_TEXT: _ClassVar[RowKind]
    ROW_KIND_LABELLED_TOKENS: _ClassVar[RowKind]
    ROW_KIND_PAIR: _ClassVar[RowKind]
    ROW_KIND_PREFERENCE: _ClassVar[RowKind]
    ROW_KIND_LABELLED_IMAGE: _ClassVar[RowKind]
    ROW_KIND_MULTI_LABEL_TEXT: _ClassVar[RowKind]
    ROW_KIND_SCORED_TEXT: _ClassVar[RowKind]
    ROW_KIND_SCORED_PAIR: _ClassVar[RowKind]
DATASET_FORMAT_UNSPECIFIED: DatasetFormat
DATASET_FORMAT_JSONL: DatasetFormat
DATASET_FORMAT_CSV: DatasetFormat
DATASET_FORMAT_PARQUET: DatasetFormat
DATASET_FORMAT_CONLL: DatasetFormat
DATASET_FORMAT_IMAGE_FOLDER: DatasetFormat
ROW_KIND_UNSPECIFIED: RowKind
ROW_KIND_PROMPT_COMPLETION: RowKind
ROW_KIND_CHAT: RowKind
ROW_KIND_TEXT: RowKind
ROW_KIND_LABELLED_TEXT: RowKind
ROW_KIND_LABELLED_TOKENS: RowKind
ROW_KIND_PAIR: RowKind
ROW_KIND_PREFERENCE: RowKind
ROW_KIND_LABELLED_IMAGE: RowKind
ROW_KIND_MULTI_LABEL_TEXT: RowKind
ROW_KIND_SCORED_TEXT: RowKind
ROW_KIND_SCORED_PAIR: RowKind

class Dataset(_message.Message):
    __slots__ = ("name", "digest", "row_kind", "rows", "size_bytes", "create_time", "source", "report")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROW_KIND_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    row_kind: RowKind
    rows: int
    size_bytes: int
    create_time: _timestamp_pb2.Timestamp
    source: str
    report: DatasetReport
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., row_kind: _Optional[_Union[RowKind, str]] = ..., rows: _Optional[int] = ..., size_bytes: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., source: _Optional[str] = ..., report: _Optional[_Union[DatasetReport, _Mapping]] = ...) -> None: ...

class DatasetReport(_message.Message):
    __slots__ = ("characters", "labels", "imbalance_ratio", "duplicate_rows", "conflicting_rows", "warnings")
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_RATIO_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_ROWS_FIELD_NUMBER: _ClassVar[int]
    CONFLICTING_ROWS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    characters: _common_pb2.LengthSummary
    labels: _containers.RepeatedCompositeFieldContainer[_common_pb2.LabelCount]
    imbalance_ratio: float
    duplicate_rows: int
    conflicting_rows: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, characters: _Optional[_Union[_common_pb2.LengthSummary, _Mapping]] = ..., labels: _Optional[_Iterable[_Union[_common_pb2.LabelCount, _Mapping]]] = ..., imbalance_ratio: _Optional[float] = ..., duplicate_rows: _Optional[int] = ..., conflicting_rows: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class UploadDatasetRequest(_message.Message):
    __slots__ = ("start", "chunk", "finish")
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    start: UploadStart
    chunk: UploadChunk
    finish: UploadFinish
    def __init__(self, start: _Optional[_Union[UploadStart, _Mapping]] = ..., chunk: _Optional[_Union[UploadChunk, _Mapping]] = ..., finish: _Optional[_Union[UploadFinish, _Mapping]] = ...) -> None: ...

class UploadStart(_message.Message):
    __slots__ = ("parent", "dataset_id", "upload_id", "format", "request_id", "columns")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PARENT_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    dataset_id: str
    upload_id: str
    format: DatasetFormat
    request_id: str
    columns: _containers.ScalarMap[str, str]
    def __init__(self, parent: _Optional[str] = ..., dataset_id: _Optional[str] = ..., upload_id: _Optional[str] = ..., format: _Optional[_Union[DatasetFormat, str]] = ..., request_id: _Optional[str] = ..., columns: _Optional[_Mapping[str, str]] = ...) -> None: ...

class UploadChunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadFinish(_message.Message):
    __slots__ = ("size_bytes", "sha256")
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    sha256: bytes
    def __init__(self, size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class UploadDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ...) -> None: ...

class GetUploadRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetUploadResponse(_message.Message):
    __slots__ = ("committed_bytes", "dataset", "expire_time")
    COMMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    committed_bytes: int
    dataset: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, committed_bytes: _Optional[int] = ..., dataset: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ImportDatasetRequest(_message.Message):
    __slots__ = ("parent", "dataset_id", "uri", "format", "request_id", "columns")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PARENT_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    dataset_id: str
    uri: str
    format: DatasetFormat
    request_id: str
    columns: _containers.ScalarMap[str, str]
    def __init__(self, parent: _Optional[str] = ..., dataset_id: _Optional[str] = ..., uri: _Optional[str] = ..., format: _Optional[_Union[DatasetFormat, str]] = ..., request_id: _Optional[str] = ..., columns: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ImportDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ...) -> None: ...

class GetDatasetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ...) -> None: ...

class ListDatasetsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "row_kind")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROW_KIND_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    row_kind: RowKind
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., row_kind: _Optional[_Union[RowKind, str]] = ...) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("datasets", "next_page_token")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    next_page_token: str
    def __init__(self, datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteDatasetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteDatasetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
