"""What a job is asked to do. None means the service's default; a job's own spec has them all written back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import final

from finetuned.values.common import Pooling, Task, WeightFormat


class Objective(StrEnum):
    """The loss that training minimises."""

    UNKNOWN = "UNKNOWN"
    SFT = "SFT"
    CLASSIFICATION = "CLASSIFICATION"
    CONTRASTIVE = "CONTRASTIVE"
    DPO = "DPO"


class LearningRateSchedule(StrEnum):
    """The shape of the learning rate after warm-up."""

    UNKNOWN = "UNKNOWN"
    CONSTANT = "CONSTANT"
    LINEAR = "LINEAR"
    COSINE = "COSINE"


class LongRows(StrEnum):
    """What happens to rows longer than `max_row_tokens`."""

    UNKNOWN = "UNKNOWN"
    REJECT = "REJECT"
    TRUNCATE = "TRUNCATE"
    DROP = "DROP"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Settings of LoRA (Hu et al. 2021)."""

    rank: int | None = None
    """1 to 256; default 16."""
    alpha: float | None = None
    """Numerator of the scaling; default twice the rank, and 8 with `rank_stabilized`."""
    dropout: float | None = None
    """0 to below 1; default 0."""
    target_modules: tuple[str, ...] = ()
    """Names of linear modules or convolutions, or dotted ends of them; empty means all of the layers."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023) instead of alpha / rank."""
    decomposed: bool = False
    """DoRA (Liu et al. 2024)."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    """Other ranks, by module name or dotted end of it; the longest that fits counts."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    """Other alphas, alike."""
    modules_to_save: tuple[str, ...] = ()
    """Further modules that train whole, as in PEFT: "lm_head", "embed_tokens"."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Qlora:
    """LoRA over a base that is stored as INT8 or NF4 (Dettmers et al. 2023)."""

    lora: Lora = field(default_factory=Lora)
    """Settings of the updates; without modules_to_save."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ia3:
    """Settings of IA3 (Liu et al. 2022)."""

    target_modules: tuple[str, ...] = ()
    """Names of linear modules; empty means keys, values and the last product of the feed-forward."""
    feedforward_modules: tuple[str, ...] = ()
    """Those of them whose input is scaled; empty means the last product of the feed-forward."""
    modules_to_save: tuple[str, ...] = ()
    """Further modules that train whole, as in PEFT."""


class BottleneckPlacement(StrEnum):
    """Where bottlenecks stand in each layer."""

    UNKNOWN = "UNKNOWN"
    HOULSBY = "HOULSBY"
    PFEIFFER = "PFEIFFER"
    PARALLEL = "PARALLEL"


class BottleneckActivation(StrEnum):
    """The nonlinearity of a bottleneck."""

    UNKNOWN = "UNKNOWN"
    RELU = "RELU"
    GELU = "GELU"
    SILU = "SILU"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """Settings of bottleneck adapters (Houlsby et al. 2019, Pfeiffer et al. 2021, He et al. 2022)."""

    placement: BottleneckPlacement | None = None
    """Default HOULSBY: two a layer, before what attention and feed-forward return is added."""
    reduction_factor: float | None = None
    """Divides the base's width into the bottleneck's, 1 to 1024; default 16."""
    width: int | None = None
    """The bottleneck's, instead of the reduction factor."""
    activation: BottleneckActivation | None = None
    """Default GELU."""
    scaling: float | None = None
    """Multiplies what is added; default 1."""
    target_modules: tuple[str, ...] = ()
    """Layers ("layers.0") or their attention and feed-forward modules; empty means those of the placement."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Which layers of the base train whole, of a vision model which stages; the last quarter by default."""

    last: int | None = None
    """So many layers at the end."""
    layers: tuple[int, ...] = ()
    """By their numbers from 0."""
    modules: tuple[str, ...] = ()
    """Further modules with all that is in them: "model.norm", "embed_tokens"."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """All parameters of the base train; there is nothing to choose."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Settings of the last layer: of a linear layer over what the frozen base encodes, or of a decoder's own head."""

    pooling: Pooling | None = None
    """How a text's vectors become one; default the base's own."""


class ClassWeights(StrEnum):
    """How much labels count in the loss where some are rarer than others."""

    UNKNOWN = "UNKNOWN"
    NONE = "NONE"
    BALANCED = "BALANCED"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationOptions:
    """Settings of the classification tasks."""

    class_weights: ClassWeights | None = None
    """Default BALANCED for classes of texts and images, NONE for tags of tokens."""
    label_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Weights of your own by label, instead of class_weights; labels that are not named count 1."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveOptions:
    """Settings of training vectors on pairs."""

    scale: float | None = None
    """Of cosines before the softmax over the batch; default 20."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Dpo:
    """Settings of direct preference optimisation (Rafailov et al. 2023)."""

    beta: float | None = None
    """Reward of one nat by which an answer became likelier; default 0.1. More stays nearer to the beginning."""
    label_smoothing: float | None = None
    """How often a choice is taken to be wrong, 0 to below 0.5; default 0."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """Settings of AdamW and its schedule."""

    epochs: float | None = None
    """How often every training row is seen; default 3. Few rows are seen more often: with several labels until there are
    240 steps, at most 8 times; answers by Lora and Qlora until there are 120, at most 6 times. Heads over bases that
    encode have 30, or 10 where they learn numbers. Ignored if max_steps is set.
    """
    max_steps: int | None = None
    """Optimiser steps."""
    batch_rows: int | None = None
    """Rows in one optimiser step, 1 to 1024; default 8."""
    micro_batch_rows: int | None = None
    """How many of them run at once at most; default batch_rows."""
    learning_rate: float | None = None
    """The peak; the default is chosen from the base's width, its kind and the method, for preferences a tenth of it,
    for answers (see epochs) in runs of at most 150 steps half as much again.
    """
    head_learning_rate: float | None = None
    """The peak of a head that trains beside other parameters (classification by all methods but Head): it begins with
    zeros, while they begin with what the base knows. Default Lora's usual rate, or `learning_rate` where that is higher or
    the head goes on from an earlier version's.
    """
    schedule: LearningRateSchedule | None = None
    """Default COSINE."""
    warmup_fraction: float | None = None
    """Part of the steps in which the rate rises, 0 to 0.5; default 0.05."""
    weight_decay: float | None = None
    """Default 0."""
    max_gradient_norm: float | None = None
    """Clips the gradient's global norm; default 1; 0 does not clip."""
    seed: int | None = None
    """Fixes the order of rows, initial weights and dropout; default 0."""
    checkpoint_interval_steps: int | None = None
    """The default is chosen from the number of steps."""
    activation_checkpointing: bool | None = None
    """Less memory, steps up to a third longer, the same result; default: where memory is short."""
    kept_checkpoints: int | None = None
    """How many of the newest are kept, besides the best, 1 to 100; default 2."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Settings of reading rows."""

    holdout_fraction: float | None = None
    """Part of the rows kept for evaluation without an eval_dataset, 0 to 0.5; default 0.1."""
    max_row_tokens: int | None = None
    """The default is the smaller of 1024 and the context."""
    long_rows: LongRows | None = None
    """Default REJECT."""
    train_on_prompt: bool = False
    """Put the loss on prompts as well."""


@final
@dataclass(frozen=True, slots=True)
class BaselineExample:
    prompt: str
    completion: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The prompt that the plain base gets in the evaluation and the adapter does not."""

    instruction: str = ""
    examples: tuple[BaselineExample, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """Settings of evaluation and early stopping."""

    evaluations: int | None = None
    """How many times the held-out rows are measured on the way: their loss and the figures of their task, but the exact
    match of written answers, which is measured at the end alone; default 4; 0 only at the end."""
    early_stopping_patience: int | None = None
    """Stops after so many evaluations without a better loss; default 2; 0 never stops early."""
    generation_rows: int | None = None
    """Held-out rows answered for exact match; default 100; 0 measures the loss only. Of preferences at most 8."""
    generation_max_tokens: int | None = None
    """Bound of each answer; default 128."""
    baseline: Baseline | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteIf:
    """When the new version takes over an alias."""

    alias: str
    metric: str = ""
    """The figure that decides, one of those that the held-out rows measure; default their usual one."""
    minimum: float | None = None
    """What the figure must reach; for losses and errors, what it must not exceed."""
    better_than_current: bool = False
    """It must beat the aliased version on the same held-out rows."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    dataset: str
    eval_dataset: str
    """Empty: a part of the dataset was held out."""
    adapter: str
    base: str
    task: Task
    objective: Objective
    lora: Lora | None
    head: Head | None
    qlora: Qlora | None
    dpo: Dpo | None
    ia3: Ia3 | None
    classification: ClassificationOptions | None
    contrastive: ContrastiveOptions | None
    bottleneck: Bottleneck | None
    layers: Layers | None
    full: Full | None
    optimization: Optimization | None
    data: DataOptions | None
    evaluation: EvaluationOptions | None
    promote_if: PromoteIf | None
    continue_from: str
    """The version, or the job, whose weights training started with; empty for none."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeSpec:
    base: str
    output_base_id: str
    weight_format: WeightFormat
    dataset: str
    """Rows on which quality is measured; empty means the built-in text."""
    max_quality_drop: float | None
    """The largest relative rise of perplexity that passes."""
    quantize_embeddings: bool
