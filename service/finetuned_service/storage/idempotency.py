"""`request_id`: the same creating call twice makes one resource (https://google.aip.dev/155)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from finetuned_service.errors import InvalidField, NotFound, RequestIdReused
from finetuned_service.storage.schema import requests

KEPT_SECONDS = 24 * 3600
MAX_REQUEST_ID_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A tenant's request id with a fingerprint of the call's body. An empty id asks for nothing."""

    tenant: str
    request_id: str
    fingerprint: str

    @classmethod
    def of(cls, tenant: str, request_id: str, body: bytes) -> RequestKey:
        """`body` is the deterministic serialization of the request."""
        if len(request_id) > MAX_REQUEST_ID_CHARACTERS:
            raise InvalidField.one(
                "request_id", f"has {len(request_id)} characters; allowed: {MAX_REQUEST_ID_CHARACTERS}"
            )
        return cls(tenant, request_id, hashlib.sha256(body).hexdigest())


def recall(connection: Connection, key: RequestKey, now: float) -> str | None:
    """The resource that this request made before, or None.

    Args:
        connection: a transaction; reading is enough, but only in the transaction that would also
            `remember` does the answer None last.
        key: the request.
        now: seconds since the epoch.

    Raises:
        RequestIdReused: the id came within 24 hours with another body.
    """
    row = _found(connection, key, now)
    if row is None:
        return None
    if row.fingerprint != key.fingerprint:
        raise RequestIdReused(
            f"request_id {key.request_id!r} came within 24 hours with another body, which made "
            f"{row.resource!r}; use a new id for a new request"
        )
    return str(row.resource)


def came_before(connection: Connection, key: RequestKey, now: float) -> bool:
    """Whether the id made something within 24 hours, whatever the body: whoever knows the whole body will be told
    what, or be refused, and needs nothing made for it until then.
    """
    return _found(connection, key, now) is not None


def remember(connection: Connection, key: RequestKey, resource: str, now: float) -> None:
    """Record what the request made, in the transaction that makes it; what is older than 24 hours goes."""
    if not key.request_id:
        return
    connection.execute(delete(requests).where(requests.c.create_time < now - KEPT_SECONDS))
    connection.execute(
        insert(requests).values(
            tenant=key.tenant,
            request_id=key.request_id,
            fingerprint=key.fingerprint,
            resource=resource,
            create_time=now,
        )
    )


def _found(connection: Connection, key: RequestKey, now: float) -> Row[Any, Any] | None:
    if not key.request_id:
        return None
    query = select(requests.c.fingerprint, requests.c.resource).where(
        requests.c.tenant == key.tenant,
        requests.c.request_id == key.request_id,
        requests.c.create_time >= now - KEPT_SECONDS,
    )
    return connection.execute(query).one_or_none()


def deleted_since(resource: str) -> NotFound:
    """The refusal of a repeated request whose resource is gone: repeating it must not bring it back."""
    return NotFound(
        f"this request_id made {resource!r}, which has been deleted since; use a new id to make another",
        metadata={"resource": resource},
    )
