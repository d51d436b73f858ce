"""The head of an adapter: a linear layer over what the base encodes, and what its outputs mean. Torch-free.

`head` in adapter_config.json describes it; its tensors are `base_model.model.classifier.weight [outputs, width]` and
`.bias [outputs]`, as PEFT names a classifier among its modules to save. PEFT has no type for a head alone: `peft_type`
is HEAD, which only we read.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from finetuned_service.adapters.config_keys import HARMLESS
from finetuned_service.errors import InvalidAdapterFiles, Violation
from finetuned_service.vocabulary import Pooling, Task, Value

HEAD_TYPE = "HEAD"
"""What `peft_type` says."""
HEAD_KEY = "head"
HEAD_WEIGHT = "base_model.model.classifier.weight"
HEAD_BIAS = "base_model.model.classifier.bias"
MAX_LABELS = 10_000


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

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Of its tensors, on a base whose vectors have `width` numbers."""
        return {HEAD_WEIGHT: (self.outputs, width), HEAD_BIAS: (self.outputs,)}

    def spelled_out(self) -> dict[str, object]:
        """Its adapter_config.json: equal for equal heads, so that the digest is over it."""
        return {"peft_type": HEAD_TYPE, HEAD_KEY: self.model_dump(mode="json")}


def read_head(config: Mapping[str, Any]) -> Head:
    """The head that an adapter_config.json of its type describes.

    Raises:
        InvalidAdapterFiles: it is described wrongly.
    """
    strays = [key for key, value in config.items() if value and key not in {"peft_type", HEAD_KEY, *HARMLESS}]
    if strays:
        raise InvalidAdapterFiles(
            f"adapter_config.json: {strays[0][:60]!r} is set; a head has peft_type and {HEAD_KEY}: remove it"
        )
    if HEAD_KEY not in config:
        raise InvalidAdapterFiles(
            f"adapter_config.json: {HEAD_KEY} is missing; an adapter of type HEAD has it"
        )
    try:
        return Head.model_validate(config[HEAD_KEY])
    except ValidationError as error:
        violations = [
            Violation(f"adapter_config.json: {'.'.join(map(str, (HEAD_KEY, *e['loc'])))}", e["msg"])
            for e in error.errors()
        ]
        raise InvalidAdapterFiles(
            f"{violations[0].field} {violations[0].description}", violations=violations
        ) from error
