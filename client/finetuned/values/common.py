"""Words that several resources share.

Every enum has UNKNOWN: unset, or a value of a newer server that this client does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import final


class Method(StrEnum):
    """How the weights of an adapter are trained."""

    UNKNOWN = "UNKNOWN"
    HEAD = "HEAD"
    LAYERS = "LAYERS"
    FULL = "FULL"
    BOTTLENECK = "BOTTLENECK"
    LORA = "LORA"
    QLORA = "QLORA"
    IA3 = "IA3"


class Task(StrEnum):
    """What an adapter is for, in the pipeline names of Hugging Face."""

    UNKNOWN = "unknown"
    TEXT_GENERATION = "text-generation"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - a task's name, no secret
    FEATURE_EXTRACTION = "feature-extraction"
    IMAGE_CLASSIFICATION = "image-classification"


class Residency(StrEnum):
    """Where an adapter's weights are on one replica."""

    UNKNOWN = "UNKNOWN"
    STORED = "STORED"
    HOST = "HOST"
    DEVICE = "DEVICE"


class WeightFormat(StrEnum):
    """A numeric format of stored base weights."""

    UNKNOWN = "UNKNOWN"
    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"
    INT8 = "INT8"
    INT4 = "INT4"
    NF4 = "NF4"
    FP4 = "FP4"


class ModelFamily(StrEnum):
    """What kind of model a base is."""

    UNKNOWN = "UNKNOWN"
    DECODER = "DECODER"
    ENCODER = "ENCODER"
    VISION = "VISION"


class Pooling(StrEnum):
    """How the vectors of an input's tokens become one."""

    UNKNOWN = "UNKNOWN"
    MEAN = "MEAN"
    CLS = "CLS"
    LAST = "LAST"


@final
@dataclass(frozen=True, slots=True)
class Metric:
    """One measured figure."""

    name: str
    value: float
    higher_is_better: bool


@final
@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """How often each label was given to what has which: of rows that have one label, or words that have one tag."""

    labels: tuple[str, ...]
    """In the order of rows and columns."""
    counts: tuple[int, ...]
    """Row after row; `rows` has them apart."""
    other_labels: int
    """How many more labels share the last row and the last column; 0 where each has its own."""

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """A row for what is right, a column for what was given."""
        size = len(self.labels) + bool(self.other_labels)
        return tuple(self.counts[row * size : (row + 1) * size] for row in range(size))


@final
@dataclass(frozen=True, slots=True)
class LabelCount:
    """How often a label is given: rows, or tokens for tags."""

    label: str
    count: int


@final
@dataclass(frozen=True, slots=True)
class LengthSummary:
    """How long rows are; percentiles are lengths that occur."""

    median: int
    p90: int
    p95: int
    p99: int
    longest: int
    mean: float
