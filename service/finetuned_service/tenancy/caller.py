"""Who makes the call that runs now, and what they may name and do.

A `user` names and changes what belongs to its own tenant, and reads what is shared. An `admin` does so for
any tenant, and deletes what is shared; its own tenant is only what its short names mean.

Set once, by `rpc/interceptor.py`, before a call is looked at; read by whatever runs for that call, in its
task or in a thread of `asyncio.to_thread`.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from finetuned_service.errors import NotFound, PermissionDenied
from finetuned_service.names import tenant_part


class Role(StrEnum):
    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller, however it was authenticated."""

    tenant: str
    role: Role
    key_id: str = ""
    """Public part of the API key; empty where no key was asked for."""

    def check_name(self, name: str) -> None:
        """Refuse a name that is not the caller's, before anything is looked up.

        The refusal is that of a resource which does not exist, to the byte: nobody learns, from it or from
        the time that it takes, what other tenants have.

        Raises:
            NotFound: the name has another tenant's, and the caller is no admin.
        """
        tenant = tenant_part(name)
        if self.role is not Role.ADMIN and tenant is not None and tenant != self.tenant:
            # Of what lies below a resource, that one is what is not there: tenants/a/adapters/b/versions/1.
            raise NotFound.resource("/".join(name.split("/")[:4]))

    def check_admin(self, what: str) -> None:
        """Refuse what changes something for all tenants.

        Args:
            what: what only an admin may do, as the beginning of a sentence.

        Raises:
            PermissionDenied: the caller is no admin.
        """
        if self.role is not Role.ADMIN:
            raise PermissionDenied(
                f"{what} needs the role admin; your key has the role {self.role}. Ask the operator",
                metadata={"role": self.role, "needed_role": Role.ADMIN},
            )


EMBEDDED = Caller("default", Role.ADMIN)
"""Whoever reaches a server that asks for no credentials."""

_current: ContextVar[Caller] = ContextVar("caller")


def set_caller(caller: Caller) -> None:
    """Say who makes the call of this task; each call has a task of its own."""
    _current.set(caller)


def current_caller() -> Caller:
    """Who makes the call that runs now.

    Raises:
        LookupError: no call runs here (a job, the sweeper): a fault of ours.
    """
    return _current.get()
