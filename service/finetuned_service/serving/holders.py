"""Which tenants hold which weights in memory.

Equal content of two tenants is one in the engine, which knows digests only. Here they are told apart again:
nobody learns from the residency of a version of theirs that another tenant has the same weights, and nobody
unpins or unloads what another has pinned. One replica, like the engine it describes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from finetuned_service.engine.messages import AdapterResidency, Residency

_TIERS = (Residency.STORED, Residency.HOST, Residency.DEVICE)
"""From the lowest up."""


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """One tenant and the weights of one digest."""

    used: bool
    """Its calls have brought them into memory."""
    pinned: Residency | None


class Holders:
    """By digest: the tenants that have brought weights into memory, and where some keep them."""

    def __init__(self) -> None:
        self._users: dict[str, set[str]] = {}
        self._pins: dict[str, dict[str, Residency]] = {}
        self._running: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def running(self, digest: str, tenant: str, sequences: int) -> Generator[None]:
        """Around the sequences that a tenant's call runs with the weights."""
        self._running[digest, tenant] += sequences
        try:
            yield
        finally:
            self._running[digest, tenant] -= sequences
            if not self._running[digest, tenant]:
                del self._running[digest, tenant]

    def used(self, digest: str, tenant: str) -> None:
        """Note that a tenant's call brings the weights into memory."""
        self._users.setdefault(digest, set()).add(tenant)

    def held_by(self, digest: str, tenant: str) -> Held:
        """What is noted of a tenant and the weights."""
        used = tenant in self._users.get(digest, ())
        return Held(used, self._pins.get(digest, {}).get(tenant))

    def restore(self, digest: str, tenant: str, before: Held) -> None:
        """Note what `held_by` told before a call that was refused."""
        self.leave(digest, tenant)
        if before.used:
            self.used(digest, tenant)
        if before.pinned is not None:
            self.pin(digest, tenant, before.pinned)

    def pin(self, digest: str, tenant: str, tier: Residency) -> None:
        self._pins.setdefault(digest, {})[tenant] = tier

    def unpin(self, digest: str, tenant: str) -> None:
        pins = self._pins.get(digest, {})
        pins.pop(tenant, None)
        if not pins:
            self._pins.pop(digest, None)

    def leave(self, digest: str, tenant: str) -> None:
        """Note that the tenant wants the weights out of memory."""
        self.unpin(digest, tenant)
        users = self._users.get(digest, set())
        users.discard(tenant)
        if not users:
            self._users.pop(digest, None)

    def forget(self, digest: str) -> None:
        """The weights are gone from the store."""
        self._users.pop(digest, None)
        self._pins.pop(digest, None)

    def pinned(self, digest: str) -> Residency:
        """The highest tier at which anybody keeps the weights; STORED if nobody does."""
        return max(self._pins.get(digest, {}).values(), key=_TIERS.index, default=Residency.STORED)

    def at_least(self, digest: str, tier: Residency) -> tuple[Residency, bool]:
        """What the engine is to do so that one tenant has `tier` and all others what they pinned: tier, pinned."""
        kept = self.pinned(digest)
        return max(tier, kept, key=_TIERS.index), kept is not Residency.STORED

    def used_by(self, tenant: str, found: Iterable[AdapterResidency]) -> list[str]:
        """Digests of what is in memory, as far as this tenant has brought it there."""
        return [adapter.digest for adapter in found if tenant in self._users.get(adapter.digest, ())]

    def seen_by(self, tenant: str, digest: str, found: Iterable[AdapterResidency]) -> AdapterResidency | None:
        """Where the weights are, as far as this tenant has brought them there; None is STORED."""
        if tenant not in self._users.get(digest, ()):
            return None
        running = self._running.get((digest, tenant), 0)
        for adapter in found:
            if adapter.digest == digest:
                # An engine that was started anew may not have room for it again yet.
                pinned = adapter.pinned and tenant in self._pins.get(digest, {})
                return dataclasses.replace(adapter, pinned=pinned, running_sequences=running)
        return None
