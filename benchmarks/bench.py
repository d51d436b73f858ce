"""What every group of figures is given: the base, prompts, adapters, a server, peers, and how often to measure."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.adapters import write_adapter
from benchmarks.figures import Figure, compared, single, take_turns
from benchmarks.ours import Ours, ours
from benchmarks.peers.process import Generates, Peer, PeerFailed, Sequences
from benchmarks.prompts import Prompts

DATA = Path("build/bench-data")
ADAPTERS = Path("build/bench/adapters")
RANK = 16
NEW_TOKENS = 64
PROMPT_TOKENS = 16
CONTEXT_TOKENS = 128
"""Room for a prompt and its reply, for peers that reserve it."""


@dataclass(slots=True)
class Bench:
    """One run of the benchmark."""

    base: Path
    prompts: Prompts
    runs: int
    quick: bool
    peers: frozenset[str]
    """Those to compare with that are installed."""
    expected: frozenset[str]
    """Those to compare with."""
    missing: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def adapters(self, count: int, rank: int = RANK) -> list[Path]:
        """Directories in PEFT's layout, made if they are not there."""
        return [
            write_adapter(ADAPTERS / f"r{rank}-{i:04d}", self.base, rank, seed=1000 * rank + i).resolve()
            for i in range(count)
        ]

    def sequences(
        self,
        count: int,
        adapters: Sequence[Path] = (),
        new_tokens: int = NEW_TOKENS,
        prompt_tokens: int = PROMPT_TOKENS,
        **drawn: float,
    ) -> Sequences:
        """Fresh prompts; the adapters in turn, or the plain base. `drawn`: `temperature` and `top_p`, else greedy."""
        chosen = list(itertools.islice(itertools.cycle(adapters or [None]), count))
        prompts = [self.prompts.draw(prompt_tokens) for _ in range(count)]
        return Sequences(prompts, chosen, new_tokens, **drawn)

    def rate(
        self,
        who: Generates,
        count: int,
        adapters: Sequence[Path] = (),
        new_tokens: int = NEW_TOKENS,
        prompt_tokens: int = PROMPT_TOKENS,
        **drawn: float,
    ) -> Callable[[], float]:
        """A measurement: new tokens per second of `count` sequences that start together; see `sequences`."""

        def measure() -> float:
            sequences = self.sequences(count, adapters, new_tokens, prompt_tokens, **drawn)
            return sequences.tokens / who.seconds(sequences)

        return measure

    def server(self, *flags: str) -> AbstractContextManager[Ours]:
        """Our server on the benchmark's own data directory."""
        return ours(DATA, *flags)

    @contextmanager
    def second_server(self, *flags: str) -> Iterator[Ours]:
        """Another server on what the data directory holds, sharing its immutable files. Start it second:
        the first one's database is copied while nobody writes to it.
        """
        with tempfile.TemporaryDirectory(dir=DATA.parent) as directory:
            for part in ("bases", "adapters"):
                shutil.copytree(DATA / part, Path(directory) / part, copy_function=os.link)
            for file in DATA.glob("finetuned.db*"):
                shutil.copy(file, directory)
            with ours(Path(directory), *flags) as server:
                yield server

    @contextmanager
    def started(self, **peers: AbstractContextManager[Peer]) -> Iterator[dict[str, Peer]]:
        """Those of the peers that are wanted and installed and start; why others do not is noted."""
        with ExitStack() as stack:
            found: dict[str, Peer] = {}
            for name, peer in peers.items():
                if name in self.peers:
                    try:
                        found[name] = stack.enter_context(peer)
                    except PeerFailed as error:
                        self.missing.append(str(error))
            yield found

    def beside(
        self,
        prefix: str,
        unit: str,
        measure: Callable[[], float],
        peers: Mapping[str, Callable[[], float]],
        own: Mapping[str, Callable[[], float]] | None = None,
        also: Sequence[str] = (),
    ) -> Iterator[Figure]:
        """`PREFIX_vs_PEER` for every peer, from runs in which all take turns.

        Args:
            prefix: of the figures' names.
            unit: of what all measure.
            measure: ours.
            peers: the others' measurements by name; a name of `also` that is not here gets a figure without
                a peer, so that nobody misses it.
            own: our own measurements under other conditions; their turns are next to ours.
            also: peers that there should be.
        """
        beside = {**peers, **(own or {})}
        found = take_turns(self.runs, {"": measure, **(own or {}), **peers})
        for name in beside:
            yield compared(f"{prefix}_vs_{name}", unit, found[""], name, found[name])
        for name in also:
            if name in self.expected and name not in beside:
                yield single(f"{prefix}_vs_{name}", unit, found[""], note=f"{name} is missing")
