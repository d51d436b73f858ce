import datetime

from finetuned.v1 import base_service_pb2 as _base_service_pb2
from finetuned.v1 import common_pb2 as _common_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    TRUNCATION_REJECT: _ClassVar[Truncation]
    TRUNCATION_KEEP_END: _ClassVar[Truncation]
    TRUNCATION_KEEP_START: _ClassVar[Truncation]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_END: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_REJECT: Truncation
TRUNCATION_KEEP_END: Truncation
TRUNCATION_KEEP_START: Truncation
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_END: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class PlainBase(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServeAdapterRequest(_message.Message):
    __slots__ = ("parent", "adapter", "plain_base", "inputs", "generate", "classify", "tag_tokens", "embed")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PLAIN_BASE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    CLASSIFY_FIELD_NUMBER: _ClassVar[int]
    TAG_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    parent: str
    adapter: str
    plain_base: PlainBase
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    generate: Generate
    classify: Classify
    tag_tokens: TagTokens
    embed: Embed
    def __init__(self, parent: _Optional[str] = ..., adapter: _Optional[str] = ..., plain_base: _Optional[_Union[PlainBase, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., generate: _Optional[_Union[Generate, _Mapping]] = ..., classify: _Optional[_Union[Classify, _Mapping]] = ..., tag_tokens: _Optional[_Union[TagTokens, _Mapping]] = ..., embed: _Optional[_Union[Embed, _Mapping]] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("conversation", "content", "text_pair")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TEXT_PAIR_FIELD_NUMBER: _ClassVar[int]
    conversation: Conversation
    content: Content
    text_pair: TextPair
    def __init__(self, conversation: _Optional[_Union[Conversation, _Mapping]] = ..., content: _Optional[_Union[Content, _Mapping]] = ..., text_pair: _Optional[_Union[TextPair, _Mapping]] = ...) -> None: ...

class TextPair(_message.Message):
    __slots__ = ("text", "text_pair")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TEXT_PAIR_FIELD_NUMBER: _ClassVar[int]
    text: str
    text_pair: str
    def __init__(self, text: _Optional[str] = ..., text_pair: _Optional[str] = ...) -> None: ...

class Conversation(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[_common_pb2.Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[_common_pb2.Message, _Mapping]]] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[_common_pb2.Part]
    def __init__(self, parts: _Optional[_Iterable[_Union[_common_pb2.Part, _Mapping]]] = ...) -> None: ...

class Generate(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "stop_token_ids", "truncation", "logprobs", "ignore_eos", "n", "min_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "json_schema", "regex", "delta_tokens")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    DELTA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    truncation: Truncation
    logprobs: int
    ignore_eos: bool
    n: int
    min_tokens: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    json_schema: str
    regex: str
    delta_tokens: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., truncation: _Optional[_Union[Truncation, str]] = ..., logprobs: _Optional[int] = ..., ignore_eos: bool = ..., n: _Optional[int] = ..., min_tokens: _Optional[int] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., json_schema: _Optional[str] = ..., regex: _Optional[str] = ..., delta_tokens: _Optional[int] = ...) -> None: ...

class Classify(_message.Message):
    __slots__ = ("top_k", "truncation")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    truncation: Truncation
    def __init__(self, top_k: _Optional[int] = ..., truncation: _Optional[_Union[Truncation, str]] = ...) -> None: ...

class TagTokens(_message.Message):
    __slots__ = ("truncation",)
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    truncation: Truncation
    def __init__(self, truncation: _Optional[_Union[Truncation, str]] = ...) -> None: ...

class Embed(_message.Message):
    __slots__ = ("pooling", "normalize", "truncation")
    POOLING_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    pooling: _common_pb2.Pooling
    normalize: bool
    truncation: Truncation
    def __init__(self, pooling: _Optional[_Union[_common_pb2.Pooling, str]] = ..., normalize: bool = ..., truncation: _Optional[_Union[Truncation, str]] = ...) -> None: ...

class ServeAdapterResponse(_message.Message):
    __slots__ = ("started", "delta", "result", "done")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    started: Started
    delta: Delta
    result: Result
    done: Done
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("served_by",)
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    served_by: ServedBy
    def __init__(self, served_by: _Optional[_Union[ServedBy, _Mapping]] = ...) -> None: ...

class ServedBy(_message.Message):
    __slots__ = ("adapter_version", "adapter_digest", "base", "base_digest", "modules", "replica")
    ADAPTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    adapter_version: str
    adapter_digest: str
    base: str
    base_digest: str
    modules: int
    replica: str
    def __init__(self, adapter_version: _Optional[str] = ..., adapter_digest: _Optional[str] = ..., base: _Optional[str] = ..., base_digest: _Optional[str] = ..., modules: _Optional[int] = ..., replica: _Optional[str] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("input", "sample", "text", "token_ids", "logprobs")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    input: int
    sample: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    def __init__(self, input: _Optional[int] = ..., sample: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "top_token_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("input", "embedding", "classification", "tagging")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    TAGGING_FIELD_NUMBER: _ClassVar[int]
    input: int
    embedding: Embedding
    classification: Classification
    tagging: Tagging
    def __init__(self, input: _Optional[int] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., classification: _Optional[_Union[Classification, _Mapping]] = ..., tagging: _Optional[_Union[Tagging, _Mapping]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values", "pooling")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    pooling: _common_pb2.Pooling
    def __init__(self, values: _Optional[_Iterable[float]] = ..., pooling: _Optional[_Union[_common_pb2.Pooling, str]] = ...) -> None: ...

class Classification(_message.Message):
    __slots__ = ("labels", "value")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[LabelScore]
    value: float
    def __init__(self, labels: _Optional[_Iterable[_Union[LabelScore, _Mapping]]] = ..., value: _Optional[float] = ...) -> None: ...

class LabelScore(_message.Message):
    __slots__ = ("label", "score")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class Tagging(_message.Message):
    __slots__ = ("tokens", "entities")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[TaggedToken]
    entities: _containers.RepeatedCompositeFieldContainer[Entity]
    def __init__(self, tokens: _Optional[_Iterable[_Union[TaggedToken, _Mapping]]] = ..., entities: _Optional[_Iterable[_Union[Entity, _Mapping]]] = ...) -> None: ...

class TaggedToken(_message.Message):
    __slots__ = ("start", "end", "label", "score")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    label: str
    score: float
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., label: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class Entity(_message.Message):
    __slots__ = ("label", "start", "end", "text", "score")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    label: str
    start: int
    end: int
    text: str
    score: float
    def __init__(self, label: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., text: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("outcomes", "usage", "timing")
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    usage: Usage
    timing: Timing
    def __init__(self, outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("finish_reason", "stop", "truncated_tokens")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    finish_reason: FinishReason
    stop: str
    truncated_tokens: int
    def __init__(self, finish_reason: _Optional[_Union[FinishReason, str]] = ..., stop: _Optional[str] = ..., truncated_tokens: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "cached_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue", "load", "prefill", "decode")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    load: _duration_pb2.Duration
    prefill: _duration_pb2.Duration
    decode: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., load: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prefill: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class BatchServeAdapterRequest(_message.Message):
    __slots__ = ("parent", "requests")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    requests: _containers.RepeatedCompositeFieldContainer[ServeAdapterRequest]
    def __init__(self, parent: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[ServeAdapterRequest, _Mapping]]] = ...) -> None: ...

class BatchServeAdapterResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[BatchItem]
    def __init__(self, items: _Optional[_Iterable[_Union[BatchItem, _Mapping]]] = ...) -> None: ...

class BatchItem(_message.Message):
    __slots__ = ("reply", "error")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    reply: BatchReply
    error: _common_pb2.Error
    def __init__(self, reply: _Optional[_Union[BatchReply, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ...) -> None: ...

class BatchReply(_message.Message):
    __slots__ = ("served_by", "texts", "done", "results", "tokens")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    served_by: ServedBy
    texts: _containers.RepeatedScalarFieldContainer[str]
    done: Done
    results: _containers.RepeatedCompositeFieldContainer[Result]
    tokens: _containers.RepeatedCompositeFieldContainer[ReplyTokens]
    def __init__(self, served_by: _Optional[_Union[ServedBy, _Mapping]] = ..., texts: _Optional[_Iterable[str]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., tokens: _Optional[_Iterable[_Union[ReplyTokens, _Mapping]]] = ...) -> None: ...

class ReplyTokens(_message.Message):
    __slots__ = ("token_ids", "logprobs")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("service_version", "replica", "base", "resident_base_digest", "device", "limits", "methods", "tasks", "weight_formats", "load", "memory", "compute_path")
    SERVICE_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FORMATS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_PATH_FIELD_NUMBER: _ClassVar[int]
    service_version: str
    replica: str
    base: _base_service_pb2.Base
    resident_base_digest: str
    device: str
    limits: Limits
    methods: _containers.RepeatedScalarFieldContainer[_common_pb2.Method]
    tasks: _containers.RepeatedScalarFieldContainer[_common_pb2.Task]
    weight_formats: _containers.RepeatedScalarFieldContainer[_common_pb2.WeightFormat]
    load: EngineLoad
    memory: _containers.RepeatedCompositeFieldContainer[MemoryUse]
    compute_path: str
    def __init__(self, service_version: _Optional[str] = ..., replica: _Optional[str] = ..., base: _Optional[_Union[_base_service_pb2.Base, _Mapping]] = ..., resident_base_digest: _Optional[str] = ..., device: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., methods: _Optional[_Iterable[_Union[_common_pb2.Method, str]]] = ..., tasks: _Optional[_Iterable[_Union[_common_pb2.Task, str]]] = ..., weight_formats: _Optional[_Iterable[_Union[_common_pb2.WeightFormat, str]]] = ..., load: _Optional[_Union[EngineLoad, _Mapping]] = ..., memory: _Optional[_Iterable[_Union[MemoryUse, _Mapping]]] = ..., compute_path: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("context_tokens", "max_running_sequences", "max_queued_sequences", "max_upload_bytes", "max_line_bytes", "max_lora_rank", "max_batch_requests", "max_samples", "max_replies", "max_constraint_bytes")
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_UPLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LINE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLIES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONSTRAINT_BYTES_FIELD_NUMBER: _ClassVar[int]
    context_tokens: int
    max_running_sequences: int
    max_queued_sequences: int
    max_upload_bytes: int
    max_line_bytes: int
    max_lora_rank: int
    max_batch_requests: int
    max_samples: int
    max_replies: int
    max_constraint_bytes: int
    def __init__(self, context_tokens: _Optional[int] = ..., max_running_sequences: _Optional[int] = ..., max_queued_sequences: _Optional[int] = ..., max_upload_bytes: _Optional[int] = ..., max_line_bytes: _Optional[int] = ..., max_lora_rank: _Optional[int] = ..., max_batch_requests: _Optional[int] = ..., max_samples: _Optional[int] = ..., max_replies: _Optional[int] = ..., max_constraint_bytes: _Optional[int] = ...) -> None: ...

class EngineLoad(_message.Message):
    __slots__ = ("running_sequences", "queued_sequences", "kv_tokens_used", "kv_tokens_capacity", "adapters_on_device")
    RUNNING_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_USED_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_ON_DEVICE_FIELD_NUMBER: _ClassVar[int]
    running_sequences: int
    queued_sequences: int
    kv_tokens_used: int
    kv_tokens_capacity: int
    adapters_on_device: int
    def __init__(self, running_sequences: _Optional[int] = ..., queued_sequences: _Optional[int] = ..., kv_tokens_used: _Optional[int] = ..., kv_tokens_capacity: _Optional[int] = ..., adapters_on_device: _Optional[int] = ...) -> None: ...

class MemoryUse(_message.Message):
    __slots__ = ("use", "bytes")
    USE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    use: str
    bytes: int
    def __init__(self, use: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...
