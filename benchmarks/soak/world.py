"""What all visitors of a soak share: the server, its adapters, the prompts, and what they have found."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from finetuned import AsyncClient, RawText, ServerInfo
from finetuned.errors import DeadlineExceeded, ResourceExhausted, Unavailable

from benchmarks.adapters import write_adapter
from benchmarks.soak.known import Known

TENANTS = ("acme", "globex")
SHARED = 8
"""Adapters that are there from the beginning to the end, under equal names for both tenants, with two versions
each; those of even number have the same weights for both."""
RANKS = (4, 8, 16, 64)
SPREAD = 0.05
"""Of B: enough for every adapter to say something of its own."""
PROMPTS = 12
FROZEN_SECONDS = 10.0
"""A pause of our own event loop that no load explains: somebody stopped the process, or the machine slept."""


@dataclass(slots=True)
class Findings:
    """What was done, and what should not have happened."""

    calls: Counter[str] = field(default_factory=Counter[str])
    refusals: Counter[str] = field(default_factory=Counter[str])
    """Expected ones, by class."""
    failures: list[str] = field(default_factory=list[str])
    frozen_seconds: float = 0.0
    _pins: int = 0
    """That somebody may hold now."""
    _last_pin: float = 0.0
    """When the last one was given up."""

    @asynccontextmanager
    async def pinning(self) -> AsyncGenerator[None]:
        """Somebody asks for a pin, and gives it up at the end."""
        self._pins += 1
        try:
            yield
        finally:
            self._pins -= 1
            self._last_pin = time.monotonic()

    @asynccontextmanager
    async def call(self, name: str) -> AsyncGenerator[None]:
        """Count a call; note how it failed. What ran out of time while the machine stood still is excused; that pins leave
        no memory is a fair answer while somebody holds one.
        """
        self.calls[name] += 1
        frozen_before, began = self.frozen_seconds, time.monotonic()
        try:
            yield
        except ResourceExhausted as error:
            if "pinned adapters leave no memory" in str(error) and (self._pins or self._last_pin >= began):
                self.refusals[type(error).__name__] += 1
            else:
                self.failures.append(f"{name}: {type(error).__name__}: {error}")
        except (DeadlineExceeded, Unavailable) as error:
            await asyncio.sleep(0)  # the pulse may not have noticed yet
            if self.frozen_seconds == frozen_before:
                self.failures.append(f"{name}: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - one call that fails is a finding, and the soak goes on
            self.failures.append(f"{name}: {type(error).__name__}: {error}")

    async def pulse(self) -> None:
        """Notice, until cancelled, how long this process stood still."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            if now - before > FROZEN_SECONDS:
                self.frozen_seconds += now - before
            before = now


@dataclass(slots=True)
class World:
    endpoint: str
    metrics_url: str
    scratch: Path
    """For files that are sent and received."""
    info: ServerInfo
    clients: dict[str, AsyncClient]
    prompts: list[RawText]
    adapters: dict[str, list[Path]]
    """By tenant: directories in PEFT's layout, two of each shared adapter, in order."""
    known: Known = field(default_factory=Known)
    findings: Findings = field(default_factory=Findings)

    @property
    def base_digest(self) -> str:
        return self.info.base.digest


def write_adapters(scratch: Path, base: Path) -> dict[str, list[Path]]:
    """The files of the shared adapters of both tenants."""
    made: dict[str, list[Path]] = {}
    for tenant in TENANTS:
        made[tenant] = []
        for number in range(2 * SHARED):
            owner = "both" if number // 2 % 2 == 0 else tenant
            rank, seed = RANKS[number // 2 % len(RANKS)], 1000 + number + 500 * TENANTS.index(tenant)
            seed = 1000 + number if owner == "both" else seed
            directory = scratch / "adapters" / f"{owner}-{number}"
            made[tenant].append(write_adapter(directory, base, rank, seed, spread=SPREAD))
    return made


def draw_prompts(seed: int, context_tokens: int) -> list[RawText]:
    """Sentences of random words; every third begins like the others of its kind, as system prompts do."""
    generator = random.Random(seed)
    words = [
        "alpha",
        "bravo",
        "the",
        "of",
        "river",
        "stone",
        "paint",
        "blue",
        "seven",
        "é",
        "日本",
        "🎉",
        "quick",
        "under",
        "lamp",
        "and",
        "to",
        "code",
    ]
    preamble = " ".join(generator.choices(words, k=min(60, context_tokens // 12)))
    prompts: list[RawText] = []
    for number in range(PROMPTS):
        own = " ".join(generator.choices(words, k=generator.randint(3, min(40, context_tokens // 24))))
        prompts.append(RawText(f"{preamble} {own}" if number % 3 == 0 else own))
    return prompts
