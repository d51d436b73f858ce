"""The settings of each method: gaps filled from the base, what does not fit it refused. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetuned_service.adapters.geometry import linear_shapes
from finetuned_service.bases.family import TASKS, width_of
from finetuned_service.bases.manifest import WEIGHTS_FILE, read_config
from finetuned_service.errors import FinetunedError
from finetuned_service.jobs.methods.base import BaseFacts
from finetuned_service.jobs.methods.ia3 import ia3_elements, ia3_refusals, resolve_ia3
from finetuned_service.jobs.methods.lora import lora_config, lora_elements, lora_refusals, resolve_lora
from finetuned_service.jobs.values import TrainSpec
from finetuned_service.vocabulary import Family, Method, Task

__all__ = [
    "CLASSIFICATION_TASKS",
    "MAX_RANK",
    "METHODS_OF_TASK",
    "SETTINGS_OF",
    "BaseFacts",
    "adapter_bytes",
    "adds_low_rank_only",
    "lora_config",
    "methods_of",
    "refuse_method",
    "resolve_method",
]

MAX_RANK = 1024
"""More than any TrainJob may ask for; what a server serves is its own decision."""
CLASSIFICATION_TASKS = frozenset(
    {Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.IMAGE_CLASSIFICATION}
)
"""Whose adapters end in a head."""
_LARGEST_ELEMENT_BYTES = 4
_USUAL_LABELS = 1000
"""How many are in the data is not known before it is read."""

SETTINGS_OF: Mapping[Method, str] = {Method.LORA: "lora", Method.HEAD: "head", Method.IA3: "ia3"}
"""Which part of a TrainSpec holds a method's settings."""

METHODS_OF_TASK: Mapping[Task, tuple[Method, ...]] = {
    Task.TEXT_GENERATION: (Method.LORA, Method.IA3),
    Task.TEXT_CLASSIFICATION: (Method.HEAD, Method.LORA, Method.IA3),
    Task.TOKEN_CLASSIFICATION: (Method.HEAD, Method.LORA, Method.IA3),
    Task.FEATURE_EXTRACTION: (Method.LORA, Method.IA3),
    Task.IMAGE_CLASSIFICATION: (Method.HEAD,),
}
"""How each task can be trained; the first is the usual way."""


def methods_of(family: Family) -> tuple[Method, ...]:
    """All methods with which bases of a family can be trained."""
    # What becomes of an image is not trained yet.
    tasks = [task for task in TASKS[family] if (family, task) != (Family.VISION, Task.FEATURE_EXTRACTION)]
    return tuple(dict.fromkeys(m for task in tasks for m in METHODS_OF_TASK.get(task, ())))


def resolve_method(spec: TrainSpec, base: BaseFacts) -> TrainSpec:
    """The same spec with the defaults of its method written back."""
    match spec.method:
        case Method.LORA:
            return spec.model_copy(update={"lora": resolve_lora(spec.lora, base)})
        case Method.IA3:
            return spec.model_copy(update={"ia3": resolve_ia3(spec.ia3, base)})
        case Method.HEAD:
            head = spec.head.model_copy(update={"pooling": spec.head.pooling or base.pooling})
            return spec.model_copy(update={"head": head})


def refuse_method(spec: TrainSpec, base: BaseFacts, max_rank: int = MAX_RANK) -> list[FinetunedError]:
    """What of a resolved spec's method does not fit the base; `max_rank` is the largest that will be served."""
    match spec.method:
        case Method.LORA:
            return [*lora_refusals(spec.lora, base, max_rank)]
        case Method.IA3:
            return [*ia3_refusals(spec.ia3, base)]
        case Method.HEAD:
            return []


def adds_low_rank_only(spec: TrainSpec) -> bool:
    """Whether the adapter of a spec does no more to its base than add low-rank updates."""
    return spec.method is Method.LORA and not spec.lora.decomposed


def adapter_bytes(spec: TrainSpec, base_directory: Path) -> int:
    """The most that the tensors of a resolved spec's adapter take, in 32 bits."""
    shapes = linear_shapes(base_directory / WEIGHTS_FILE)
    match spec.method:
        case Method.LORA:
            elements = lora_elements(spec.lora, shapes)
        case Method.IA3:
            elements = ia3_elements(spec.ia3, shapes)
        case Method.HEAD:
            elements = 0
    if spec.task in CLASSIFICATION_TASKS:
        elements += _USUAL_LABELS * (width_of(read_config(base_directory)) + 1)
    return elements * _LARGEST_ELEMENT_BYTES
