"""Methods of training and their settings, from the contract to our values and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetuned.v1 import common_pb2 as common
from finetuned.v1 import job_pb2 as pb

from finetuned_service.errors import InvalidField, Unimplemented
from finetuned_service.jobs.methods import METHODS_OF_TASK, SETTINGS_OF, WHY_NOT
from finetuned_service.jobs.specs import (
    BottleneckSettings,
    FullSettings,
    HeadSettings,
    Ia3Settings,
    LayersSettings,
    LoraSettings,
    TrainSpec,
)
from finetuned_service.rpc.convert.common import checked, enum_name, given, method_to_proto
from finetuned_service.vocabulary import Method, Pooling, Task


def method_from_proto(spec: pb.TrainSpec, task: Task) -> dict[str, Any]:
    """The method of a spec and its settings, as fields of our TrainSpec; none where it names none.

    Raises:
        InvalidField: a setting is not allowed.
        Unimplemented: the method is not for the task in this build.
    """
    allowed = METHODS_OF_TASK[task]
    name = spec.WhichOneof("method")
    if not name:
        return {}
    method = Method(name.upper())
    if method not in allowed:
        feature = method_to_proto(method)
        because = WHY_NOT.get((task, method), "it is in the contract but not in this build")
        raise Unimplemented(
            f"{feature} for TASK_{task.name} is not available: {because}; available: "
            f"{', '.join(map(method_to_proto, allowed))}",
            metadata={"feature": feature},
        )
    field = SETTINGS_OF[method]
    return {"method": method, field: _READ[method](getattr(spec, str(method).lower()))}


def method_fields(spec: TrainSpec) -> dict[str, Any]:
    """The field of the contract's TrainSpec that holds the method and its settings."""
    field = SETTINGS_OF[spec.method]
    return {str(spec.method).lower(): _WRITE[spec.method](getattr(spec, field))}


def _head(head: pb.HeadMethod) -> HeadSettings:
    pooling = enum_name(common.Pooling, head.pooling, "POOLING_", "spec.head.pooling")
    return HeadSettings(pooling=Pooling(pooling) if pooling else None)


def _lora(lora: pb.LoraMethod, path: str = "spec.lora") -> LoraSettings:
    return checked(
        path,
        LoraSettings,
        target_modules=tuple(lora.target_modules),
        rank_stabilized=lora.rank_stabilized,
        decomposed=lora.decomposed,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        modules_to_save=tuple(lora.modules_to_save),
        **given(lora, rank="rank", alpha="alpha", dropout="dropout"),
    )


def _qlora(qlora: pb.QloraMethod) -> LoraSettings:
    if qlora.lora.modules_to_save:
        raise InvalidField.one(
            "spec.qlora.lora.modules_to_save", "is set; modules of a quantized base cannot train whole"
        )
    return _lora(qlora.lora, "spec.qlora.lora")


def _lora_to_proto(lora: LoraSettings) -> pb.LoraMethod:
    return pb.LoraMethod(**lora.model_dump(exclude_none=True))


def _ia3(ia3: pb.Ia3Method) -> Ia3Settings:
    return checked(
        "spec.ia3",
        Ia3Settings,
        target_modules=tuple(ia3.target_modules),
        feedforward_modules=tuple(ia3.feedforward_modules) or None,
        modules_to_save=tuple(ia3.modules_to_save),
    )


def _bottleneck(bottleneck: pb.BottleneckMethod) -> BottleneckSettings:
    placement = enum_name(
        pb.BottleneckPlacement,
        bottleneck.placement,
        "BOTTLENECK_PLACEMENT_",
        "spec.bottleneck.placement",
    )
    activation = enum_name(
        pb.BottleneckActivation,
        bottleneck.activation,
        "BOTTLENECK_ACTIVATION_",
        "spec.bottleneck.activation",
    )
    return checked(
        "spec.bottleneck",
        BottleneckSettings,
        target_modules=tuple(bottleneck.target_modules),
        **{key: name for key, name in (("placement", placement), ("activation", activation)) if name},
        **given(bottleneck, reduction_factor="reduction_factor", width="width", scaling="scaling"),
    )


def _bottleneck_to_proto(bottleneck: BottleneckSettings) -> pb.BottleneckMethod:
    fields = bottleneck.model_dump(exclude={"placement", "activation"}, exclude_none=True)
    return pb.BottleneckMethod(
        **fields,
        placement=f"BOTTLENECK_PLACEMENT_{bottleneck.placement}",
        activation=f"BOTTLENECK_ACTIVATION_{bottleneck.activation}",
    )


def _layers(layers: pb.LayersMethod) -> LayersSettings:
    return checked(
        "spec.layers",
        LayersSettings,
        layers=tuple(layers.layers),
        modules=tuple(layers.modules),
        **given(layers, last="last"),
    )


def _head_to_proto(head: HeadSettings) -> pb.HeadMethod:
    return pb.HeadMethod(pooling=f"POOLING_{head.pooling}" if head.pooling else None)


_READ: Mapping[Method, Callable[[Any], Any]] = {
    Method.HEAD: _head,
    Method.LORA: _lora,
    Method.QLORA: _qlora,
    Method.IA3: _ia3,
    Method.BOTTLENECK: _bottleneck,
    Method.LAYERS: _layers,
    Method.FULL: lambda _: FullSettings(),
}
_WRITE: Mapping[Method, Callable[[Any], Any]] = {
    Method.HEAD: _head_to_proto,
    Method.LORA: _lora_to_proto,
    Method.QLORA: lambda lora: pb.QloraMethod(lora=_lora_to_proto(lora)),
    Method.IA3: lambda ia3: pb.Ia3Method(**ia3.model_dump(exclude_none=True)),
    Method.BOTTLENECK: _bottleneck_to_proto,
    Method.LAYERS: lambda layers: pb.LayersMethod(**layers.model_dump(exclude_none=True)),
    Method.FULL: lambda _: pb.FullMethod(),
}
