"""What residency needs of the memory that adapters live in, and of the loader that moves them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from finetuned_service.engine.messages import AdapterHandle
from finetuned_service.errors import FinetunedError


class Weights(Protocol):
    """An adapter in HOST form."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def modules(self) -> int: ...


class Place(Protocol):
    """Room in the serving layout."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def shared_bytes(self) -> int:
        """How much of it is the HOST form's own memory: an adapter that is in both tiers takes that once."""
        ...


W = TypeVar("W", bound=Weights)
W_contra = TypeVar("W_contra", bound=Weights, contravariant=True)
P = TypeVar("P", bound=Place)


class Memory(Protocol[W, P]):
    """Where adapters are read from and placed. `read` and `fill` run on the loader, the rest on the engine."""

    @property
    def fills_at_once(self) -> bool:
        """What is read lies in the serving layout already: `fill` is for the engine, and takes no time."""
        ...

    def size_bytes(self, handle: AdapterHandle) -> int:
        """HOST memory to reserve while it is read, from the header of its files; what it takes is counted once it is
        there. FinetunedError if that cannot be read.
        """
        ...

    def read(self, handle: AdapterHandle) -> W:
        """The adapter in HOST form; FinetunedError if it cannot be applied in full."""
        ...

    def fits(self, weights: W) -> bool:
        """Whether it would fit if nothing else were there."""
        ...

    def plan(self, weights: W, victims: Sequence[P]) -> Sequence[P] | None:
        """The first of `victims` that must be vacated to place `weights`; None if even all are too few."""
        ...

    def place(self, weights: W) -> P:
        """Reserve room that `plan` found."""
        ...

    def fill(self, place: P, weights: W) -> None:
        """Write the weights into their room."""
        ...

    def vacate(self, place: P) -> None:
        """Free the room."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Loaded(Generic[W]):
    """What the loader did: it read an adapter (`weights`), filled its room (neither), or failed (`error`)."""

    digest: str
    seconds: float
    weights: W | None = None
    error: FinetunedError | None = None


class Loader(Protocol[W_contra]):
    """Runs one piece of work after another beside the engine; each ends in a `Loaded` for `finish`."""

    def begin(self, digest: str, work: Callable[[], W_contra | None]) -> None: ...
