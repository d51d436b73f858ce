"""Ours and TRL's trainer, each as a process that is stopped while it is not its turn."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.jobs.process import environment_for_job_process

from benchmarks.machine import cores
from benchmarks.peers.process import Peer, PeerFailed, running
from benchmarks.peers.start import HOME, LOGS
from benchmarks.training.rows import Rows
from benchmarks.training.weights import WeightBytes

BATCH_ROWS = 8
LEARNING_RATE = 1e-3
PACKED_TOKENS = 512
"""Of a sequence that TRL packs."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One epoch."""

    seconds: float
    steps: int


def ours(base: Path) -> AbstractContextManager[Peer]:
    """The loop of a job, in a job's environment."""
    command = [sys.executable, "-m", "benchmarks.training.ours_worker"]
    return running("ours", command, _settings(base), environment_for_job_process(cores()), LOGS / "ours.log")


def trl(base: Path, *, packing: bool, checkpointing: bool = False) -> AbstractContextManager[Peer]:
    """With packing, else with batches of rows of like length."""
    name = "trl_packed" if packing else "trl_grouped"
    settings = {"packing": packing, "max_length": PACKED_TOKENS, "checkpointing": checkpointing}
    command = [str(HOME / "trl/bin/python"), "-m", "benchmarks.peers.trl_worker"]
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return running(name, command, {**_settings(base), **settings}, environment, LOGS / f"{name}.log")


def train(learner: Peer, rows: Rows) -> Trained:
    """One epoch of the rows.

    Raises:
        PeerFailed: it ended, or trained on another number of tokens.
    """
    answer = learner.ask({"rows": str(rows.path)})
    if answer["tokens"] != rows.tokens:
        raise PeerFailed(f"{learner.name} trained on {answer['tokens']} tokens instead of {rows.tokens}")
    return Trained(float(answer["seconds"]), int(answer["steps"]))


def weight_bytes(learner: Peer) -> WeightBytes:
    """What the base's weights take in the process of one of ours, now.

    Raises:
        PeerFailed: it ended.
    """
    answer = learner.ask({"weights": True})
    return WeightBytes(int(answer["mapped_bytes"]), int(answer["private_bytes"]))


def _settings(base: Path) -> Mapping[str, object]:
    return {
        "base": str(base.resolve()),
        "threads": cores(),
        "batch_rows": BATCH_ROWS,
        "learning_rate": LEARNING_RATE,
    }
