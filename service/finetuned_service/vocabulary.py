"""The words of the domain that more than one room needs, in the field's own terms."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value without surprises: unknown keys are errors, and every number comes back from JSON as it
    was, the NaN of a training run that diverged as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Method(StrEnum):
    HEAD = "HEAD"
    LAYERS = "LAYERS"
    FULL = "FULL"
    BOTTLENECK = "BOTTLENECK"
    LORA = "LORA"
    QLORA = "QLORA"
    IA3 = "IA3"


class Task(StrEnum):
    """Hugging Face's pipeline names."""

    TEXT_GENERATION = "text-generation"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - a task name, not a password
    FEATURE_EXTRACTION = "feature-extraction"
    IMAGE_CLASSIFICATION = "image-classification"


class Objective(StrEnum):
    """The loss that training minimises."""

    SFT = "SFT"
    """Cross-entropy on the tokens of answers."""
    CLASSIFICATION = "CLASSIFICATION"
    """Cross-entropy on labels; squared error on numbers."""
    CONTRASTIVE = "CONTRASTIVE"
    """Each text nearer to its own pair than to those of others."""
    DPO = "DPO"
    """The chosen answer likelier than the rejected one, measured against the model that training began with."""


class Family(StrEnum):
    """What kind of model a base is; decides which tasks it can do."""

    DECODER = "DECODER"
    """A causal language model."""
    ENCODER = "ENCODER"
    """A text encoder: every token sees all others."""
    VISION = "VISION"
    """An image encoder."""


class Pooling(StrEnum):
    """How the vectors of an input's tokens become one."""

    MEAN = "MEAN"
    """Their mean."""
    CLS = "CLS"
    """That of the first token."""
    LAST = "LAST"
    """That of the last token."""


class ClassWeights(StrEnum):
    """How much the labels count in the loss where some are rarer than others."""

    NONE = "NONE"
    BALANCED = "BALANCED"


class WeightFormat(StrEnum):
    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"
    INT8 = "INT8"
    INT4 = "INT4"
    NF4 = "NF4"
    FP4 = "FP4"


class Metric(Value):
    name: str
    value: float
    higher_is_better: bool


class ConfusionMatrix(Value):
    """How often each label was given to what has which: a row for what is right, a column for what was given."""

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    """Row after row."""
    other_labels: int = 0
    """How many more labels the last row and the last column stand for; 0 where each has its own."""


class LabelCount(Value):
    """How often a label is given: rows, or tokens for tags."""

    label: str
    count: int


class LengthSummary(Value):
    """How long rows are; percentiles are lengths that occur."""

    median: int = 0
    p90: int = 0
    p95: int = 0
    p99: int = 0
    longest: int = 0
    mean: float = 0.0


class DatasetReport(Value):
    """What a dataset holds, whatever base it will be used with."""

    characters: LengthSummary = LengthSummary()
    """Of all texts in a row; 0 for images."""
    labels: tuple[LabelCount, ...] = ()
    """The most frequent first."""
    imbalance_ratio: float = 0.0
    """How many times the rarest label the most frequent one is given; 0 without labels."""
    duplicate_rows: int = 0
    """Rows that repeat what an earlier one is about, case, width of letters and white space aside."""
    conflicting_rows: int = 0
    """Rows that give another label to it."""
    warnings: tuple[str, ...] = ()


class DataReport(Value):
    """What a job will see of its data, counted before it starts."""

    train_rows: int
    eval_rows: int
    train_tokens: int
    """In one pass over the training rows."""
    supervised_tokens: int
    """Those of them that carry loss."""
    mean_row_tokens: float
    longest_row_tokens: int
    truncated_rows: int = 0
    dropped_rows: int = 0
    duplicate_rows: int = 0
    """Training rows that repeat an earlier one."""
    leaked_rows: int = 0
    """Held-out rows that are also trained on."""
    similar_leaked_rows: int = 0
    """Held-out rows that are trained on when case, width of letters, white space and labels are left aside."""
    row_tokens: LengthSummary = LengthSummary()
    """Of the training rows, before any was cut."""
    train_labels: tuple[LabelCount, ...] = ()
    eval_labels: tuple[LabelCount, ...] = ()
    imbalance_ratio: float = 0.0
    """How many times the rarest label trained on the most frequent one is given; 0 without labels."""
    warnings: tuple[str, ...] = ()
