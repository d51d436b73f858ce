"""The head of an adapter, as it is described: which task it is for, and what its outputs mean. Torch-free.

Its tensors and its place beside what a layout does to the base are in `layouts/head.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from finetuned_service.vocabulary import Pooling, Task, Value

MAX_LABELS = 10_000
HEAD_KEY = "head"
"""Of adapter_config.json: where it is described."""
CLASSIFIER = "classifier"
"""Its module's name. No base has it: bases are stored without heads of their own."""


class Problem(StrEnum):
    """What the outputs of a head mean."""

    SINGLE_LABEL = "SINGLE_LABEL"
    """Logits of labels of which one applies: softmax."""
    MULTI_LABEL = "MULTI_LABEL"
    """Logits of labels of which any number apply: a sigmoid each."""
    REGRESSION = "REGRESSION"
    """One number, as it stands."""


class Head(Value):
    """What is stored of a head beside its weights."""

    task: Task
    problem: Problem
    labels: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(
        default=(), max_length=MAX_LABELS
    )
    """In the order of the outputs; none for a regression."""
    pooling: Pooling | None = None
    """How a text's vectors became one in training; None for tags of tokens and for images."""

    @property
    def outputs(self) -> int:
        return 1 if self.problem is Problem.REGRESSION else len(self.labels)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels has a label twice")
        if (self.problem is Problem.REGRESSION) == bool(self.labels):
            raise ValueError(f"{self.problem} with {len(self.labels)} labels")
        return self
