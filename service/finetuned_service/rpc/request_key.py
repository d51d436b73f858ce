"""The idempotency key of a creating call."""

from __future__ import annotations

from google.protobuf.message import Message

from finetuned_service.storage.idempotency import RequestKey


def request_key(tenant: str, request: Message, *others: Message) -> RequestKey:
    """The request's id with a fingerprint of all its other fields, and of what else the call is made of."""
    request_id = str(getattr(request, "request_id"))  # noqa: B009 - every creating request has it
    body = type(request)()
    body.CopyFrom(request)
    body.ClearField("request_id")
    named = type(request).DESCRIPTOR.full_name.encode() + b"\0"
    return RequestKey.of(
        tenant, request_id, named + b"".join(m.SerializeToString(deterministic=True) for m in (body, *others))
    )
