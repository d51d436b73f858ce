"""The method of a TrainJob that names none. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from finetuned_service.bases.family import ENCODER_CLASSES
from finetuned_service.bases.manifest import BaseManifest
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.vocabulary import Method, Task, WeightFormat

QUANTIZED = (WeightFormat.INT8, WeightFormat.NF4)
"""Formats over which QLORA trains."""
_PLAIN = (WeightFormat.FP32, WeightFormat.BF16)
"""Formats over which all others do."""

_OF_TEXT_ENCODERS = (Method.IA3, Method.BOTTLENECK, Method.LAYERS, Method.FULL)
METHODS_OF_TASK: Mapping[Task, tuple[Method, ...]] = {
    Task.TEXT_GENERATION: (
        Method.LORA,
        Method.QLORA,
        Method.IA3,
        Method.BOTTLENECK,
        Method.HEAD,
        Method.LAYERS,
        Method.FULL,
    ),
    Task.TEXT_CLASSIFICATION: (Method.LORA, Method.HEAD, *_OF_TEXT_ENCODERS),
    Task.TOKEN_CLASSIFICATION: (Method.LORA, Method.HEAD, *_OF_TEXT_ENCODERS),
    Task.FEATURE_EXTRACTION: (Method.LORA, *_OF_TEXT_ENCODERS),
    Task.IMAGE_CLASSIFICATION: (Method.LORA, Method.HEAD, Method.LAYERS, Method.FULL),
}
"""How each task can be trained. The first that the base takes is the usual way; why so is measured:
docs/decisions/2026-11-26-lora-where-no-method-is-named.md."""


def with_method(
    spec: TrainSpec, base: BaseManifest, continued: Method | None = None
) -> tuple[TrainSpec, str]:
    """The spec with the method that trains, and what its caller is to be told of that; usually nothing.

    Where none is named, it is the first of the task's that the base takes; of those that can go on from weights of
    `continued`.
    """
    if "method" in spec.model_fields_set:
        return spec, ""
    of_task = METHODS_OF_TASK[spec.task]
    can = [m for m in of_task if continued is None or kind_of(m) is kind_of(continued)] or list(of_task)
    found = next((m for m in can if not _why_not(m, base)), can[0])
    told = ""
    if continued is None and found is not can[0]:
        told = (
            f"METHOD_{found} trains, since none was named and METHOD_{can[0]} does not train on {base.name}: "
            f"{_why_not(can[0], base)}"
        )
    return spec.model_copy(update={"method": found}), told


def kind_of(method: Method) -> Method:
    """QLORA differs from LORA in how its base is stored, not in what it trains."""
    return Method.LORA if method is Method.QLORA else method


def untrained_on(base: BaseManifest) -> Mapping[Method, str]:
    """Methods that others of its family train with, and why it does not."""
    known = next((c for c in ENCODER_CLASSES.values() if c.name == base.architecture), None)
    return known.untrained if known else {}


def takes_format(method: Method, weight_format: WeightFormat) -> bool:
    """Whether a method trains over a base that is stored so."""
    return weight_format in (QUANTIZED if method is Method.QLORA else _PLAIN)


def _why_not(method: Method, base: BaseManifest) -> str:
    if not takes_format(method, base.weight_format):
        return f"it is stored as {base.weight_format}"
    return untrained_on(base).get(method, "")
