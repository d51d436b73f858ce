"""Conversion: nothing of the contract is lost on the way to a value, and newer servers do no harm."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, get_args, get_type_hints

import pytest
from finetuned import (
    Adapter,
    AdapterVersion,
    Alias,
    Base,
    Bottleneck,
    BottleneckActivation,
    Dataset,
    Ia3,
    Job,
    JobEvent,
    JobState,
    Layers,
    LearningRateSchedule,
    Lora,
    Optimization,
    ServerInfo,
    TenantUsage,
)
from finetuned import _convert as convert
from finetuned.v1 import (
    adapter_service_pb2,
    base_service_pb2,
    dataset_service_pb2,
    job_pb2,
    serving_service_pb2,
    tenant_service_pb2,
)
from finetuned.values.jobs import DataReport, Estimate, EstimateBasis, JobError
from finetuned.values.replies import ServeEvent
from finetuned.values.specs import DataOptions, EvaluationOptions, PromoteIf, QuantizeSpec, TrainSpec
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.message import Message

PAIRS: list[tuple[type[Message], type]] = [
    (job_pb2.Job, Job),
    (job_pb2.JobEvent, JobEvent),
    (dataset_service_pb2.Dataset, Dataset),
    (base_service_pb2.Base, Base),
    (adapter_service_pb2.Adapter, Adapter),
    (adapter_service_pb2.AdapterVersion, AdapterVersion),
    (adapter_service_pb2.Alias, Alias),
    (serving_service_pb2.GetServerInfoResponse, ServerInfo),
    (tenant_service_pb2.TenantUsage, TenantUsage),
    (serving_service_pb2.ServeAdapterResponse, ServeEvent),
]
LATER: dict[str, set[str]] = {}
"""Fields that no server of this build sets."""


def parts(hint: Any) -> Iterator[Any]:
    """The classes inside `X | None`, `tuple[X, ...]` and X."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        yield hint
    for inner in get_args(hint):
        yield from parts(inner)


def walk(descriptor: Descriptor, kind: type) -> Iterator[tuple[Descriptor, type]]:
    """Every message below `descriptor` with the value it is read into."""
    yield descriptor, kind
    for name, hint in get_type_hints(kind).items():
        message = convert.field_for(descriptor, name).message_type
        for inner in parts(hint):
            if is_dataclass(inner) and message is not None:
                yield from walk(message, inner)


ALL = {
    (descriptor.name, kind): descriptor
    for pair in PAIRS
    for descriptor, kind in walk(pair[0].DESCRIPTOR, pair[1])
}


@pytest.mark.parametrize(("name", "kind"), ALL, ids=[name for name, _ in ALL])
def test_every_field_has_its_place(name: str, kind: type) -> None:
    descriptor = ALL[name, kind]
    read = {convert.field_for(descriptor, item.name).name for item in fields(kind)}
    assert read | LATER.get(name, set()) == set(descriptor.fields_by_name)
    assert not read & LATER.get(name, set())


def enums() -> dict[str, tuple[EnumDescriptor, type[StrEnum]]]:
    found = {}
    for (_, kind), descriptor in ALL.items():
        for name, hint in get_type_hints(kind).items():
            field = convert.field_for(descriptor, name)
            for inner in parts(hint):
                if field.enum_type is not None and issubclass(inner, StrEnum):
                    found[field.enum_type.name] = (field.enum_type, inner)
    return found


@pytest.mark.parametrize("name", enums())
def test_every_value_of_an_enum_has_its_member(name: str) -> None:
    descriptor, kind = enums()[name]
    members = {member for member in kind.__members__ if member != "UNKNOWN"}
    unspecified = descriptor.values_by_number[0].name
    prefix = unspecified.removesuffix("UNSPECIFIED")
    assert {prefix + member for member in members} == set(descriptor.values_by_name) - {unspecified}
    for member in members:
        assert convert.enum_name(descriptor, kind[member]) == prefix + member
    assert convert.enum_name(descriptor, kind["UNKNOWN"]) == unspecified


def test_scalars_times_and_durations() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    message = job_pb2.Estimate(steps=3, tokens=4, memory_bytes=5, memory_budget_bytes=8)
    assert convert.read(message, Estimate) == Estimate(3, 4, 5, None, EstimateBasis.UNKNOWN, 0, 0, 8, 0, 0)
    message.duration.FromTimedelta(timedelta(seconds=1.5))
    assert convert.read(message, Estimate).duration_seconds == 1.5
    event = job_pb2.JobEvent(number=7)
    assert convert.read(event, JobEvent) == JobEvent(7, None)
    event.time.FromDatetime(moment)
    assert convert.read(event, JobEvent).time == moment


def test_optional_scalars_tell_absent_from_zero() -> None:
    assert convert.read(job_pb2.Checkpoint(step=1), _value_of("Checkpoint")).eval_loss is None
    assert convert.read(job_pb2.Checkpoint(step=1, eval_loss=0.0), _value_of("Checkpoint")).eval_loss == 0.0


def _value_of(name: str) -> Any:
    return next(kind for message, kind in ALL if message == name)


def test_maps_and_nested_lists() -> None:
    error = job_pb2.Job().error
    error.metadata["a"] = "b"
    error.violations.add(field="line 1", description="is wrong")
    read = convert.read(error, JobError)
    assert read.metadata == {"a": "b"}
    assert [(item.field, item.description) for item in read.violations] == [("line 1", "is wrong")]


def test_absent_messages_are_none() -> None:
    job = convert.read(job_pb2.Job(name="j"), Job)
    assert (job.train, job.quantize, job.environment, job.error, job.train_result) == (None,) * 5
    assert job.state is JobState.UNKNOWN
    assert convert.read(job_pb2.DataReport(train_rows=1), DataReport).train_rows == 1


def test_what_a_newer_server_sends_is_unknown_not_an_error() -> None:
    raw = job_pb2.Job(name="j").SerializeToString() + b"\x18\x63"  # field 3 (state) is 99
    job = convert.read(job_pb2.Job.FromString(raw), Job)
    assert job.state is JobState.UNKNOWN
    assert not job.state.final
    new_kind = job_pb2.JobEvent.FromString(b"\x08\x01" + b"\xaa\x06\x00")  # field 101: a kind to come
    event = convert.read(new_kind, JobEvent)
    assert event.body is None
    assert not event.final


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Lora(rank=1, target_modules=("q", "k")), job_pb2.LoraMethod),
        (Lora(rank_pattern={"q": 2}, alpha_pattern={"k": 0.5}), job_pb2.LoraMethod),
        (Ia3(target_modules=("q", "k"), feedforward_modules=("k",)), job_pb2.Ia3Method),
        (Bottleneck(width=3, activation=BottleneckActivation.SILU), job_pb2.BottleneckMethod),
        (Layers(last=2, layers=(0, 3), modules=("model.norm",)), job_pb2.LayersMethod),
        (Optimization(epochs=0.5, seed=0, schedule=LearningRateSchedule.CONSTANT), job_pb2.Optimization),
        (DataOptions(holdout_fraction=0.0), job_pb2.DataOptions),
        (EvaluationOptions(), job_pb2.EvaluationOptions),
        (PromoteIf(alias="prod", minimum=0.0), job_pb2.PromoteIf),
    ],
)
def test_settings_come_back_as_they_were_sent(value: Any, message: type[Message]) -> None:
    assert convert.read(convert.write(value, message), type(value)) == value


def test_none_is_not_sent() -> None:
    assert convert.write(Optimization(), job_pb2.Optimization).ListFields() == []


def test_specs_name_every_setting_of_the_contract() -> None:
    # What `client.train` can send is what TrainSpec can hold.
    assert {("TrainSpec", TrainSpec), ("QuantizeSpec", QuantizeSpec)} <= set(ALL)
