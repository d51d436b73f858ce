"""From what a call presents to who makes it. A new kind of credentials is a new class here.

`KeysFile` (`keys_file.py`) takes API keys. Tokens of an identity provider, or the names in a client's
certificate, would be further implementations; only `Presented` grows for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from finetuned_service.tenancy.caller import EMBEDDED, Caller


@dataclass(frozen=True, slots=True)
class Presented:
    """What a call carries to show who makes it."""

    authorizations: tuple[str, ...]
    """The values of its `authorization` metadata; one is expected."""


class Authenticator(Protocol):
    """Asked once for every call, before its message is read."""

    async def authenticate(self, presented: Presented) -> Caller:
        """Who makes the call.

        Raises:
            Unauthenticated: nobody that is known.
        """
        ...


class Embedded:
    """Asks for nothing: the server of one engineer, on loopback."""

    async def authenticate(self, presented: Presented) -> Caller:
        del presented
        return EMBEDDED
