"""Calls that bring adapters to a tier: each is answered when its adapter is there, or cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetuned_service.engine.gate import Readiness
from finetuned_service.engine.memory import Loaded
from finetuned_service.engine.messages import Answer, Residency, SetResidency, Snapshot
from finetuned_service.engine.residency import ResidencyManager
from finetuned_service.errors import FinetunedError, ResourceExhausted


class ResidencyCalls:
    """Those that wait for a load; all methods belong to the engine's thread.

    Args:
        residency: what the calls are about.
        snapshot: what an answer tells.
    """

    def __init__(self, residency: ResidencyManager[Any, Any], snapshot: Callable[[], Snapshot]) -> None:
        self._residency = residency
        self._snapshot = snapshot
        self._waiting: list[SetResidency] = []

    def take(self, call: SetResidency) -> list[Answer]:
        """Begin a call; no answer while its adapter is on its way. Those that wait for the same adapter give way to it."""
        self._waiting = [
            earlier.after(call) if earlier.adapter.digest == call.adapter.digest else earlier
            for earlier in self._waiting
        ]
        return self._try(call)

    def _try(self, call: SetResidency) -> list[Answer]:
        try:
            readiness = self._residency.set_residency(
                call.adapter, call.residency, pinned=call.pinned, kept=call.kept, lowers=call.lowers
            )
        except FinetunedError as error:
            return [Answer(call.call_id, None, error.to_wire())]
        match readiness:
            case Readiness.READY:
                return [Answer(call.call_id, self._snapshot())]
            case Readiness.LOADING:
                self._waiting.append(call)
                return []
            case Readiness.NO_MEMORY:
                self._residency.unpin(call.adapter)
                error = ResourceExhausted(
                    f"running sequences use the memory that adapter {call.adapter.digest} needs; try again",
                    retry_after_seconds=1.0,
                )
                return [Answer(call.call_id, None, error.to_wire())]

    def loaded(self, loaded: Loaded[Any]) -> list[Answer]:
        """Go on with the calls that waited for this adapter, after `ResidencyManager.finish`."""
        waiting, self._waiting = self._waiting, []
        answers: list[Answer] = []
        for call in waiting:
            if call.adapter.digest != loaded.digest:
                self._waiting.append(call)
            elif loaded.error is not None:
                answers.append(Answer(call.call_id, None, loaded.error.to_wire()))
            elif call.residency is Residency.STORED:
                # A later call freed it; a load after that is not to be undone.
                answers.append(Answer(call.call_id, self._snapshot()))
            else:
                answers += self._try(call)
        return answers
