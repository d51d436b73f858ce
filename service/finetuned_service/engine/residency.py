"""Which adapters are in memory, in which tier, and who must go for whom. No torch, no threads of its own.

Two bounded caches: HOST (read, checked, converted) and DEVICE (the serving layout). An adapter in
DEVICE usually keeps its HOST copy, so that eviction is a release of rows and a return is a copy.
Loads run on a loader beside the engine; what a load will write to is reserved before it begins, so
nothing that runs ever waits for it or sees it half done. Each change is planned first (who must be
evicted, does it then fit) and then committed in one go.

Least recently used goes first; never what is held by a running sequence, pinned, or being loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from finetuned_service.engine.gate import Readiness
from finetuned_service.engine.histogram import LOAD_SECONDS, Histogram
from finetuned_service.engine.memory import Loaded, Loader, Memory, P, W
from finetuned_service.engine.messages import AdapterHandle, AdapterResidency, Residency
from finetuned_service.errors import FinetunedError, ResourceExhausted


@dataclass(slots=True, eq=False)
class _Entry(Generic[W, P]):
    handle: AdapterHandle
    host_bytes: int = 0
    weights: W | None = None
    modules: int = 0
    place: P | None = None
    filled: bool = False
    loading: bool = False
    holds: int = 0
    pinned: Residency = Residency.STORED
    falls_to: Residency = Residency.DEVICE
    """Where it goes, once, as soon as nobody holds it."""
    used: int = 0

    @property
    def on_device(self) -> bool:
        return self.place is not None and self.filled

    @property
    def tier(self) -> Residency:
        if self.on_device:
            return Residency.DEVICE
        return Residency.STORED if self.weights is None else Residency.HOST


class ResidencyManager(Generic[W, P]):
    """Owns the tiers; all methods belong to the engine's thread. It is the scheduler's AdapterGate."""

    def __init__(self, memory: Memory[W, P], loader: Loader[W], host_budget_bytes: int) -> None:
        self._memory = memory
        self._loader = loader
        self._host_budget_bytes = host_budget_bytes
        self._entries: dict[str, _Entry[W, P]] = {}
        self._clock = 0
        self._pass_clock = 0
        self.loads = 0
        self.evictions = 0
        self.host_evictions = 0
        self.load_seconds = 0.0
        self.load_failures = 0
        self.read_seconds = Histogram(LOAD_SECONDS)
        self.fill_seconds = Histogram(LOAD_SECONDS)

    def begin_pass(self) -> None:
        """See `AdapterGate`. Without it, more cold adapters waiting than fit would evict each other forever."""
        self._pass_clock = self._clock

    def try_hold(self, handle: AdapterHandle) -> Readiness:
        """See `AdapterGate`."""
        readiness = self.advance(handle, Residency.DEVICE)
        if readiness is Readiness.READY:
            self._entries[handle.digest].holds += 1
        return readiness

    def prepare(self, handle: AdapterHandle) -> Readiness:
        """See `AdapterGate`."""
        return self.advance(handle, Residency.DEVICE)

    def is_ready(self, handle: AdapterHandle) -> bool:
        """See `AdapterGate`."""
        entry = self._entries.get(handle.digest)
        return entry is not None and entry.on_device

    def may_leave(self, handle: AdapterHandle) -> bool:
        """See `AdapterGate`."""
        return self._entries[handle.digest].pinned is not Residency.DEVICE

    def release(self, handle: AdapterHandle) -> None:
        """See `AdapterGate`."""
        entry = self._entries[handle.digest]
        entry.holds -= 1
        self._settle(entry)

    def place_of(self, handle: AdapterHandle) -> P:
        """Where a held adapter lies."""
        place = self._entries[handle.digest].place
        assert place is not None, "the adapter is not held"
        return place

    def modules_of(self, handle: AdapterHandle) -> int:
        """How many modules of the base a held adapter changes."""
        return self._entries[handle.digest].modules

    def advance(self, handle: AdapterHandle, tier: Residency) -> Readiness:
        """Bring an adapter one step nearer to HOST or DEVICE, if it is not there and there is room.

        Raises:
            ResourceExhausted: if it would not fit even in empty memory.
            FinetunedError: if its files cannot be reached.
        """
        entry = self._entries.setdefault(handle.digest, _Entry(handle))
        self._clock += 1
        entry.used = self._clock
        if entry.on_device and tier is Residency.DEVICE:
            return Readiness.READY
        # Also while it is being placed: a call for HOST that waited for that would undo it, and the call for
        # DEVICE would begin it again, forever.
        if entry.weights is not None and tier is Residency.HOST:
            return Readiness.READY
        if entry.loading:
            return Readiness.LOADING
        try:
            if entry.weights is None:
                wanted, readiness = Residency.HOST, self._begin_read(entry)
            else:
                wanted, readiness = Residency.DEVICE, self._begin_fill(entry, entry.weights)
            if readiness is Readiness.NO_MEMORY and not any(
                self._passing(other, wanted) for other in self._entries.values() if other is not entry
            ):
                raise ResourceExhausted(
                    f"pinned adapters leave no memory for adapter {handle.digest}; unpin one or raise the budget",
                    metadata={"adapter_digest": handle.digest},
                )
            return readiness
        finally:
            self._drop_if_idle(entry)

    def set_residency(
        self,
        handle: AdapterHandle,
        tier: Residency,
        *,
        pinned: bool,
        kept: Residency | None = None,
        lowers: bool = False,
    ) -> Readiness:
        """Bring an adapter up or down to `tier`, pinned there or at `kept`; downwards it waits for its running sequences.
        What only `lowers` brings nothing into memory; to DEVICE, it leaves all where it is.

        Raises:
            FinetunedError: as `advance`; then nothing is pinned.
        """
        if (lowers or tier is Residency.STORED) and handle.digest not in self._entries:
            return Readiness.READY
        entry = self._entries.setdefault(handle.digest, _Entry(handle))
        entry.pinned = (kept or tier) if pinned else Residency.STORED
        stays = lowers and tier is Residency.DEVICE
        at_once = stays or tier is Residency.STORED
        try:
            readiness = Readiness.READY if at_once else self.advance(handle, tier)
        except FinetunedError:
            self.unpin(handle)
            raise
        # What is refused, for want of memory too, leaves the weights where they are.
        if readiness is not Readiness.NO_MEMORY and not (
            lowers and (stays or entry.falls_to is Residency.STORED)
        ):
            entry.falls_to = tier
        self._settle(entry)
        return readiness

    def unpin(self, handle: AdapterHandle) -> None:
        if (entry := self._entries.get(handle.digest)) is not None:
            entry.pinned = Residency.STORED
            self._drop_if_idle(entry)

    def finish(self, loaded: Loaded[W]) -> None:
        """Take over what the loader did. After a failure the adapter is as if it had never been asked for."""
        entry = self._entries[loaded.digest]
        entry.loading = False
        self.load_seconds += loaded.seconds
        if loaded.error is not None:
            self.load_failures += 1
            if entry.place is not None and not entry.filled:
                self._memory.vacate(entry.place)
                entry.place = None
            entry.pinned = Residency.STORED
            self._forget_weights(entry)
        elif loaded.weights is not None:
            self.read_seconds.observe(loaded.seconds)
            entry.weights = loaded.weights
            entry.host_bytes = loaded.weights.size_bytes
            entry.modules = loaded.weights.modules
        else:
            self._filled(entry, loaded.seconds)
        self._settle(entry)

    def _filled(self, entry: _Entry[W, P], seconds: float) -> None:
        self.fill_seconds.observe(seconds)
        entry.filled = True
        self.loads += 1

    def snapshot(self) -> tuple[AdapterResidency, ...]:
        """All adapters that are in memory."""
        return tuple(
            AdapterResidency(
                digest=digest,
                residency=entry.tier,
                pinned=entry.pinned is not Residency.STORED,
                running_sequences=entry.holds,
                resident_bytes=self._resident_bytes(entry),
                modules=entry.modules,
                device_bytes=entry.place.size_bytes if entry.place else 0,
            )
            for digest, entry in self._entries.items()
            if entry.tier is not Residency.STORED
        )

    def _resident_bytes(self, entry: _Entry[W, P]) -> int:
        if entry.place is None:
            return entry.host_bytes
        shared_bytes = entry.place.shared_bytes if entry.weights is not None else 0
        return entry.host_bytes + entry.place.size_bytes - shared_bytes

    def _begin_read(self, entry: _Entry[W, P]) -> Readiness:
        needed_bytes = self._memory.size_bytes(entry.handle)
        if needed_bytes > self._host_budget_bytes:
            raise ResourceExhausted(
                f"adapter {entry.handle.digest} needs {needed_bytes} bytes of host memory; the budget for "
                f"all adapters is {self._host_budget_bytes}. Raise the budget, use a smaller rank or train fewer parameters",
                metadata={"adapter_digest": entry.handle.digest},
            )
        free_bytes = self._host_budget_bytes - sum(e.host_bytes for e in self._entries.values())
        victims: list[_Entry[W, P]] = []
        for candidate in self._by_age(self._may_leave_host):
            if free_bytes >= needed_bytes:
                break
            victims.append(candidate)
            free_bytes += candidate.host_bytes
        if free_bytes < needed_bytes:
            return Readiness.NO_MEMORY
        for victim in victims:
            self._forget_weights(victim)
            self.host_evictions += 1
            self._drop_if_idle(victim)
        entry.host_bytes = needed_bytes
        entry.loading = True
        self._loader.begin(entry.handle.digest, lambda: self._memory.read(entry.handle))
        return Readiness.LOADING

    def _begin_fill(self, entry: _Entry[W, P], weights: W) -> Readiness:
        if not self._memory.fits(weights):
            raise ResourceExhausted(
                f"adapter {entry.handle.digest} does not fit into the serving layout even alone. "
                "Raise the budget for adapters on the device, use a smaller rank or train fewer parameters",
                metadata={"adapter_digest": entry.handle.digest},
            )
        candidates = self._by_age(self._may_leave_device)
        victims = self._memory.plan(weights, [e.place for e in candidates if e.place is not None])
        if victims is None:
            return Readiness.NO_MEMORY
        for victim in candidates[: len(victims)]:
            self._leave_device(victim)
            self._drop_if_idle(victim)
        place = entry.place = self._memory.place(weights)
        if self._memory.fills_at_once:
            self._memory.fill(place, weights)
            self._filled(entry, 0.0)
            return Readiness.READY
        entry.loading = True

        def fill() -> None:
            self._memory.fill(place, weights)

        self._loader.begin(entry.handle.digest, fill)
        return Readiness.LOADING

    def _by_age(self, eligible: Callable[[_Entry[W, P]], bool]) -> list[_Entry[W, P]]:
        return sorted(filter(eligible, self._entries.values()), key=lambda entry: entry.used)

    def _passing(self, entry: _Entry[W, P], tier: Residency) -> bool:
        """What it takes in a tier will be free some time, without anybody unpinning it."""
        waits = self._wanted_now(entry) and entry.tier is not Residency.STORED
        return entry.pinned is not tier and (entry.holds > 0 or entry.loading or waits)

    def _may_leave_host(self, entry: _Entry[W, P]) -> bool:
        if entry.weights is None or entry.loading or entry.pinned is Residency.HOST:
            return False
        return entry.on_device or not (self._wanted_now(entry) or entry.pinned is Residency.DEVICE)

    def _may_leave_device(self, entry: _Entry[W, P]) -> bool:
        kept = entry.holds or entry.loading or entry.pinned is Residency.DEVICE
        return entry.on_device and not kept and not self._wanted_now(entry)

    def _wanted_now(self, entry: _Entry[W, P]) -> bool:
        return entry.used > self._pass_clock

    def _leave_device(self, entry: _Entry[W, P]) -> None:
        if entry.place is not None:
            self._memory.vacate(entry.place)
            entry.place = None
            entry.filled = False
            self.evictions += 1

    def _forget_weights(self, entry: _Entry[W, P]) -> None:
        entry.weights = None
        entry.host_bytes = 0

    def _settle(self, entry: _Entry[W, P]) -> None:
        """Let the adapter fall to where `set_residency` wants it, once nothing keeps it up, but not below its pin."""
        if entry.holds or entry.loading:
            return
        if Residency.DEVICE not in (entry.falls_to, entry.pinned):
            self._leave_device(entry)
        if entry.falls_to is entry.pinned is Residency.STORED:
            self._forget_weights(entry)
        entry.falls_to = Residency.DEVICE
        self._drop_if_idle(entry)

    def _drop_if_idle(self, entry: _Entry[W, P]) -> None:
        idle = not (entry.holds or entry.loading or entry.weights is not None or entry.place is not None)
        if idle and entry.pinned is Residency.STORED:
            self._entries.pop(entry.handle.digest, None)
