"""The waiting sequences in the order of their turns: fair between tenants, then between adapters of one.

A lane is what waits of one tenant for one adapter (or for the plain base), first come, first served. Pure
logic, no torch.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from finetuned_service.engine.fairness import Rank, VirtualCounters
from finetuned_service.engine.sequence import Sequence

_MANY = 1_000
"""So many tenants, or adapters of one, are remembered before the idle ones among them are forgotten."""

Lane = OrderedDict[int, Sequence]
"""By request id, in the order of arrival."""


@dataclass(slots=True)
class _Tenant:
    lanes: dict[str, Lane] = field(default_factory=dict[str, Lane])
    """By adapter digest, "" for the plain base; none is empty."""
    adapters: VirtualCounters = field(default_factory=VirtualCounters)


class FairQueue:
    """Owns the lanes and the counters of service."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._counters = VirtualCounters()

    @property
    def waiting_tenants(self) -> int:
        return sum(1 for tenant in self._tenants.values() if tenant.lanes)

    def add(self, sequence: Sequence) -> None:
        """To the end of its lane."""
        name, digest = sequence.cache_key
        if name not in self._tenants and len(self._tenants) >= _MANY:
            self._forget_idle()
        tenant = self._tenants.setdefault(name, _Tenant())
        if not tenant.lanes:
            self._counters.enter(name)
        if digest not in tenant.lanes:
            if len(tenant.adapters) >= _MANY:
                tenant.adapters.forget_caught_up()
            tenant.adapters.enter(digest)
            tenant.lanes[digest] = OrderedDict()
        tenant.lanes[digest][sequence.request_id] = sequence

    def remove(self, sequence: Sequence) -> bool:
        """Out of its lane, wherever it stands there; False if it stands in none."""
        name, digest = sequence.cache_key
        tenant = self._tenants.get(name)
        lane = tenant.lanes.get(digest) if tenant else None
        if tenant is None or lane is None or lane.pop(sequence.request_id, None) is None:
            return False
        if not lane:
            del tenant.lanes[digest]
            tenant.adapters.leave(digest)
        if not tenant.lanes:
            self._counters.leave(name)
        return True

    def take(self, sequence: Sequence, cost: int) -> None:
        """It is its turn: out of its lane, and its cost counted."""
        self.remove(sequence)
        name, digest = sequence.cache_key
        self._counters.take_turn(name, cost)
        if (tenant := self._tenants.get(name)) is not None:
            tenant.adapters.take_turn(digest, cost)

    def charge(self, sequence: Sequence, cost: int) -> None:
        """Count weighted tokens that a sequence was given; negative for what it was not."""
        name, digest = sequence.cache_key
        tenant = self._tenants.get(name)
        if tenant is not None:
            self._counters.charge(name, cost)
            tenant.adapters.charge(digest, cost)

    def turns(self) -> Iterator[Sequence]:
        """The first of each lane, least service first.

        The next of a lane comes if the one before was taken meanwhile; a lane whose first stays where it is
        comes once.
        """
        tenants = [
            (self._counters.rank(name), name) for name, tenant in self._tenants.items() if tenant.lanes
        ]
        heapq.heapify(tenants)
        lanes: dict[str, list[tuple[Rank, str]]] = {}
        while tenants:
            _, name = heapq.heappop(tenants)
            tenant = self._tenants[name]
            if name not in lanes:
                lanes[name] = [(tenant.adapters.rank(digest), digest) for digest in tenant.lanes]
                heapq.heapify(lanes[name])
            _, digest = heapq.heappop(lanes[name])
            first = next(iter(tenant.lanes[digest].values()))
            yield first
            lane = tenant.lanes.get(digest, {})
            if lane and first.request_id not in lane:
                heapq.heappush(lanes[name], (tenant.adapters.rank(digest), digest))
            if lanes[name]:
                heapq.heappush(tenants, (self._counters.rank(name), name))

    def ahead_of(self, sequence: Sequence) -> int:
        """How many that wait now have their turn before a sequence that joins, if all cost the same."""
        name, digest = sequence.cache_key
        tenant = self._tenants.get(name, _Tenant())
        own_lane = len(tenant.lanes.get(digest, ()))
        own = own_lane + sum(
            min(len(lane), own_lane) for other, lane in tenant.lanes.items() if other != digest
        )
        return own + sum(
            min(sum(map(len, other.lanes.values())), own)
            for other_name, other in self._tenants.items()
            if other_name != name
        )

    def _forget_idle(self) -> None:
        self._counters.forget_caught_up()
        self._tenants = {
            name: tenant
            for name, tenant in self._tenants.items()
            if tenant.lanes or self._counters.served(name)
        }
