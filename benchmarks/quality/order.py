"""What a learner is asked, and what it answers; values alone, so that every side can read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Order:
    """One run: train as told, then predict for the rows to be scored."""

    spec: dict[str, Any]
    """A resolved TrainSpec."""
    base: str
    train: str
    test: str
    directory: str
    """Where files of the run go; empty at first."""
    threads: int
    encoded: str = ""
    """Of a language model: a JSON file of the rows as ids (`encoded.py`)."""
    batches: list[list[int]] = field(default_factory=list[list[int]])
    """What the spec comes to: the training rows of every step, by their place in their file."""
    learning_rates: list[float] = field(default_factory=list[float])
    """Of every step."""
    initial: str = ""
    """A safetensors file of the parameters with which training begins, by their names in an adapter's file."""
    generates: bool = False
    """Answer the prompts of the scored rows, too."""
    tuned: dict[str, float] = field(default_factory=dict[str, float])
    """The reference's own settings where it is tuned, and begins, orders and schedules as it likes; empty repeats
    the spec.
    """

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run."""

    losses: list[float]
    """Of every step, before it, in nats (squared where rows have numbers)."""
    seconds: float
    """From the first step's begin to the last one's end; with a head alone, from before the base was loaded."""
    parameters: int
    """Numbers that trained."""
    adapter_bytes: int
    """Of what was trained, as it is stored."""
    predictions: dict[str, Any]
    peak_bytes: int = 0
    """The most memory of its own in training, above libraries and base."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
