import datetime

from finetuned.v1 import common_pb2 as _common_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_VALIDATING: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_PAUSING: _ClassVar[JobState]
    JOB_STATE_PAUSED: _ClassVar[JobState]
    JOB_STATE_CANCELLING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]

class JobStateReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_REASON_UNSPECIFIED: _ClassVar[JobStateReason]
    JOB_STATE_REASON_USER: _ClassVar[JobStateReason]
    JOB_STATE_REASON_WORKER_LOST: _ClassVar[JobStateReason]
    JOB_STATE_REASON_DISK_FULL: _ClassVar[JobStateReason]
    JOB_STATE_REASON_SHUTDOWN: _ClassVar[JobStateReason]
    JOB_STATE_REASON_MEMORY: _ClassVar[JobStateReason]
    JOB_STATE_REASON_PREEMPTED: _ClassVar[JobStateReason]
    JOB_STATE_REASON_ESTIMATED: _ClassVar[JobStateReason]
    JOB_STATE_REASON_ENGINE_ENDED: _ClassVar[JobStateReason]

class JobPriority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_PRIORITY_UNSPECIFIED: _ClassVar[JobPriority]
    JOB_PRIORITY_LOW: _ClassVar[JobPriority]
    JOB_PRIORITY_NORMAL: _ClassVar[JobPriority]
    JOB_PRIORITY_HIGH: _ClassVar[JobPriority]

class Fault(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAULT_UNSPECIFIED: _ClassVar[Fault]
    FAULT_USER: _ClassVar[Fault]
    FAULT_SYSTEM: _ClassVar[Fault]

class ClassWeights(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLASS_WEIGHTS_UNSPECIFIED: _ClassVar[ClassWeights]
    CLASS_WEIGHTS_NONE: _ClassVar[ClassWeights]
    CLASS_WEIGHTS_BALANCED: _ClassVar[ClassWeights]

class BottleneckPlacement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BOTTLENECK_PLACEMENT_UNSPECIFIED: _ClassVar[BottleneckPlacement]
    BOTTLENECK_PLACEMENT_HOULSBY: _ClassVar[BottleneckPlacement]
    BOTTLENECK_PLACEMENT_PFEIFFER: _ClassVar[BottleneckPlacement]
    BOTTLENECK_PLACEMENT_PARALLEL: _ClassVar[BottleneckPlacement]

class BottleneckActivation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BOTTLENECK_ACTIVATION_UNSPECIFIED: _ClassVar[BottleneckActivation]
    BOTTLENECK_ACTIVATION_RELU: _ClassVar[BottleneckActivation]
    BOTTLENECK_ACTIVATION_GELU: _ClassVar[BottleneckActivation]
    BOTTLENECK_ACTIVATION_SILU: _ClassVar[BottleneckActivation]

class LearningRateSchedule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEARNING_RATE_SCHEDULE_UNSPECIFIED: _ClassVar[LearningRateSchedule]
    LEARNING_RATE_SCHEDULE_CONSTANT: _ClassVar[LearningRateSchedule]
    LEARNING_RATE_SCHEDULE_LINEAR: _ClassVar[LearningRateSchedule]
    LEARNING_RATE_SCHEDULE_COSINE: _ClassVar[LearningRateSchedule]

class LongRows(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LONG_ROWS_UNSPECIFIED: _ClassVar[LongRows]
    LONG_ROWS_REJECT: _ClassVar[LongRows]
    LONG_ROWS_TRUNCATE: _ClassVar[LongRows]
    LONG_ROWS_DROP: _ClassVar[LongRows]

class EstimateBasis(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ESTIMATE_BASIS_UNSPECIFIED: _ClassVar[EstimateBasis]
    ESTIMATE_BASIS_ARITHMETIC: _ClassVar[EstimateBasis]
    ESTIMATE_BASIS_MEASURED: _ClassVar[EstimateBasis]
    ESTIMATE_BASIS_EARLIER_JOB: _ClassVar[EstimateBasis]

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_INFO: _ClassVar[Severity]
    SEVERITY_WARNING: _ClassVar[Severity]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_VALIDATING: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_PAUSING: JobState
JOB_STATE_PAUSED: JobState
JOB_STATE_CANCELLING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
JOB_STATE_REASON_UNSPECIFIED: JobStateReason
JOB_STATE_REASON_USER: JobStateReason
JOB_STATE_REASON_WORKER_LOST: JobStateReason
JOB_STATE_REASON_DISK_FULL: JobStateReason
JOB_STATE_REASON_SHUTDOWN: JobStateReason
JOB_STATE_REASON_MEMORY: JobStateReason
JOB_STATE_REASON_PREEMPTED: JobStateReason
JOB_STATE_REASON_ESTIMATED: JobStateReason
JOB_STATE_REASON_ENGINE_ENDED: JobStateReason
JOB_PRIORITY_UNSPECIFIED: JobPriority
JOB_PRIORITY_LOW: JobPriority
JOB_PRIORITY_NORMAL: JobPriority
JOB_PRIORITY_HIGH: JobPriority
FAULT_UNSPECIFIED: Fault
FAULT_USER: Fault
FAULT_SYSTEM: Fault
CLASS_WEIGHTS_UNSPECIFIED: ClassWeights
CLASS_WEIGHTS_NONE: ClassWeights
CLASS_WEIGHTS_BALANCED: ClassWeights
BOTTLENECK_PLACEMENT_UNSPECIFIED: BottleneckPlacement
BOTTLENECK_PLACEMENT_HOULSBY: BottleneckPlacement
BOTTLENECK_PLACEMENT_PFEIFFER: BottleneckPlacement
BOTTLENECK_PLACEMENT_PARALLEL: BottleneckPlacement
BOTTLENECK_ACTIVATION_UNSPECIFIED: BottleneckActivation
BOTTLENECK_ACTIVATION_RELU: BottleneckActivation
BOTTLENECK_ACTIVATION_GELU: BottleneckActivation
BOTTLENECK_ACTIVATION_SILU: BottleneckActivation
LEARNING_RATE_SCHEDULE_UNSPECIFIED: LearningRateSchedule
LEARNING_RATE_SCHEDULE_CONSTANT: LearningRateSchedule
LEARNING_RATE_SCHEDULE_LINEAR: LearningRateSchedule
LEARNING_RATE_SCHEDULE_COSINE: LearningRateSchedule
LONG_ROWS_UNSPECIFIED: LongRows
LONG_ROWS_REJECT: LongRows
LONG_ROWS_TRUNCATE: LongRows
LONG_ROWS_DROP: LongRows
ESTIMATE_BASIS_UNSPECIFIED: EstimateBasis
ESTIMATE_BASIS_ARITHMETIC: EstimateBasis
ESTIMATE_BASIS_MEASURED: EstimateBasis
ESTIMATE_BASIS_EARLIER_JOB: EstimateBasis
SEVERITY_UNSPECIFIED: Severity
SEVERITY_INFO: Severity
SEVERITY_WARNING: Severity

class Job(_message.Message):
    __slots__ = ("name", "display_name", "state", "state_reason", "create_time", "start_time", "end_time", "train", "quantize", "environment", "estimate", "data_report", "progress", "baseline_metrics", "metrics", "incumbent_metrics", "checkpoints", "attempt", "error", "fault", "train_result", "quantize_result", "last_event", "samples", "expire_time", "events_expire_time", "rerun_of", "micro_batch_rows", "priority", "overfitting", "usage", "baseline_confusion", "confusion")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    DATA_REPORT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_METRICS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    INCUMBENT_METRICS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    TRAIN_RESULT_FIELD_NUMBER: _ClassVar[int]
    QUANTIZE_RESULT_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    EVENTS_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    RERUN_OF_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    OVERFITTING_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    BASELINE_CONFUSION_FIELD_NUMBER: _ClassVar[int]
    CONFUSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    state: JobState
    state_reason: JobStateReason
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    train: TrainSpec
    quantize: QuantizeSpec
    environment: Environment
    estimate: Estimate
    data_report: DataReport
    progress: Progress
    baseline_metrics: _containers.RepeatedCompositeFieldContainer[_common_pb2.Metric]
    metrics: _containers.RepeatedCompositeFieldContainer[_common_pb2.Metric]
    incumbent_metrics: _containers.RepeatedCompositeFieldContainer[_common_pb2.Metric]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    attempt: int
    error: _common_pb2.Error
    fault: Fault
    train_result: TrainResult
    quantize_result: QuantizeResult
    last_event: int
    samples: _containers.RepeatedCompositeFieldContainer[EvaluationSample]
    expire_time: _timestamp_pb2.Timestamp
    events_expire_time: _timestamp_pb2.Timestamp
    rerun_of: str
    micro_batch_rows: int
    priority: JobPriority
    overfitting: Overfitting
    usage: JobUsage
    baseline_confusion: _common_pb2.ConfusionMatrix
    confusion: _common_pb2.ConfusionMatrix
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., state_reason: _Optional[_Union[JobStateReason, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., train: _Optional[_Union[TrainSpec, _Mapping]] = ..., quantize: _Optional[_Union[QuantizeSpec, _Mapping]] = ..., environment: _Optional[_Union[Environment, _Mapping]] = ..., estimate: _Optional[_Union[Estimate, _Mapping]] = ..., data_report: _Optional[_Union[DataReport, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., baseline_metrics: _Optional[_Iterable[_Union[_common_pb2.Metric, _Mapping]]] = ..., metrics: _Optional[_Iterable[_Union[_common_pb2.Metric, _Mapping]]] = ..., incumbent_metrics: _Optional[_Iterable[_Union[_common_pb2.Metric, _Mapping]]] = ..., checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ..., attempt: _Optional[int] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., fault: _Optional[_Union[Fault, str]] = ..., train_result: _Optional[_Union[TrainResult, _Mapping]] = ..., quantize_result: _Optional[_Union[QuantizeResult, _Mapping]] = ..., last_event: _Optional[int] = ..., samples: _Optional[_Iterable[_Union[EvaluationSample, _Mapping]]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., events_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., rerun_of: _Optional[str] = ..., micro_batch_rows: _Optional[int] = ..., priority: _Optional[_Union[JobPriority, str]] = ..., overfitting: _Optional[_Union[Overfitting, _Mapping]] = ..., usage: _Optional[_Union[JobUsage, _Mapping]] = ..., baseline_confusion: _Optional[_Union[_common_pb2.ConfusionMatrix, _Mapping]] = ..., confusion: _Optional[_Union[_common_pb2.ConfusionMatrix, _Mapping]] = ...) -> None: ...

class Overfitting(_message.Message):
    __slots__ = ("best_step", "best_loss", "step", "loss")
    BEST_STEP_FIELD_NUMBER: _ClassVar[int]
    BEST_LOSS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    best_step: int
    best_loss: float
    step: int
    loss: float
    def __init__(self, best_step: _Optional[int] = ..., best_loss: _Optional[float] = ..., step: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class TrainSpec(_message.Message):
    __slots__ = ("dataset", "eval_dataset", "adapter", "base", "task", "objective", "head", "layers", "full", "bottleneck", "lora", "qlora", "ia3", "optimization", "data", "evaluation", "promote_if", "continue_from", "dpo", "classification", "contrastive")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    BOTTLENECK_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    QLORA_FIELD_NUMBER: _ClassVar[int]
    IA3_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_IF_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FROM_FIELD_NUMBER: _ClassVar[int]
    DPO_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    CONTRASTIVE_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    eval_dataset: str
    adapter: str
    base: str
    task: _common_pb2.Task
    objective: _common_pb2.Objective
    head: HeadMethod
    layers: LayersMethod
    full: FullMethod
    bottleneck: BottleneckMethod
    lora: LoraMethod
    qlora: QloraMethod
    ia3: Ia3Method
    optimization: Optimization
    data: DataOptions
    evaluation: EvaluationOptions
    promote_if: PromoteIf
    continue_from: str
    dpo: DpoSettings
    classification: ClassificationOptions
    contrastive: ContrastiveOptions
    def __init__(self, dataset: _Optional[str] = ..., eval_dataset: _Optional[str] = ..., adapter: _Optional[str] = ..., base: _Optional[str] = ..., task: _Optional[_Union[_common_pb2.Task, str]] = ..., objective: _Optional[_Union[_common_pb2.Objective, str]] = ..., head: _Optional[_Union[HeadMethod, _Mapping]] = ..., layers: _Optional[_Union[LayersMethod, _Mapping]] = ..., full: _Optional[_Union[FullMethod, _Mapping]] = ..., bottleneck: _Optional[_Union[BottleneckMethod, _Mapping]] = ..., lora: _Optional[_Union[LoraMethod, _Mapping]] = ..., qlora: _Optional[_Union[QloraMethod, _Mapping]] = ..., ia3: _Optional[_Union[Ia3Method, _Mapping]] = ..., optimization: _Optional[_Union[Optimization, _Mapping]] = ..., data: _Optional[_Union[DataOptions, _Mapping]] = ..., evaluation: _Optional[_Union[EvaluationOptions, _Mapping]] = ..., promote_if: _Optional[_Union[PromoteIf, _Mapping]] = ..., continue_from: _Optional[str] = ..., dpo: _Optional[_Union[DpoSettings, _Mapping]] = ..., classification: _Optional[_Union[ClassificationOptions, _Mapping]] = ..., contrastive: _Optional[_Union[ContrastiveOptions, _Mapping]] = ...) -> None: ...

class ContrastiveOptions(_message.Message):
    __slots__ = ("scale",)
    SCALE_FIELD_NUMBER: _ClassVar[int]
    scale: float
    def __init__(self, scale: _Optional[float] = ...) -> None: ...

class ClassificationOptions(_message.Message):
    __slots__ = ("class_weights", "label_weights")
    class LabelWeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    CLASS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    LABEL_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    class_weights: ClassWeights
    label_weights: _containers.ScalarMap[str, float]
    def __init__(self, class_weights: _Optional[_Union[ClassWeights, str]] = ..., label_weights: _Optional[_Mapping[str, float]] = ...) -> None: ...

class HeadMethod(_message.Message):
    __slots__ = ("pooling",)
    POOLING_FIELD_NUMBER: _ClassVar[int]
    pooling: _common_pb2.Pooling
    def __init__(self, pooling: _Optional[_Union[_common_pb2.Pooling, str]] = ...) -> None: ...

class LayersMethod(_message.Message):
    __slots__ = ("last", "layers", "modules")
    LAST_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    last: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    modules: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, last: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., modules: _Optional[_Iterable[str]] = ...) -> None: ...

class FullMethod(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BottleneckMethod(_message.Message):
    __slots__ = ("placement", "reduction_factor", "width", "activation", "scaling", "target_modules")
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_FACTOR_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    placement: BottleneckPlacement
    reduction_factor: float
    width: int
    activation: BottleneckActivation
    scaling: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, placement: _Optional[_Union[BottleneckPlacement, str]] = ..., reduction_factor: _Optional[float] = ..., width: _Optional[int] = ..., activation: _Optional[_Union[BottleneckActivation, str]] = ..., scaling: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ...) -> None: ...

class QloraMethod(_message.Message):
    __slots__ = ("lora",)
    LORA_FIELD_NUMBER: _ClassVar[int]
    lora: LoraMethod
    def __init__(self, lora: _Optional[_Union[LoraMethod, _Mapping]] = ...) -> None: ...

class Ia3Method(_message.Message):
    __slots__ = ("target_modules", "feedforward_modules", "modules_to_save")
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    FEEDFORWARD_MODULES_FIELD_NUMBER: _ClassVar[int]
    MODULES_TO_SAVE_FIELD_NUMBER: _ClassVar[int]
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    feedforward_modules: _containers.RepeatedScalarFieldContainer[str]
    modules_to_save: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, target_modules: _Optional[_Iterable[str]] = ..., feedforward_modules: _Optional[_Iterable[str]] = ..., modules_to_save: _Optional[_Iterable[str]] = ...) -> None: ...

class LoraMethod(_message.Message):
    __slots__ = ("rank", "alpha", "dropout", "target_modules", "rank_stabilized", "decomposed", "rank_pattern", "alpha_pattern", "modules_to_save")
    class RankPatternEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class AlphaPatternEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    RANK_STABILIZED_FIELD_NUMBER: _ClassVar[int]
    DECOMPOSED_FIELD_NUMBER: _ClassVar[int]
    RANK_PATTERN_FIELD_NUMBER: _ClassVar[int]
    ALPHA_PATTERN_FIELD_NUMBER: _ClassVar[int]
    MODULES_TO_SAVE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    alpha: float
    dropout: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    rank_stabilized: bool
    decomposed: bool
    rank_pattern: _containers.ScalarMap[str, int]
    alpha_pattern: _containers.ScalarMap[str, float]
    modules_to_save: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rank: _Optional[int] = ..., alpha: _Optional[float] = ..., dropout: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ..., rank_stabilized: bool = ..., decomposed: bool = ..., rank_pattern: _Optional[_Mapping[str, int]] = ..., alpha_pattern: _Optional[_Mapping[str, float]] = ..., modules_to_save: _Optional[_Iterable[str]] = ...) -> None: ...

class DpoSettings(_message.Message):
    __slots__ = ("beta", "label_smoothing")
    BETA_FIELD_NUMBER: _ClassVar[int]
    LABEL_SMOOTHING_FIELD_NUMBER: _ClassVar[int]
    beta: float
    label_smoothing: float
    def __init__(self, beta: _Optional[float] = ..., label_smoothing: _Optional[float] = ...) -> None: ...

class Optimization(_message.Message):
    __slots__ = ("epochs", "max_steps", "batch_rows", "micro_batch_rows", "learning_rate", "schedule", "warmup_fraction", "weight_decay", "max_gradient_norm", "seed", "checkpoint_interval_steps", "activation_checkpointing", "kept_checkpoints", "head_learning_rate")
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_FRACTION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MAX_GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_INTERVAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_CHECKPOINTING_FIELD_NUMBER: _ClassVar[int]
    KEPT_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    HEAD_LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    epochs: float
    max_steps: int
    batch_rows: int
    micro_batch_rows: int
    learning_rate: float
    schedule: LearningRateSchedule
    warmup_fraction: float
    weight_decay: float
    max_gradient_norm: float
    seed: int
    checkpoint_interval_steps: int
    activation_checkpointing: bool
    kept_checkpoints: int
    head_learning_rate: float
    def __init__(self, epochs: _Optional[float] = ..., max_steps: _Optional[int] = ..., batch_rows: _Optional[int] = ..., micro_batch_rows: _Optional[int] = ..., learning_rate: _Optional[float] = ..., schedule: _Optional[_Union[LearningRateSchedule, str]] = ..., warmup_fraction: _Optional[float] = ..., weight_decay: _Optional[float] = ..., max_gradient_norm: _Optional[float] = ..., seed: _Optional[int] = ..., checkpoint_interval_steps: _Optional[int] = ..., activation_checkpointing: bool = ..., kept_checkpoints: _Optional[int] = ..., head_learning_rate: _Optional[float] = ...) -> None: ...

class DataOptions(_message.Message):
    __slots__ = ("holdout_fraction", "max_row_tokens", "long_rows", "train_on_prompt")
    HOLDOUT_FRACTION_FIELD_NUMBER: _ClassVar[int]
    MAX_ROW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LONG_ROWS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_ON_PROMPT_FIELD_NUMBER: _ClassVar[int]
    holdout_fraction: float
    max_row_tokens: int
    long_rows: LongRows
    train_on_prompt: bool
    def __init__(self, holdout_fraction: _Optional[float] = ..., max_row_tokens: _Optional[int] = ..., long_rows: _Optional[_Union[LongRows, str]] = ..., train_on_prompt: bool = ...) -> None: ...

class EvaluationOptions(_message.Message):
    __slots__ = ("evaluations", "early_stopping_patience", "generation_rows", "generation_max_tokens", "baseline")
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_PATIENCE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ROWS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    evaluations: int
    early_stopping_patience: int
    generation_rows: int
    generation_max_tokens: int
    baseline: Baseline
    def __init__(self, evaluations: _Optional[int] = ..., early_stopping_patience: _Optional[int] = ..., generation_rows: _Optional[int] = ..., generation_max_tokens: _Optional[int] = ..., baseline: _Optional[_Union[Baseline, _Mapping]] = ...) -> None: ...

class Baseline(_message.Message):
    __slots__ = ("instruction", "examples")
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    instruction: str
    examples: _containers.RepeatedCompositeFieldContainer[BaselineExample]
    def __init__(self, instruction: _Optional[str] = ..., examples: _Optional[_Iterable[_Union[BaselineExample, _Mapping]]] = ...) -> None: ...

class BaselineExample(_message.Message):
    __slots__ = ("prompt", "completion")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    completion: str
    def __init__(self, prompt: _Optional[str] = ..., completion: _Optional[str] = ...) -> None: ...

class PromoteIf(_message.Message):
    __slots__ = ("alias", "metric", "minimum", "better_than_current")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    BETTER_THAN_CURRENT_FIELD_NUMBER: _ClassVar[int]
    alias: str
    metric: str
    minimum: float
    better_than_current: bool
    def __init__(self, alias: _Optional[str] = ..., metric: _Optional[str] = ..., minimum: _Optional[float] = ..., better_than_current: bool = ...) -> None: ...

class QuantizeSpec(_message.Message):
    __slots__ = ("base", "output_base_id", "weight_format", "dataset", "max_quality_drop", "quantize_embeddings")
    BASE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BASE_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    MAX_QUALITY_DROP_FIELD_NUMBER: _ClassVar[int]
    QUANTIZE_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    base: str
    output_base_id: str
    weight_format: _common_pb2.WeightFormat
    dataset: str
    max_quality_drop: float
    quantize_embeddings: bool
    def __init__(self, base: _Optional[str] = ..., output_base_id: _Optional[str] = ..., weight_format: _Optional[_Union[_common_pb2.WeightFormat, str]] = ..., dataset: _Optional[str] = ..., max_quality_drop: _Optional[float] = ..., quantize_embeddings: bool = ...) -> None: ...

class Environment(_message.Message):
    __slots__ = ("base_digest", "dataset_digest", "eval_dataset_digest", "service_version", "torch_version", "instruction_set", "threads", "peft_version", "compute_dtype", "trained_dtype")
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SERVICE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_SET_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    PEFT_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TRAINED_DTYPE_FIELD_NUMBER: _ClassVar[int]
    base_digest: str
    dataset_digest: str
    eval_dataset_digest: str
    service_version: str
    torch_version: str
    instruction_set: str
    threads: int
    peft_version: str
    compute_dtype: str
    trained_dtype: str
    def __init__(self, base_digest: _Optional[str] = ..., dataset_digest: _Optional[str] = ..., eval_dataset_digest: _Optional[str] = ..., service_version: _Optional[str] = ..., torch_version: _Optional[str] = ..., instruction_set: _Optional[str] = ..., threads: _Optional[int] = ..., peft_version: _Optional[str] = ..., compute_dtype: _Optional[str] = ..., trained_dtype: _Optional[str] = ...) -> None: ...

class Estimate(_message.Message):
    __slots__ = ("steps", "tokens", "memory_bytes", "duration", "basis", "runtime_memory_bytes", "base_memory_bytes", "memory_budget_bytes", "device_memory_bytes", "device_memory_budget_bytes")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    steps: int
    tokens: int
    memory_bytes: int
    duration: _duration_pb2.Duration
    basis: EstimateBasis
    runtime_memory_bytes: int
    base_memory_bytes: int
    memory_budget_bytes: int
    device_memory_bytes: int
    device_memory_budget_bytes: int
    def __init__(self, steps: _Optional[int] = ..., tokens: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., basis: _Optional[_Union[EstimateBasis, str]] = ..., runtime_memory_bytes: _Optional[int] = ..., base_memory_bytes: _Optional[int] = ..., memory_budget_bytes: _Optional[int] = ..., device_memory_bytes: _Optional[int] = ..., device_memory_budget_bytes: _Optional[int] = ...) -> None: ...

class JobUsage(_message.Message):
    __slots__ = ("memory_bytes", "duration", "memory_error", "duration_error", "device_memory_bytes")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ERROR_FIELD_NUMBER: _ClassVar[int]
    DURATION_ERROR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    duration: _duration_pb2.Duration
    memory_error: float
    duration_error: float
    device_memory_bytes: int
    def __init__(self, memory_bytes: _Optional[int] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., memory_error: _Optional[float] = ..., duration_error: _Optional[float] = ..., device_memory_bytes: _Optional[int] = ...) -> None: ...

class DataReport(_message.Message):
    __slots__ = ("train_rows", "eval_rows", "train_tokens", "supervised_tokens", "mean_row_tokens", "longest_row_tokens", "truncated_rows", "dropped_rows", "duplicate_rows", "leaked_rows", "similar_leaked_rows", "row_tokens", "train_labels", "eval_labels", "imbalance_ratio", "warnings")
    TRAIN_ROWS_FIELD_NUMBER: _ClassVar[int]
    EVAL_ROWS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SUPERVISED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEAN_ROW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_ROW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_ROWS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_ROWS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_ROWS_FIELD_NUMBER: _ClassVar[int]
    LEAKED_ROWS_FIELD_NUMBER: _ClassVar[int]
    SIMILAR_LEAKED_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LABELS_FIELD_NUMBER: _ClassVar[int]
    EVAL_LABELS_FIELD_NUMBER: _ClassVar[int]
    IMBALANCE_RATIO_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    train_rows: int
    eval_rows: int
    train_tokens: int
    supervised_tokens: int
    mean_row_tokens: float
    longest_row_tokens: int
    truncated_rows: int
    dropped_rows: int
    duplicate_rows: int
    leaked_rows: int
    similar_leaked_rows: int
    row_tokens: _common_pb2.LengthSummary
    train_labels: _containers.RepeatedCompositeFieldContainer[_common_pb2.LabelCount]
    eval_labels: _containers.RepeatedCompositeFieldContainer[_common_pb2.LabelCount]
    imbalance_ratio: float
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, train_rows: _Optional[int] = ..., eval_rows: _Optional[int] = ..., train_tokens: _Optional[int] = ..., supervised_tokens: _Optional[int] = ..., mean_row_tokens: _Optional[float] = ..., longest_row_tokens: _Optional[int] = ..., truncated_rows: _Optional[int] = ..., dropped_rows: _Optional[int] = ..., duplicate_rows: _Optional[int] = ..., leaked_rows: _Optional[int] = ..., similar_leaked_rows: _Optional[int] = ..., row_tokens: _Optional[_Union[_common_pb2.LengthSummary, _Mapping]] = ..., train_labels: _Optional[_Iterable[_Union[_common_pb2.LabelCount, _Mapping]]] = ..., eval_labels: _Optional[_Iterable[_Union[_common_pb2.LabelCount, _Mapping]]] = ..., imbalance_ratio: _Optional[float] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "step", "total_steps", "loss", "tokens_per_second", "eta", "learning_rate", "tokens")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    step: int
    total_steps: int
    loss: float
    tokens_per_second: float
    eta: _duration_pb2.Duration
    learning_rate: float
    tokens: int
    def __init__(self, phase: _Optional[str] = ..., step: _Optional[int] = ..., total_steps: _Optional[int] = ..., loss: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., eta: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., learning_rate: _Optional[float] = ..., tokens: _Optional[int] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("step", "eval_loss", "best")
    STEP_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    step: int
    eval_loss: float
    best: bool
    def __init__(self, step: _Optional[int] = ..., eval_loss: _Optional[float] = ..., best: bool = ...) -> None: ...

class TrainResult(_message.Message):
    __slots__ = ("version", "digest", "promoted", "promotion", "stopped_early")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    PROMOTION_FIELD_NUMBER: _ClassVar[int]
    STOPPED_EARLY_FIELD_NUMBER: _ClassVar[int]
    version: str
    digest: str
    promoted: bool
    promotion: str
    stopped_early: bool
    def __init__(self, version: _Optional[str] = ..., digest: _Optional[str] = ..., promoted: bool = ..., promotion: _Optional[str] = ..., stopped_early: bool = ...) -> None: ...

class QuantizeResult(_message.Message):
    __slots__ = ("base", "digest", "report")
    BASE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    base: str
    digest: str
    report: QuantizeReport
    def __init__(self, base: _Optional[str] = ..., digest: _Optional[str] = ..., report: _Optional[_Union[QuantizeReport, _Mapping]] = ...) -> None: ...

class QuantizeReport(_message.Message):
    __slots__ = ("source_bytes", "quantized_bytes", "source_perplexity", "quantized_perplexity", "mean_kl_nats", "top1_agreement", "evaluated_tokens", "quantized_modules", "kept_modules", "source_lineage")
    SOURCE_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUANTIZED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    QUANTIZED_PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    MEAN_KL_NATS_FIELD_NUMBER: _ClassVar[int]
    TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZED_MODULES_FIELD_NUMBER: _ClassVar[int]
    KEPT_MODULES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LINEAGE_FIELD_NUMBER: _ClassVar[int]
    source_bytes: int
    quantized_bytes: int
    source_perplexity: float
    quantized_perplexity: float
    mean_kl_nats: float
    top1_agreement: float
    evaluated_tokens: int
    quantized_modules: int
    kept_modules: _containers.RepeatedScalarFieldContainer[str]
    source_lineage: str
    def __init__(self, source_bytes: _Optional[int] = ..., quantized_bytes: _Optional[int] = ..., source_perplexity: _Optional[float] = ..., quantized_perplexity: _Optional[float] = ..., mean_kl_nats: _Optional[float] = ..., top1_agreement: _Optional[float] = ..., evaluated_tokens: _Optional[int] = ..., quantized_modules: _Optional[int] = ..., kept_modules: _Optional[_Iterable[str]] = ..., source_lineage: _Optional[str] = ...) -> None: ...

class EvaluationSample(_message.Message):
    __slots__ = ("prompt", "expected", "baseline", "answer", "correct")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    expected: str
    baseline: str
    answer: str
    correct: bool
    def __init__(self, prompt: _Optional[str] = ..., expected: _Optional[str] = ..., baseline: _Optional[str] = ..., answer: _Optional[str] = ..., correct: bool = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("number", "time", "state", "progress", "evaluation", "checkpoint", "notice")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    number: int
    time: _timestamp_pb2.Timestamp
    state: StateChanged
    progress: Progress
    evaluation: EvaluationFinished
    checkpoint: Checkpoint
    notice: Notice
    def __init__(self, number: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[StateChanged, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., evaluation: _Optional[_Union[EvaluationFinished, _Mapping]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., notice: _Optional[_Union[Notice, _Mapping]] = ...) -> None: ...

class StateChanged(_message.Message):
    __slots__ = ("state", "reason", "attempt")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    state: JobState
    reason: JobStateReason
    attempt: int
    def __init__(self, state: _Optional[_Union[JobState, str]] = ..., reason: _Optional[_Union[JobStateReason, str]] = ..., attempt: _Optional[int] = ...) -> None: ...

class EvaluationFinished(_message.Message):
    __slots__ = ("subject", "step", "metrics", "confusion")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CONFUSION_FIELD_NUMBER: _ClassVar[int]
    subject: str
    step: int
    metrics: _containers.RepeatedCompositeFieldContainer[_common_pb2.Metric]
    confusion: _common_pb2.ConfusionMatrix
    def __init__(self, subject: _Optional[str] = ..., step: _Optional[int] = ..., metrics: _Optional[_Iterable[_Union[_common_pb2.Metric, _Mapping]]] = ..., confusion: _Optional[_Union[_common_pb2.ConfusionMatrix, _Mapping]] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("severity", "text")
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    severity: Severity
    text: str
    def __init__(self, severity: _Optional[_Union[Severity, str]] = ..., text: _Optional[str] = ...) -> None: ...
