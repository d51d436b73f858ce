"""Limits on what a tenant does at the moment: calls a second, and streams at the same time.

Counted in the memory of this replica and for it alone: behind N replicas a tenant may do up to N times as
much. Used from one event loop, so no call comes in between.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager

from finetuned_service.tenancy.limits import Limit, LimitsOf, LimitUse, refusal, refuse_above

_MANY_TENANTS = 1_000


class Traffic:
    """The calls of all tenants on this replica; `clock` tells seconds that only rise."""

    def __init__(self, limits_of: LimitsOf, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits_of = limits_of
        self._clock = clock
        self._streams: Counter[str] = Counter()
        self._paid_until: dict[str, float] = {}
        """Until when the calls so far use up the rate of a tenant; a call moves it by 1 / rate seconds."""

    def admit_call(self, tenant: str) -> None:
        """Count a call: as many a second as allowed, and as many at once after a second of rest.

        A token bucket in the form that keeps one time instead of a level ("generic cell rate algorithm",
        ITU-T I.371, annex A).

        Raises:
            QuotaExceeded: telling after how many seconds the next call fits.
        """
        use, now = self._calls(tenant), self._clock()
        begin = max(now, self._paid_until.get(tenant, now))
        wait_seconds = begin + 1 / use.allowed - (now + 1.0)
        # Adding up 1 / rate is not exact; a call must not be refused for a billionth of a second.
        if wait_seconds > 1e-9:
            raise refusal(tenant, use, 1, wait_seconds)
        if tenant not in self._paid_until and len(self._paid_until) >= _MANY_TENANTS:
            self._forget_rested(now)
        self._paid_until[tenant] = begin + 1 / use.allowed

    @contextmanager
    def stream(self, tenant: str) -> Generator[None]:
        """Count a stream until the block ends, however it ends.

        Raises:
            QuotaExceeded: as many as allowed are open.
        """
        refuse_above(tenant, self._open_streams(tenant), 1)
        self._streams[tenant] += 1
        try:
            yield
        finally:
            self._streams[tenant] -= 1
            if not self._streams[tenant]:
                del self._streams[tenant]

    def usage(self, tenant: str) -> list[LimitUse]:
        """What a tenant does now on this replica."""
        return [self._open_streams(tenant), self._calls(tenant)]

    def _open_streams(self, tenant: str) -> LimitUse:
        return LimitUse(Limit.STREAMS, self._streams[tenant], self._limits_of(tenant).streams)

    def _calls(self, tenant: str) -> LimitUse:
        allowed = self._limits_of(tenant).requests_per_second
        ahead_seconds = max(0.0, self._paid_until.get(tenant, 0.0) - self._clock())
        return LimitUse(Limit.REQUESTS_PER_SECOND, math.ceil(ahead_seconds * allowed - 1e-6), allowed)

    def _forget_rested(self, now: float) -> None:
        """Anybody may name a tenant that does not exist; what is remembered of it must not stay."""
        self._paid_until = {tenant: until for tenant, until in self._paid_until.items() if until > now}
