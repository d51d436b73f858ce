"""Where calls want adapters to be; what an engine is told again that was started anew. asyncio, torch-free."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import final

import structlog

from finetuned_service.engine.messages import Residency, SetResidency, Snapshot
from finetuned_service.errors import FinetunedError, ResourceExhausted, Unavailable

_log = structlog.get_logger()

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0


@final
class Desires:
    """One for each adapter that is to be in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, SetResidency] = {}
        """By digest, the one that was asked for last at the end."""
        self._under_way: dict[int, SetResidency] = {}
        """By call id, as later calls left them."""
        self.lost: Callable[[str], None] = lambda _: None
        """Told the digest of what was pinned and a new engine refuses for good."""

    def __iter__(self) -> Iterator[SetResidency]:
        return iter(self._kept.values())

    async def during(self, call: SetResidency, answer: Awaitable[Snapshot]) -> Snapshot:
        """The answer to a call; unless it is a refusal, its desire is kept, also if nobody waits for it any more. To want
        less is kept in any case: an engine that is not there is not told by the next one.

        Raises:
            FinetunedError: the refusal.
        """
        for call_id, earlier in self._under_way.items():
            if earlier.adapter.digest == call.adapter.digest:
                self._under_way[call_id] = earlier.after(call)
        self._under_way[call.call_id] = call
        refused = False
        try:
            return await answer
        except FinetunedError:
            refused = True
            raise
        finally:
            desire = self._under_way.pop(call.call_id)
            freed = desire.residency is not call.residency  # by a later call, which says so itself
            if not freed and (not refused or desire.lowers or desire.residency is Residency.STORED):
                self._keep(desire)

    async def restore(self, place: Callable[[SetResidency], Awaitable[object]]) -> None:
        """Tell a new engine of all: first of what is pinned, again and again until it is there; then of the rest, once.

        Args:
            place: tells it of one; raises FinetunedError for its refusal.
        """
        pinned = [desire for desire in self if desire.pinned]
        pause_seconds = _FIRST_PAUSE_SECONDS
        # All at once: no request that comes now is to take the memory before them.
        while pinned := await self._unplaced(pinned, place):
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
        for desire in [desire for desire in self if not desire.pinned]:
            # The last one comes last: where there is no room for all, it is the one that stays.
            if await self._unplaced([desire], place):
                self._forget(desire)

    async def _unplaced(
        self, desires: list[SetResidency], place: Callable[[SetResidency], Awaitable[object]]
    ) -> list[SetResidency]:
        """Those of the desires that found no room and are still wanted."""
        refused = await asyncio.gather(*(self._is_unplaced(desire, place) for desire in desires))
        return [desire for desire, again in zip(desires, refused, strict=True) if again]

    async def _is_unplaced(
        self, desire: SetResidency, place: Callable[[SetResidency], Awaitable[object]]
    ) -> bool:
        if not self._is_kept(desire):
            return False
        if self._is_asked(desire):
            # That call is the later word; should it be refused, this one is tried again.
            return desire.pinned
        try:
            await place(desire)
        except FinetunedError as error:
            digest, pinned = desire.adapter.digest, desire.pinned
            _log.warning(
                "engine_residency_not_restored", adapter_digest=digest, pinned=pinned, reason=error.reason
            )
            if isinstance(error, ResourceExhausted | Unavailable):
                return self._is_kept(desire)
            self._forget(desire)
        return False

    def _keep(self, desire: SetResidency) -> None:
        earlier = self._kept.pop(desire.adapter.digest, None)
        if desire.residency is Residency.STORED or (desire.lowers and earlier is None):
            return
        if desire.lowers and earlier is not None and desire.residency is Residency.DEVICE:
            desire = replace(desire, residency=earlier.residency)
        # What was wanted in memory, and now lower down, is to be there in a new engine too.
        self._kept[desire.adapter.digest] = replace(desire, lowers=False)

    def _is_kept(self, desire: SetResidency) -> bool:
        """Whether no later call for the same adapter has come."""
        return self._kept.get(desire.adapter.digest) is desire

    def _is_asked(self, desire: SetResidency) -> bool:
        """Whether a call for the same adapter is under way."""
        return any(call.adapter.digest == desire.adapter.digest for call in self._under_way.values())

    def _forget(self, desire: SetResidency) -> None:
        if self._is_kept(desire):
            del self._kept[desire.adapter.digest]
            if desire.pinned:
                self.lost(desire.adapter.digest)
