import datetime

from finetuned.v1 import common_pb2 as _common_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Base(_message.Message):
    __slots__ = ("name", "digest", "root_digest", "architecture", "weight_format", "parameters", "weight_bytes", "context_tokens", "source", "recipe", "resident", "create_time", "family")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROOT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    root_digest: str
    architecture: str
    weight_format: _common_pb2.WeightFormat
    parameters: int
    weight_bytes: int
    context_tokens: int
    source: str
    recipe: str
    resident: bool
    create_time: _timestamp_pb2.Timestamp
    family: _common_pb2.ModelFamily
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., root_digest: _Optional[str] = ..., architecture: _Optional[str] = ..., weight_format: _Optional[_Union[_common_pb2.WeightFormat, str]] = ..., parameters: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., context_tokens: _Optional[int] = ..., source: _Optional[str] = ..., recipe: _Optional[str] = ..., resident: bool = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., family: _Optional[_Union[_common_pb2.ModelFamily, str]] = ...) -> None: ...

class GetBaseRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetBaseResponse(_message.Message):
    __slots__ = ("base",)
    BASE_FIELD_NUMBER: _ClassVar[int]
    base: Base
    def __init__(self, base: _Optional[_Union[Base, _Mapping]] = ...) -> None: ...

class ListBasesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListBasesResponse(_message.Message):
    __slots__ = ("bases", "next_page_token")
    BASES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    bases: _containers.RepeatedCompositeFieldContainer[Base]
    next_page_token: str
    def __init__(self, bases: _Optional[_Iterable[_Union[Base, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteBaseRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteBaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
