"""Where calls want adapters to be; what an engine is told again that was started anew. asyncio, torch-free."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import final

from finetuned_service.engine.messages import Residency, SetResidency, Snapshot
from finetuned_service.errors import FinetunedError


@final
class Desires:
    """One for each adapter that is to be in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, SetResidency] = {}
        """By digest."""
        self._under_way: dict[int, SetResidency] = {}
        """By call id, as later calls left them."""

    def __iter__(self) -> Iterator[SetResidency]:
        return iter(self._kept.values())

    async def during(self, call: SetResidency, answer: Awaitable[Snapshot]) -> Snapshot:
        """The answer to a call; unless it is a refusal, its desire is kept, also if nobody waits for it any more.

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
            if not refused:
                self._keep(desire)

    def _keep(self, desire: SetResidency) -> None:
        if desire.residency is Residency.STORED:
            self._kept.pop(desire.adapter.digest, None)
        else:
            self._kept[desire.adapter.digest] = desire
