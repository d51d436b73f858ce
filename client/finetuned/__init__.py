"""The client of the fine-tuning service: `Client`, `AsyncClient` and the values they take and give.

Importing it needs neither torch nor the service. `finetuned.errors` has what calls raise,
`finetuned.testing` a server for tests, `finetuned.v1` the generated contract.
"""

from finetuned import errors
from finetuned._aio_client import AsyncClient
from finetuned._client import Client
from finetuned._replies import AsyncReplyStream, ReplyStream
from finetuned._retry import Deadlines, RetryPolicy
from finetuned.errors import FinetunedError
from finetuned.settings import Settings
from finetuned.values.adapters import (
    Adapter,
    AdapterState,
    AdapterVersion,
    Alias,
    ExportedAdapter,
    Lineage,
    ReplicaResidency,
)
from finetuned.values.bases import Base
from finetuned.values.common import Method, Metric, Residency, Task, WeightFormat
from finetuned.values.datasets import Dataset, DatasetFormat, RowKind, UploadProgress
from finetuned.values.events import (
    Checkpoint,
    EvaluationFinished,
    JobEvent,
    JobState,
    JobStateReason,
    Notice,
    Progress,
    Severity,
    StateChanged,
)
from finetuned.values.jobs import (
    DataReport,
    Environment,
    Estimate,
    EvaluationSample,
    Fault,
    Job,
    JobError,
    JobKind,
    QuantizeReport,
    QuantizeResult,
    TrainResult,
)
from finetuned.values.replies import (
    Delta,
    FinishReason,
    Reply,
    ServedBy,
    Timing,
    TokenLogprobs,
    Usage,
)
from finetuned.values.requests import GenerateRequest, Message, Prompt, RawText, Role, Truncation
from finetuned.values.server import EngineLoad, Limits, LimitUse, MemoryUse, ServerInfo, TenantUsage
from finetuned.values.specs import (
    Baseline,
    BaselineExample,
    DataOptions,
    EvaluationOptions,
    LearningRateSchedule,
    LongRows,
    Lora,
    Optimization,
    PromoteIf,
    QuantizeSpec,
    TrainSpec,
)

__all__ = [
    "Adapter",
    "AdapterState",
    "AdapterVersion",
    "Alias",
    "AsyncClient",
    "AsyncReplyStream",
    "Base",
    "Baseline",
    "BaselineExample",
    "Checkpoint",
    "Client",
    "DataOptions",
    "DataReport",
    "Dataset",
    "DatasetFormat",
    "Deadlines",
    "Delta",
    "EngineLoad",
    "Environment",
    "Estimate",
    "EvaluationFinished",
    "EvaluationOptions",
    "EvaluationSample",
    "ExportedAdapter",
    "Fault",
    "FinetunedError",
    "FinishReason",
    "GenerateRequest",
    "Job",
    "JobError",
    "JobEvent",
    "JobKind",
    "JobState",
    "JobStateReason",
    "LearningRateSchedule",
    "LimitUse",
    "Limits",
    "Lineage",
    "LongRows",
    "Lora",
    "MemoryUse",
    "Message",
    "Method",
    "Metric",
    "Notice",
    "Optimization",
    "Progress",
    "PromoteIf",
    "Prompt",
    "QuantizeReport",
    "QuantizeResult",
    "QuantizeSpec",
    "RawText",
    "ReplicaResidency",
    "Reply",
    "ReplyStream",
    "Residency",
    "RetryPolicy",
    "Role",
    "RowKind",
    "ServedBy",
    "ServerInfo",
    "Settings",
    "Severity",
    "StateChanged",
    "Task",
    "TenantUsage",
    "Timing",
    "TokenLogprobs",
    "TrainResult",
    "TrainSpec",
    "Truncation",
    "UploadProgress",
    "Usage",
    "WeightFormat",
    "errors",
]
