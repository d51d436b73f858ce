"""Protobuf messages to the frozen values of `values/` and back; nothing else touches generated fields.

One rule for all: a value's fields have the names of the message's fields. `read` follows the type
hints of the value, `write` the descriptor of the message:

    str, int, float, bool   the scalar; `X | None` where the field has presence, None if absent
    datetime | None         google.protobuf.Timestamp, in UTC
    float `..._seconds`     google.protobuf.Duration of the name without the suffix
    StrEnum                 the member whose name follows the prefix of the protobuf enum; UNKNOWN
                            for unspecified and for numbers of a newer server; None if `X | None`
    a dataclass             a message; `X | None` gives None if it is absent
    tuple[X, ...]           a repeated field
    Mapping[str, X]         a map of scalars

A test proves that every field of every message that the service returns has its place in a value.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

_Value = TypeVar("_Value")
_Sent = TypeVar("_Sent", bound=Message)

_SECONDS = "_seconds"


def read(message: Message, kind: type[_Value]) -> _Value:
    """The value of class `kind` (a dataclass of `values/`) that `message` holds."""
    return kind(**{name: _read_field(message, field, hint) for name, field, hint in _plan(message, kind)})


@functools.cache
def _plan_of(kind: type, descriptor: Descriptor) -> tuple[tuple[str, FieldDescriptor, Any], ...]:
    hints = get_type_hints(kind)
    return tuple((name, field_for(descriptor, name), hint) for name, hint in hints.items())


def _plan(message: Message, kind: type) -> tuple[tuple[str, FieldDescriptor, Any], ...]:
    return _plan_of(kind, descriptor_of(type(message)))


def descriptor_of(kind: type[Message]) -> Descriptor:
    # The annotations name the pure Python class or the C one, which share no base.
    return cast("Descriptor", kind.DESCRIPTOR)


def field_for(descriptor: Descriptor, name: str) -> FieldDescriptor:
    """The message's field for a value's field; raises KeyError if there is none."""
    found = descriptor.fields_by_name.get(name)
    return found if found is not None else descriptor.fields_by_name[name.removesuffix(_SECONDS)]


def _read_field(message: Message, field: FieldDescriptor, hint: Any) -> object:
    value: Any = getattr(message, field.name)
    if get_origin(hint) is tuple:
        return tuple(_read_one(field, item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is Mapping:
        return dict(value)
    if isinstance(hint, UnionType):
        absent = not message.HasField(field.name) if field.has_presence else value == 0
        return None if absent else _read_one(field, value, get_args(hint)[0])
    return _read_one(field, value, hint)


def _read_one(field: FieldDescriptor, value: Any, kind: type) -> object:
    if is_dataclass(kind):
        return read(value, kind)
    if kind is datetime:
        return value.ToDatetime(UTC)
    if field.enum_type is not None and issubclass(kind, StrEnum):
        return _read_enum(field.enum_type, value, kind)
    if field.message_type is not None:
        return value.ToTimedelta().total_seconds()
    return value


def _read_enum(descriptor: EnumDescriptor, number: int, kind: type[StrEnum]) -> StrEnum:
    known = descriptor.values_by_number.get(number)
    name = known.name.removeprefix(_prefix(descriptor)) if known is not None else "UNKNOWN"
    return kind.__members__.get(name, kind.__members__["UNKNOWN"])


def _prefix(descriptor: EnumDescriptor) -> str:
    """For JobState it is "JOB_STATE_": what stands before UNSPECIFIED in the name of its zero."""
    return descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")


def write(value: object, kind: type[_Sent]) -> _Sent:
    """The message of class `kind` that holds `value`, one of the input dataclasses of `values/`."""
    return kind(**_arguments(value, descriptor_of(kind)))


def _arguments(value: Any, descriptor: Descriptor) -> dict[str, object]:
    given = {item.name: getattr(value, item.name) for item in fields(value)}
    return {
        name: _write_one(descriptor.fields_by_name[name], item)
        for name, item in given.items()
        if item is not None
    }


def _write_one(field: FieldDescriptor, value: Any) -> object:
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    if isinstance(value, tuple):
        items = cast("tuple[object, ...]", value)
        return [_write_one(field, item) for item in items]
    return value if field.message_type is None else _arguments(value, field.message_type)


def enum_name(descriptor: EnumDescriptor, member: StrEnum) -> str:
    """The name of an enum member on the wire, which constructors of messages take; UNKNOWN is its zero."""
    known = descriptor.values_by_name.get(_prefix(descriptor) + member.name)
    return (known or descriptor.values_by_number[0]).name
