"""Adapters that are numbers of bytes, for residency: a memory of integers and a loader that is told when."""

from __future__ import annotations

from dataclasses import dataclass

from finetuned_service.engine.memory import Loaded
from finetuned_service.errors import FinetunedError, Unavailable


@dataclass(frozen=True)
class FakeWeights:
    size_bytes: int
    modules: int = 7


@dataclass(frozen=True, eq=False)
class FakePlace:
    size_bytes: int
    shared_bytes: int = 0


class FakeMemory:
    """Each adapter takes the bytes that its directory names, on the host and on the device alike."""

    def __init__(self, device_bytes, *, fills_at_once=False):
        self.device_bytes = device_bytes
        self.fills_at_once = fills_at_once
        self.places = []
        self.unreadable = {}

    def size_bytes(self, handle):
        if handle.directory == "gone":
            raise Unavailable("gone")
        return int(handle.directory)

    def read(self, handle):
        if handle.digest in self.unreadable:
            raise self.unreadable[handle.digest]
        return FakeWeights(int(handle.directory))

    def fits(self, weights):
        return weights.size_bytes <= self.device_bytes

    def plan(self, weights, victims):
        free = self.device_bytes - sum(place.size_bytes for place in self.places)
        for count in range(len(victims) + 1):
            if free + sum(v.size_bytes for v in victims[:count]) >= weights.size_bytes:
                return victims[:count]
        return None

    def place(self, weights):
        place = FakePlace(weights.size_bytes)
        self.places.append(place)
        assert sum(p.size_bytes for p in self.places) <= self.device_bytes
        return place

    def fill(self, place, weights):
        assert place in self.places, "filled what was given away"

    def vacate(self, place):
        self.places.remove(place)


class ManualLoader:
    def __init__(self):
        self.waiting = []

    def begin(self, digest, work):
        self.waiting.append((digest, work))

    def run(self, manager, count=None):
        """End the first `count` loads (all that are there now if None)."""
        for _ in range(len(self.waiting) if count is None else count):
            digest, work = self.waiting.pop(0)
            try:
                manager.finish(Loaded(digest, 0.5, weights=work()))
            except FinetunedError as error:
                manager.finish(Loaded(digest, 0.5, error=error))
