"""What a job is asked to do, as `job.proto` has it.

A spec arrives with gaps (None) and is stored resolved: every default written back, so that the
record alone says what ran. Defaults that depend on the base or the data are chosen by
`jobs/resolve.py`; the constant ones stand here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetuned_service.adapters.site_ops import Activation
from finetuned_service.vocabulary import (
    ClassWeights,
    Method,
    Objective,
    Pooling,
    Task,
    Value,
    WeightFormat,
)


class Schedule(StrEnum):
    CONSTANT = "CONSTANT"
    LINEAR = "LINEAR"
    COSINE = "COSINE"


class LongRows(StrEnum):
    REJECT = "REJECT"
    TRUNCATE = "TRUNCATE"
    DROP = "DROP"


class Settings(Value):
    """What a caller writes: numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


Rank = Annotated[int, Field(ge=1, le=256)]
Alpha = Annotated[float, Field(gt=0, le=1e9)]


class LoraSettings(Settings):
    rank: Rank = 16
    alpha: Alpha | None = None
    """Resolved to twice the rank, of rsLoRA to 8."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ()
    """Module names or dotted ends of them; resolved to all linear modules of the decoder's layers."""
    rank_stabilized: bool = False
    decomposed: bool = False
    """DoRA."""
    rank_pattern: dict[str, Rank] = Field(default={}, max_length=2048)
    """Other ranks, by module name or dotted end of it; the first that fits counts."""
    alpha_pattern: dict[str, Alpha] = Field(default={}, max_length=2048)
    """Other alphas, alike."""
    modules_to_save: tuple[str, ...] = ()
    """Further modules that train whole, by their names or dotted ends of them; outside target_modules."""


class Ia3Settings(Settings):
    target_modules: tuple[str, ...] = ()
    """Module names or dotted ends of them; resolved to keys, values and the last product of the feed-forward."""
    feedforward_modules: tuple[str, ...] | None = None
    """Those of them whose input is scaled; resolved to the feed-forward's."""
    modules_to_save: tuple[str, ...] = ()
    """See `LoraSettings`."""


class Placement(StrEnum):
    """Where bottlenecks stand, if no modules are named."""

    HOULSBY = "HOULSBY"
    """Two a layer, each on what a sublayer returns, before it is added to the residual stream."""
    PFEIFFER = "PFEIFFER"
    """One a layer, on what it returns, the feed-forward added to the residual stream."""
    PARALLEL = "PARALLEL"
    """One a layer, beside the feed-forward, on what that reads (He et al. 2022)."""


MOST_REDUCED = 1024.0


class BottleneckSettings(Settings):
    placement: Placement = Placement.HOULSBY
    reduction_factor: float = Field(default=16.0, ge=1, le=MOST_REDUCED)
    """Of the base's width; what is left is the bottleneck's."""
    width: int | None = Field(default=None, ge=1)
    """Resolved from the reduction factor."""
    activation: Activation = Activation.GELU
    scaling: Alpha = 1.0
    target_modules: tuple[str, ...] = ()
    """Layers and sublayers, by their names or dotted ends of them; resolved to full names."""


class LayersSettings(Settings):
    last: int | None = Field(default=None, ge=1)
    """So many layers at the end; resolved to a quarter of them where nothing is chosen."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), max_length=2048)
    """By their numbers from 0; resolved with those of `last` in it."""
    modules: tuple[str, ...] = Field(default=(), max_length=2048)
    """Further modules, by their names or dotted ends of them, with all that is in them."""


class FullSettings(Settings):
    """There is nothing to choose."""


class HeadSettings(Settings):
    pooling: Pooling | None = None
    """How a text's vectors become one; resolved to the base's own."""


class DpoSettings(Settings):
    """Of direct preference optimisation (Rafailov et al. 2023)."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """Reward of one nat by which an answer became likelier; more keeps the model nearer to where it began."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """How often a choice is taken to be wrong (conservative DPO, Mitchell 2023)."""


class ClassificationOptions(Settings):
    class_weights: ClassWeights | None = None
    """Resolved to BALANCED for classes of texts and images, to NONE for tags and beside `label_weights`."""
    label_weights: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(default={}, max_length=10_000)
    """Weights of the caller's own; other labels count 1."""


class ContrastiveOptions(Settings):
    scale: float = Field(default=20.0, gt=0, le=1000)
    """Of cosines, before the softmax over the batch."""


MAX_LEARNING_RATE = 1.0
MAX_STEPS = 10_000_000


class Optimization(Settings):
    epochs: float | None = Field(default=None, gt=0, le=1000)
    """Resolved from the method and the rows if max_steps is not set either."""
    max_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Resolved from epochs."""
    batch_rows: int = Field(default=8, ge=1, le=1024)
    micro_batch_rows: int | None = Field(default=None, ge=1, le=1024)
    """Resolved to batch_rows."""
    learning_rate: float | None = Field(default=None, gt=0, le=MAX_LEARNING_RATE)
    """Resolved from the base's width, the method and the rows."""
    head_learning_rate: float | None = Field(default=None, gt=0, le=MAX_LEARNING_RATE)
    """Resolved where a head trains beside other parameters (`methods.trains_beside_head`); None there is learning_rate."""
    schedule: Schedule = Schedule.COSINE
    warmup_fraction: float = Field(default=0.05, ge=0, le=0.5)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_gradient_norm: float = Field(default=1.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    checkpoint_interval_steps: int | None = Field(default=None, ge=1)
    """Resolved to a tenth of the steps, at least 5."""
    activation_checkpointing: bool | None = None
    """None leaves it to each attempt: it depends on the memory there and changes no bit of the result."""
    kept_checkpoints: int = Field(default=2, ge=1, le=100)
    """The newest ones; the best is kept besides."""


class DataOptions(Settings):
    holdout_fraction: float = Field(default=0.1, ge=0, le=0.5)
    max_row_tokens: int | None = Field(default=None, ge=8)
    """Resolved to the smaller of 1024 and the context."""
    long_rows: LongRows = LongRows.REJECT
    train_on_prompt: bool = False


class BaselineExample(Value):
    prompt: str
    completion: str


class Baseline(Value):
    """The prompt that the plain base gets in the evaluation and the adapter does not."""

    instruction: str = ""
    examples: tuple[BaselineExample, ...] = Field(default=(), max_length=16)


class EvaluationOptions(Settings):
    evaluations: int = Field(default=4, ge=0, le=1000)
    early_stopping_patience: int = Field(default=2, ge=0, le=1000)
    generation_rows: int = Field(default=100, ge=0, le=100_000)
    generation_max_tokens: int = Field(default=128, ge=1, le=4096)
    baseline: Baseline = Baseline()


class PromoteIf(Settings):
    alias: str
    metric: Literal[
        "",
        "exact_match",
        "loss",
        "accuracy",
        "macro_f1",
        "micro_f1",
        "entity_f1",
        "spearman",
        "pearson",
        "mean_absolute_error",
        "reward_accuracy",
        "reward_margin",
        "mrr_at_10",
        "recall_at_1",
        "recall_at_10",
    ] = "exact_match"
    """Empty is resolved to the usual one of task and objective."""
    minimum: float | None = None
    better_than_current: bool = False


class TrainSpec(Value):
    kind: Literal["train"] = "train"
    dataset: str
    eval_dataset: str = ""
    adapter: str
    base: str = ""
    task: Task = Task.TEXT_GENERATION
    method: Literal[
        Method.LORA, Method.HEAD, Method.IA3, Method.QLORA, Method.BOTTLENECK, Method.LAYERS, Method.FULL
    ] = Method.LORA
    """Where nobody has set it (`model_fields_set`) the base decides, see `methods/choice.py`."""
    lora: LoraSettings = LoraSettings()
    """Of LORA and QLORA."""
    head: HeadSettings = HeadSettings()
    """Of HEAD."""
    ia3: Ia3Settings = Ia3Settings()
    """Of IA3."""
    objective: Objective | None = None
    """Resolved to what the rows are for."""
    dpo: DpoSettings | None = None
    """Of DPO; resolved where that is the objective, None elsewhere."""
    classification: ClassificationOptions = ClassificationOptions()
    """Of tasks with labels."""
    contrastive: ContrastiveOptions = ContrastiveOptions()
    """Of feature extraction."""
    bottleneck: BottleneckSettings = BottleneckSettings()
    """Of BOTTLENECK."""
    layers: LayersSettings = LayersSettings()
    """Of LAYERS."""
    full: FullSettings = FullSettings()
    """Of FULL."""
    optimization: Optimization = Optimization()
    data: DataOptions = DataOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    promote_if: PromoteIf | None = None
    continue_from: str = ""
    """The version, or the diverged job, whose weights training starts with; resolved to a version's name."""

    @property
    def continues_version(self) -> bool:
        """Whether `continue_from` names a version, and no job."""
        return bool(self.continue_from) and "/jobs/" not in self.continue_from


class QuantizeSpec(Settings):
    kind: Literal["quantize"] = "quantize"
    base: str = ""
    output_base_id: str
    weight_format: Literal[WeightFormat.INT8, WeightFormat.NF4]
    dataset: str = ""
    max_quality_drop: float | None = Field(default=None, ge=0)
    quantize_embeddings: bool = False


Spec = Annotated[TrainSpec | QuantizeSpec, Field(discriminator="kind")]
