from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_UNSPECIFIED: _ClassVar[Method]
    METHOD_HEAD: _ClassVar[Method]
    METHOD_LAYERS: _ClassVar[Method]
    METHOD_FULL: _ClassVar[Method]
    METHOD_BOTTLENECK: _ClassVar[Method]
    METHOD_LORA: _ClassVar[Method]
    METHOD_QLORA: _ClassVar[Method]
    METHOD_IA3: _ClassVar[Method]

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_TEXT_GENERATION: _ClassVar[Task]
    TASK_TEXT_CLASSIFICATION: _ClassVar[Task]
    TASK_TOKEN_CLASSIFICATION: _ClassVar[Task]
    TASK_FEATURE_EXTRACTION: _ClassVar[Task]
    TASK_IMAGE_CLASSIFICATION: _ClassVar[Task]

class Objective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_UNSPECIFIED: _ClassVar[Objective]
    OBJECTIVE_SFT: _ClassVar[Objective]
    OBJECTIVE_CLASSIFICATION: _ClassVar[Objective]
    OBJECTIVE_CONTRASTIVE: _ClassVar[Objective]
    OBJECTIVE_DPO: _ClassVar[Objective]

class Residency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESIDENCY_UNSPECIFIED: _ClassVar[Residency]
    RESIDENCY_STORED: _ClassVar[Residency]
    RESIDENCY_HOST: _ClassVar[Residency]
    RESIDENCY_DEVICE: _ClassVar[Residency]

class WeightFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHT_FORMAT_UNSPECIFIED: _ClassVar[WeightFormat]
    WEIGHT_FORMAT_FP32: _ClassVar[WeightFormat]
    WEIGHT_FORMAT_FP16: _ClassVar[WeightFormat]
    WEIGHT_FORMAT_BF16: _ClassVar[WeightFormat]
    WEIGHT_FORMAT_INT8: _ClassVar[WeightFormat]
    WEIGHT_FORMAT_INT4: _ClassVar[WeightFormat]
    WEIGHT_FORMAT_NF4: _ClassVar[WeightFormat]
    WEIGHT_FORMAT_FP4: _ClassVar[WeightFormat]

class ModelFamily(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_FAMILY_UNSPECIFIED: _ClassVar[ModelFamily]
    MODEL_FAMILY_DECODER: _ClassVar[ModelFamily]
    MODEL_FAMILY_ENCODER: _ClassVar[ModelFamily]
    MODEL_FAMILY_VISION: _ClassVar[ModelFamily]

class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOLING_UNSPECIFIED: _ClassVar[Pooling]
    POOLING_MEAN: _ClassVar[Pooling]
    POOLING_CLS: _ClassVar[Pooling]
    POOLING_LAST: _ClassVar[Pooling]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
METHOD_UNSPECIFIED: Method
METHOD_HEAD: Method
METHOD_LAYERS: Method
METHOD_FULL: Method
METHOD_BOTTLENECK: Method
METHOD_LORA: Method
METHOD_QLORA: Method
METHOD_IA3: Method
TASK_UNSPECIFIED: Task
TASK_TEXT_GENERATION: Task
TASK_TEXT_CLASSIFICATION: Task
TASK_TOKEN_CLASSIFICATION: Task
TASK_FEATURE_EXTRACTION: Task
TASK_IMAGE_CLASSIFICATION: Task
OBJECTIVE_UNSPECIFIED: Objective
OBJECTIVE_SFT: Objective
OBJECTIVE_CLASSIFICATION: Objective
OBJECTIVE_CONTRASTIVE: Objective
OBJECTIVE_DPO: Objective
RESIDENCY_UNSPECIFIED: Residency
RESIDENCY_STORED: Residency
RESIDENCY_HOST: Residency
RESIDENCY_DEVICE: Residency
WEIGHT_FORMAT_UNSPECIFIED: WeightFormat
WEIGHT_FORMAT_FP32: WeightFormat
WEIGHT_FORMAT_FP16: WeightFormat
WEIGHT_FORMAT_BF16: WeightFormat
WEIGHT_FORMAT_INT8: WeightFormat
WEIGHT_FORMAT_INT4: WeightFormat
WEIGHT_FORMAT_NF4: WeightFormat
WEIGHT_FORMAT_FP4: WeightFormat
MODEL_FAMILY_UNSPECIFIED: ModelFamily
MODEL_FAMILY_DECODER: ModelFamily
MODEL_FAMILY_ENCODER: ModelFamily
MODEL_FAMILY_VISION: ModelFamily
POOLING_UNSPECIFIED: Pooling
POOLING_MEAN: Pooling
POOLING_CLS: Pooling
POOLING_LAST: Pooling
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role

class Metric(_message.Message):
    __slots__ = ("name", "value", "higher_is_better")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    HIGHER_IS_BETTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    higher_is_better: bool
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., higher_is_better: bool = ...) -> None: ...

class ConfusionMatrix(_message.Message):
    __slots__ = ("labels", "counts", "other_labels")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    OTHER_LABELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedScalarFieldContainer[str]
    counts: _containers.RepeatedScalarFieldContainer[int]
    other_labels: int
    def __init__(self, labels: _Optional[_Iterable[str]] = ..., counts: _Optional[_Iterable[int]] = ..., other_labels: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "reason", "message", "metadata", "violations")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ...) -> None: ...

class Violation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("text", "image")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    text: str
    image: Image
    def __init__(self, text: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("data", "media_type")
    DATA_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    media_type: str
    def __init__(self, data: _Optional[bytes] = ..., media_type: _Optional[str] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "parts")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    role: Role
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class LabelCount(_message.Message):
    __slots__ = ("label", "count")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    label: str
    count: int
    def __init__(self, label: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class LengthSummary(_message.Message):
    __slots__ = ("median", "p90", "p95", "p99", "longest", "mean")
    MEDIAN_FIELD_NUMBER: _ClassVar[int]
    P90_FIELD_NUMBER: _ClassVar[int]
    P95_FIELD_NUMBER: _ClassVar[int]
    P99_FIELD_NUMBER: _ClassVar[int]
    LONGEST_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    median: int
    p90: int
    p95: int
    p99: int
    longest: int
    mean: float
    def __init__(self, median: _Optional[int] = ..., p90: _Optional[int] = ..., p95: _Optional[int] = ..., p99: _Optional[int] = ..., longest: _Optional[int] = ..., mean: _Optional[float] = ...) -> None: ...
