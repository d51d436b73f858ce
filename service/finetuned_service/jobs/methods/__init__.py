"""The settings of each method: gaps filled from the base, what does not fit it refused. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.family import TASKS, width_of
from finetuned_service.bases.manifest import BaseManifest, read_config
from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.jobs.methods.base import BaseFacts
from finetuned_service.jobs.methods.bottleneck import (
    bottleneck_elements,
    bottleneck_refusals,
    resolve_bottleneck,
)
from finetuned_service.jobs.methods.choice import (
    METHODS_OF_TASK,
    QUANTIZED,
    kind_of,
    takes_format,
    untrained_on,
    with_method,
)
from finetuned_service.jobs.methods.ia3 import ia3_elements, ia3_refusals, resolve_ia3
from finetuned_service.jobs.methods.lora import (
    lora_config,
    lora_elements,
    lora_refusals,
    resolve_lora,
)
from finetuned_service.jobs.methods.parameters import chosen_parameters, layers_refusals, resolve_layers
from finetuned_service.jobs.methods.saved import saved_elements
from finetuned_service.jobs.methods.stored import Stored, stored_settings, trains_as_stored
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.vocabulary import Family, Method, Task

__all__ = [
    "CLASSIFICATION_TASKS",
    "MAX_RANK",
    "METHODS_OF_TASK",
    "SETTINGS_OF",
    "WHY_NOT",
    "BaseFacts",
    "Stored",
    "adapter_bytes",
    "adapter_elements",
    "kind_of",
    "lora_config",
    "methods_of",
    "refuse_format",
    "refuse_method",
    "resolve_method",
    "stored_settings",
    "trains_as_stored",
    "trains_beside_head",
    "with_method",
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

SETTINGS_OF: Mapping[Method, str] = {
    Method.LORA: "lora",
    Method.QLORA: "lora",
    Method.HEAD: "head",
    Method.IA3: "ia3",
    Method.BOTTLENECK: "bottleneck",
    Method.LAYERS: "layers",
    Method.FULL: "full",
}
"""Which part of a TrainSpec holds a method's settings."""

_NO_VECTORS = (
    "what a vision model passes on are maps of channels, which change their size from stage to stage"
)
WHY_NOT: Mapping[tuple[Task, Method], str] = {
    (Task.IMAGE_CLASSIFICATION, Method.BOTTLENECK): f"a bottleneck reads vectors of one width; {_NO_VECTORS}",
    (
        Task.IMAGE_CLASSIFICATION,
        Method.IA3,
    ): "IA3 scales keys, values and feed-forwards, which a vision model has not",
    (Task.FEATURE_EXTRACTION, Method.HEAD): "vectors are what the base itself makes, under no head",
    **{
        (task, Method.QLORA): "Quantize makes INT8 and NF4 bases of causal language models alone"
        for task in (Task.FEATURE_EXTRACTION, *CLASSIFICATION_TASKS)
    },
}
"""Why a task is not trained with a method of the others."""


def trains_beside_head(spec: TrainSpec) -> bool:
    """Whether a head trains beside other parameters."""
    return spec.task in CLASSIFICATION_TASKS and spec.method is not Method.HEAD


def methods_of(base: BaseManifest) -> tuple[Method, ...]:
    """All methods with which a base can be trained."""
    untrained = untrained_on(base)
    # What becomes of an image is not trained yet.
    tasks = [t for t in TASKS[base.family] if (base.family, t) != (Family.VISION, Task.FEATURE_EXTRACTION)]
    methods = dict.fromkeys(m for task in tasks for m in METHODS_OF_TASK.get(task, ()))
    return tuple(method for method in methods if method not in untrained)


def resolve_method(spec: TrainSpec, base: BaseFacts) -> TrainSpec:
    """The same spec with the defaults of its method written back."""
    match spec.method:
        case Method.LORA | Method.QLORA:
            return spec.model_copy(update={"lora": resolve_lora(spec.lora, base)})
        case Method.IA3:
            return spec.model_copy(update={"ia3": resolve_ia3(spec.ia3, base)})
        case Method.BOTTLENECK:
            return spec.model_copy(update={"bottleneck": resolve_bottleneck(spec.bottleneck, base)})
        case Method.LAYERS:
            return spec.model_copy(update={"layers": resolve_layers(spec.layers, base)})
        case Method.FULL:
            return spec
        case Method.HEAD:
            head = spec.head.model_copy(update={"pooling": spec.head.pooling or base.pooling})
            return spec.model_copy(update={"head": head})


def refuse_method(spec: TrainSpec, base: BaseFacts, max_rank: int = MAX_RANK) -> list[FinetunedError]:
    """What of a resolved spec's method does not fit the base; `max_rank` is the largest that will be served."""
    if spec.method in base.untrained:
        allowed = [f"METHOD_{m}" for m in METHODS_OF_TASK[spec.task] if m not in base.untrained]
        said = (
            f"is set, and the base is a {base.architecture}: {base.untrained[spec.method]}. Allowed: "
            f"{', '.join(allowed)}"
        )
        return [InvalidField.one(f"spec.{SETTINGS_OF[spec.method]}", said)]
    match spec.method:
        case Method.LORA | Method.QLORA:
            path = "spec.qlora.lora" if spec.method is Method.QLORA else "spec.lora"
            if spec.method is Method.QLORA and spec.lora.modules_to_save:
                said = (
                    f"is {', '.join(spec.lora.modules_to_save)}; modules of a quantized base cannot train whole: name none, and "
                    "continue from no adapter that has some"
                )
                return [InvalidField.one(f"{path}.modules_to_save", said)]
            return [*lora_refusals(spec.lora, base, max_rank, path)]
        case Method.IA3:
            return [*ia3_refusals(spec.ia3, base)]
        case Method.BOTTLENECK:
            return [*bottleneck_refusals(spec.bottleneck, base)]
        case Method.LAYERS:
            return [*layers_refusals(spec.layers, base)]
        case Method.HEAD if spec.task is Task.TEXT_GENERATION and spec.head.pooling is not None:
            said = f"is POOLING_{spec.head.pooling}; a decoder's head reads every token: leave it out"
            return [InvalidField.one("spec.head.pooling", said)]
        case Method.HEAD | Method.FULL:
            return []


def adapter_elements(spec: TrainSpec, base_directory: Path) -> int:
    """The most numbers that a resolved spec's adapter has."""
    geometry = BaseGeometry.of_files(base_directory)
    width = width_of(read_config(base_directory))
    head = _USUAL_LABELS * (width + 1) if spec.task in CLASSIFICATION_TASKS else 0
    match spec.method:
        case Method.LORA | Method.QLORA:
            saved = saved_elements(spec.lora.modules_to_save, geometry)
            return lora_elements(spec.lora, geometry.adapted) + saved + head
        case Method.IA3:
            saved = saved_elements(spec.ia3.modules_to_save, geometry)
            return ia3_elements(spec.ia3, geometry.linear_shapes) + saved + head
        case Method.BOTTLENECK:
            return bottleneck_elements(spec.bottleneck, width) + head
        case Method.HEAD if spec.task is not Task.TEXT_GENERATION:
            return head
        case Method.HEAD | Method.LAYERS | Method.FULL:
            chosen = chosen_parameters(spec, geometry)
            return sum(math.prod(geometry.parameters[name]) for name in chosen) + head


def adapter_bytes(spec: TrainSpec, base_directory: Path) -> int:
    """The most that the tensors of a resolved spec's adapter take, in 32 bits."""
    return adapter_elements(spec, base_directory) * _LARGEST_ELEMENT_BYTES


def refuse_format(spec: TrainSpec, base: BaseManifest) -> None:
    """Refuse a base that is stored in a format over which the method does not train.

    Raises:
        InvalidField: naming the format and the method that would.
    """
    if takes_format(spec.method, base.weight_format):
        return
    packed = base.weight_format in QUANTIZED
    if spec.method is Method.QLORA:
        raise InvalidField.one(
            "spec.qlora",
            f"is for bases stored as {' or '.join(QUANTIZED)}; {base.name} is {base.weight_format}. Quantize it first "
            "and name the result in spec.base, or choose METHOD_LORA",
        )
    remedy = "choose METHOD_QLORA, or the base that it was made from" if packed else "choose another base"
    raise InvalidField.one(
        "spec.base",
        f"is {base.name}, stored as {base.weight_format}; METHOD_{spec.method} trains over FP32 and BF16: {remedy}",
    )
