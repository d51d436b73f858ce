"""How many requests of each tenant are on their way, and how many may be. Pure logic, no torch.

The threshold moves with what is free (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory
packet switches", IEEE/ACM Transactions on Networking 6(2), 1998): a tenant may have as many as a fixed multiple
of the free places. So nobody fills the queue, some places are always free for one that comes new, and a tenant
that is alone has the use of nearly all.
"""

from __future__ import annotations

from collections import Counter

from finetuned_service.errors import QueueFull


class QueuePlaces:
    """Places in the batch and in the queue, of all tenants together."""

    def __init__(self, *, running: int, queued: int, share: float) -> None:
        """Args: running, queued: how many there are; share: of them, how many a tenant may have that is alone, above 0 to 1."""
        self._running = running
        self._most = running + queued
        self._per_free = share / (1 - share) if share < 1 else float("inf")
        self._taken: Counter[str] = Counter()
        self._total = 0

    def take(self, tenant: str) -> None:
        """One more request of a tenant.

        Raises:
            QueueFull: no place is free, or those that are, are for others; nothing is taken.
        """
        free = self._most - self._total
        if free <= 0:
            raise QueueFull(
                f"{self._most} requests are running or queued, the most this server takes; try again",
                metadata={"limit": str(self._most)},
                retry_after_seconds=1.0,
            )
        own = self._taken[tenant]
        # While places in the batch are free nobody waits, and nobody is in anybody's way.
        if self._total >= self._running and own >= self._per_free * free:
            raise QueueFull(
                f"tenants/{tenant} has {own} of the {self._total} requests that are running or queued; the other "
                f"{free} places are for other tenants. Try again when some have ended",
                metadata={"limit": str(self._most), "subject": f"tenants/{tenant}", "used": str(own)},
                retry_after_seconds=1.0,
            )
        self._taken[tenant] += 1
        self._total += 1

    def give_back(self, tenant: str) -> None:
        """One request of a tenant has ended."""
        self._total -= 1
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]
