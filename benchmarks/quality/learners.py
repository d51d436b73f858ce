"""Ours and the references, each as a process that is stopped while it is not its turn, and what their runs came to."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from finetuned_service.jobs.process import environment_for_job_process

from benchmarks.machine import cores
from benchmarks.peers.process import Peer, PeerFailed, running
from benchmarks.peers.start import HOME, LOGS, installed
from benchmarks.quality.bases import digest
from benchmarks.quality.nudge import WAYS, write_nudged
from benchmarks.quality.order import Order, Outcome
from benchmarks.quality.sources import sources_digest

RUNS = Path("build/bench/quality/runs")
"""A file for each run that has ended; `--resume` reads them."""
MODULES = {"ours": "ours_worker", "reference": "reference_worker", "trl": "trl_worker"}


@dataclass(frozen=True, slots=True)
class Learners:
    """All that are installed, running: `ours`, the `reference`, and `trl`, the reference of language models."""

    peers: Mapping[str, Peer]
    resume: bool
    """Take the outcome of an equal run from its file where there is one."""
    sources: str
    """A digest of the code that runs."""

    def both(self, order: Order, rows_digest: str, reference: str) -> tuple[Outcome, Outcome]:
        """Ours, and the reference, which begins as ours does and goes through the same batches."""
        mine, theirs = (self._file(name, order, rows_digest) for name in ("ours", reference))
        if found := self._kept(mine, theirs):
            return found[0], found[1]
        with _scratch() as directory:
            begun = self._begun(order, directory)
            return (
                self._run("ours", order, mine, directory / "ours"),
                self._run(reference, begun, theirs, directory / "reference"),
            )

    def nudged(self, order: Order, rows_digest: str, reference: str) -> list[Outcome]:
        """The reference again, with the same batches, from each beginning a bit apart (`nudge.py`). None of a head over
        a base that stays as it is: there is nothing to begin apart, and its loss is convex, so small differences stay small.
        """
        files = [self._file(f"{reference}, nudged {way}", order, rows_digest) for way in range(WAYS)]
        if found := self._kept(*files):
            return found
        with _scratch() as directory:
            begun = self._begun(order, directory)
            if not begun.initial:
                return []
            found = []
            for way, file in enumerate(files):
                nudged = directory / f"nudged-{way}.safetensors"
                write_nudged(Path(begun.initial), nudged, way)
                other = replace(begun, initial=str(nudged))
                found.append(self._run(reference, other, file, directory / f"reference-{way}"))
            return found

    def one(self, name: str, order: Order, rows_digest: str) -> Outcome:
        """Of one of them, as it begins by itself."""
        file = self._file(name, order, rows_digest)
        if found := self._kept(file):
            return found[0]
        with _scratch() as directory:
            return self._run(name, order, file, directory / name)

    def _begun(self, order: Order, directory: Path) -> Order:
        """With a file in the directory of what ours begins with, where there is something to tell."""
        if order.spec["method"] == "HEAD" and order.spec["task"] != "text-generation":
            # The base stays as it is, and a head begins with what the rows say.
            return order
        order = replace(order, initial=str(directory / "initial.safetensors"))
        self._peer("ours").ask({"initial": order.initial, "order": order.as_json()})
        return order

    def _run(self, name: str, order: Order, file: Path, directory: Path) -> Outcome:
        directory.mkdir()
        found = self._peer(name).ask({"order": replace(order, directory=str(directory)).as_json()})
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
        return Outcome(**found)

    def _peer(self, name: str) -> Peer:
        if name not in self.peers:
            raise PeerFailed(f"{name} is not built: benchmarks/peers/build {name}")
        return self.peers[name]

    def _kept(self, *files: Path) -> list[Outcome]:
        if not self.resume or not all(file.exists() for file in files):
            return []
        return [Outcome(**json.loads(file.read_text())) for file in files]

    def _file(self, name: str, order: Order, rows_digest: str) -> Path:
        """Named after what decides the run."""
        said = {"who": name, "spec": order.spec, "tuned": order.tuned, "generates": order.generates}
        parts = (json.dumps(said, sort_keys=True), digest(Path(order.base)), rows_digest, self.sources)
        return RUNS / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.json"


@contextmanager
def learners(*, resume: bool) -> Iterator[Learners]:
    """Start all; kill them at the end."""
    # A job's own, for all: how OpenMP's threads wait and memory is kept decides many a step's time.
    environment = {**environment_for_job_process(cores()), "TOKENIZERS_PARALLELISM": "false"}
    with ExitStack() as stack:
        peers: dict[str, Peer] = {}
        for name, module in MODULES.items():
            if name == "trl" and not installed(name):
                continue
            python = str(HOME / "trl/bin/python") if name == "trl" else sys.executable
            command = [python, "-m", f"benchmarks.quality.{module}"]
            log = LOGS / f"quality-{name}.log"
            peers[name] = stack.enter_context(running(name, command, {}, environment, log))
        yield Learners(peers, resume, sources_digest())


@contextmanager
def _scratch() -> Iterator[Path]:
    RUNS.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=RUNS.parent)).resolve()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
