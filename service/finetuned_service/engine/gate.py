"""What the scheduler needs of residency: adapters held while their sequences run. No torch."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from finetuned_service.engine.messages import AdapterHandle


class Readiness(Enum):
    """The answer to an attempt to hold an adapter."""

    READY = auto()
    """Held and in the serving layout."""
    LOADING = auto()
    """On its way; ask again."""
    NO_MEMORY = auto()
    """It would fit, but what is there is in use."""


class AdapterGate(Protocol):
    """What the scheduler needs of `residency.py`."""

    def begin_pass(self) -> None:
        """A pass over the queue begins; what it asks for first is not taken away for what it asks later."""
        ...

    def try_hold(self, handle: AdapterHandle) -> Readiness:
        """Hold the adapter if it is ready; else begin to make it so, if there is memory for it.

        Raises:
            FinetunedError: if it can never be applied.
        """
        ...

    def prepare(self, handle: AdapterHandle) -> Readiness:
        """As `try_hold`, without holding."""
        ...

    def is_ready(self, handle: AdapterHandle) -> bool:
        """Whether `try_hold` would be READY; changes nothing."""
        ...

    def may_leave(self, handle: AdapterHandle) -> bool:
        """Whether its memory could be another's if nobody held it; not if it is pinned."""
        ...

    def release(self, handle: AdapterHandle) -> None:
        """Undo one `try_hold` that was READY."""
        ...
