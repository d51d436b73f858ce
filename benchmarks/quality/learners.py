"""Ours and the reference, each as a process that is stopped while it is not its turn, and what their runs came to."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from finetuned_service.jobs.process import environment_for_job_process

from benchmarks.machine import cores
from benchmarks.peers.process import Peer, running
from benchmarks.peers.start import LOGS
from benchmarks.quality.bases import digest
from benchmarks.quality.order import Order, Outcome

RUNS = Path("build/bench/quality/runs")
"""A file for each run that has ended; `--resume` reads them."""


@dataclass(frozen=True, slots=True)
class Learners:
    """Both, running."""

    ours: Peer
    reference: Peer
    resume: bool
    """Take the outcome of an equal run from its file where there is one."""

    def both(self, order: Order, rows_digest: str) -> tuple[Outcome, Outcome]:
        """Ours, and the reference, which begins as ours does and goes through the same batches."""
        mine, theirs = (self._file(name, order, rows_digest) for name in ("ours", "reference"))
        if found := self._kept(mine, theirs):
            return found[0], found[1]
        with _scratch() as directory:
            order = replace(order, initial=str(directory / "initial.safetensors"))
            if order.spec["method"] == "HEAD" and order.spec["task"] != "text-generation":
                # It begins at zero, over a base that stays as it is.
                order = replace(order, initial="")
            else:
                self.ours.ask({"initial": order.initial, "order": order.as_json()})
            return (
                self._run(self.ours, replace(order, initial=""), mine, directory / "ours"),
                self._run(self.reference, order, theirs, directory / "reference"),
            )

    def one(self, name: str, order: Order, rows_digest: str) -> Outcome:
        """Of `ours` or of the `reference`, each as it begins by itself."""
        file = self._file(name, order, rows_digest)
        if found := self._kept(file):
            return found[0]
        with _scratch() as directory:
            return self._run(getattr(self, name), order, file, directory / name)

    def _run(self, learner: Peer, order: Order, file: Path, directory: Path) -> Outcome:
        directory.mkdir()
        found = learner.ask({"order": replace(order, directory=str(directory)).as_json()})
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
        return Outcome(**found)

    def _kept(self, *files: Path) -> list[Outcome]:
        if not self.resume or not all(file.exists() for file in files):
            return []
        return [Outcome(**json.loads(file.read_text())) for file in files]

    def _file(self, name: str, order: Order, rows_digest: str) -> Path:
        """Named after what decides the run."""
        said = {"who": name, "spec": order.spec, "tuned": order.tuned, "generates": order.generates}
        parts = (json.dumps(said, sort_keys=True), digest(Path(order.base)), rows_digest)
        return RUNS / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.json"


@contextmanager
def learners(*, resume: bool) -> Iterator[Learners]:
    """Start both; kill them at the end."""
    # A job's own, for both: how OpenMP's threads wait and memory is kept decides many a step's time.
    environment = {**environment_for_job_process(cores()), "TOKENIZERS_PARALLELISM": "false"}
    module = "benchmarks.quality."
    with (
        running(
            "ours", [sys.executable, "-m", f"{module}ours_worker"], {}, environment, LOGS / "quality-ours.log"
        ) as ours,
        running(
            "reference",
            [sys.executable, "-m", f"{module}reference_worker"],
            {},
            environment,
            LOGS / "quality-reference.log",
        ) as reference,
    ):
        yield Learners(ours, reference, resume)


@contextmanager
def _scratch() -> Iterator[Path]:
    RUNS.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=RUNS.parent)).resolve()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
