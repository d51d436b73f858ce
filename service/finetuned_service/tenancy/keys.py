"""API keys: `ftk_{id}_{secret}`, of which only a hash is kept.

The secret has 160 random bits, so one SHA-256 is enough and is all that a call can afford: a slow hash
(argon2, bcrypt) defends what people choose and others can guess, and would let strangers burn our processors.
A pepper would be one more secret to keep, against guesses that nobody can make.
The prefix and the fixed alphabet are for secret scanners: `ftk_[a-z2-7]{8}_[a-z2-7]{32}`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from finetuned_service.errors import Unauthenticated
from finetuned_service.names import ID_PATTERN
from finetuned_service.tenancy.caller import Caller, Role

_ID_BYTES, _SECRET_BYTES = 5, 20
"""Multiples of five bytes: base32 needs no padding."""
_KEY = re.compile(r"ftk_([a-z2-7]{8})_[a-z2-7]{32}")
_NO_KEY_HASH = hashlib.sha256(b"no key").hexdigest()
"""Compared with where there is no such id, so that the time does not tell which ids exist."""

Tenant = Annotated[str, Field(pattern=rf"^{ID_PATTERN}$")]
MAX_KEYS = 10_000


class ApiKey(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z2-7]{8}$")
    """The public part of the key."""
    tenant: Tenant
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    """Of the whole key, in ASCII."""
    create_time: AwareDatetime
    expire_time: AwareDatetime | None = None
    """From then on the key is refused; None is never."""
    note: str = Field(default="", max_length=200)
    """Who uses it, for people."""

    def expired(self, now: datetime) -> bool:
        return self.expire_time is not None and now >= self.expire_time


class ApiKeys(BaseModel):
    """All keys of a server: the content of a keys file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    """Of this format."""
    keys: tuple[ApiKey, ...] = Field(default=(), max_length=MAX_KEYS)
    deleted_tenants: Mapping[Tenant, AwareDatetime] = Field(default_factory=dict[str, datetime])
    """Tenants whose keys are all refused, and since when."""

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        if len(self._by_id) < len(self.keys):
            raise ValueError("two keys have the same id; remove one")
        return self

    @cached_property
    def _by_id(self) -> Mapping[str, ApiKey]:
        return {key.id: key for key in self.keys}

    def find(self, key_id: str) -> ApiKey | None:
        return self._by_id.get(key_id)

    def caller(self, presented: str, now: datetime) -> Caller:
        """Whose key this is.

        Only who holds a key's secret learns why it is refused; to all others a wrong secret and an unknown
        id are the same.

        Raises:
            Unauthenticated: the key is malformed, unknown, expired, or of a deleted tenant.
        """
        form = _KEY.fullmatch(presented)
        if form is None:
            raise Unauthenticated(
                "the API key is not of the form ftk_…; check what FINETUNED_API_KEY holds",
                metadata={"problem": "MALFORMED"},
            )
        key = self.find(form.group(1))
        same = hmac.compare_digest(_sha256(presented), _NO_KEY_HASH if key is None else key.sha256)
        if key is None or not same:
            raise Unauthenticated(
                "the API key is not one of this server's: it is wrong, or revoked; ask the operator for another",
                metadata={"problem": "UNKNOWN"},
            )
        if key.tenant in self.deleted_tenants:
            raise Unauthenticated(
                f"the tenant {key.tenant!r} of API key {key.id} was deleted at "
                f"{_told(self.deleted_tenants[key.tenant])}; ask the operator for a key of another",
                metadata={"problem": "TENANT_DELETED"},
            )
        if key.expire_time is not None and key.expired(now):
            raise Unauthenticated(
                f"API key {key.id} expired at {_told(key.expire_time)}; ask the operator for another",
                metadata={"problem": "EXPIRED"},
            )
        return Caller(key.tenant, key.role, key.id)


def new_key(
    tenant: str, role: Role, *, now: datetime, expire_time: datetime | None, note: str
) -> tuple[str, ApiKey]:
    """A fresh key as its user must keep it, shown once, and what is kept of it.

    Raises:
        pydantic.ValidationError: the tenant or the note is not allowed.
    """
    key_id = _base32(_ID_BYTES)
    text = f"ftk_{key_id}_{_base32(_SECRET_BYTES)}"
    kept = ApiKey(
        id=key_id,
        tenant=tenant,
        role=role,
        sha256=_sha256(text),
        create_time=now,
        expire_time=expire_time,
        note=note,
    )
    return text, kept


def _base32(size_bytes: int) -> str:
    return base64.b32encode(secrets.token_bytes(size_bytes)).decode().lower()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _told(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
