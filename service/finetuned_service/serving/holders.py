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
class Pinned:
    """Weights that a tenant keeps in memory."""

    digest: str
    tenant: str
    tier: Residency
    size_bytes: int


@dataclasses.dataclass(slots=True, eq=False)
class Claim:
    """A tenant's call that loads the weights of a digest and is not answered yet."""

    digest: str
    tenant: str
    pinned: Pinned | None
    """Where it keeps them, unless a later call of the tenant has said otherwise."""


class Holders:
    """By digest: the tenants that have brought weights into memory, and where some keep them."""

    def __init__(self) -> None:
        self._users: dict[str, set[str]] = {}
        self._pins: dict[str, dict[str, Pinned]] = {}
        """By tenant, of calls that the engine has answered."""
        self._claims: dict[str, list[Claim]] = {}
        """In the order of the calls."""
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

    def claim(self, digest: str, tenant: str, pinned: Pinned | None = None) -> Claim:
        """Note a call before the engine is asked: another tenant's call meanwhile must not undo its pin. `grant` or
        `refuse` it afterwards.
        """
        claim = Claim(digest, tenant, pinned)
        self._claims.setdefault(digest, []).append(claim)
        return claim

    def grant(self, claim: Claim) -> None:
        """The engine has done it; nothing is noted if the tenant has left the weights meanwhile."""
        claims = self._claims.get(claim.digest, [])
        if claim not in claims:
            return
        self.used(claim.digest, claim.tenant)
        if claim.pinned is not None:
            self._pins.setdefault(claim.digest, {})[claim.tenant] = claim.pinned
            for earlier in claims[: claims.index(claim)]:
                if earlier.tenant == claim.tenant:
                    earlier.pinned = None
        self.refuse(claim)

    def refuse(self, claim: Claim) -> None:
        """The engine has not done it: what the tenant's other calls, before it and meanwhile, have pinned stays."""
        claims = self._claims.get(claim.digest, [])
        if claim in claims:
            claims.remove(claim)
        if not claims:
            self._claims.pop(claim.digest, None)

    def unpin(self, digest: str, tenant: str) -> None:
        """Note that the tenant's calls until now keep the weights nowhere."""
        pins = self._pins.get(digest, {})
        pins.pop(tenant, None)
        if not pins:
            self._pins.pop(digest, None)
        for claim in self._claims_of(digest, tenant):
            claim.pinned = None

    def leave(self, digest: str, tenant: str) -> None:
        """Note that the tenant wants the weights out of memory."""
        self.unpin(digest, tenant)
        for claim in self._claims_of(digest, tenant):
            self.refuse(claim)
        users = self._users.get(digest, set())
        users.discard(tenant)
        if not users:
            self._users.pop(digest, None)

    def forget(self, digest: str) -> None:
        """The weights are gone from the store."""
        self._users.pop(digest, None)
        self._pins.pop(digest, None)
        self._claims.pop(digest, None)

    def lose_pins(self, digest: str) -> None:
        """A new engine has not got the weights and never will; calls that are not answered yet hear so themselves."""
        self._pins.pop(digest, None)

    def pinned(self, digest: str) -> Residency:
        """The highest tier at which anybody keeps the weights; STORED if nobody does."""
        tiers = [pinned.tier for pinned in self._pins_of(digest).values()]
        return max(tiers, key=_TIERS.index, default=Residency.STORED)

    def all_pinned(self) -> list[Pinned]:
        """What each tenant keeps in memory."""
        digests = {*self._pins, *self._claims}
        return [pinned for digest in digests for pinned in self._pins_of(digest).values()]

    def wanted(self) -> set[str]:
        """Digests of what is pinned or about to be; may be asked by any thread."""
        # A dictionary is copied in one go, whatever its owner does meanwhile.
        return {*list(self._pins), *list(self._claims)}

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
                pinned = adapter.pinned and tenant in self._pins_of(digest)
                return dataclasses.replace(adapter, pinned=pinned, running_sequences=running)
        return None

    def _pins_of(self, digest: str) -> dict[str, Pinned]:
        """By tenant, also of calls that are not answered yet."""
        claimed = {claim.tenant: claim.pinned for claim in self._claims.get(digest, []) if claim.pinned}
        return self._pins.get(digest, {}) | claimed

    def _claims_of(self, digest: str, tenant: str) -> list[Claim]:
        return [claim for claim in self._claims.get(digest, []) if claim.tenant == tenant]
