"""What the frozen base makes of examples: computed once, since no step of a head's training changes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from finetuned_service.adapters.head import Head
from finetuned_service.engine.encoders.model import EncoderModel
from finetuned_service.engine.encoders.pooling import pool
from finetuned_service.engine.messages import Encode, Sampling, Submit
from finetuned_service.jobs.pace import Phase
from finetuned_service.training.heads.examples import Example
from finetuned_service.vocabulary import Pooling

_FORWARD_TOKENS = 1024
_FORWARD_INPUTS = 64


@torch.inference_mode()
def features_of(
    model: EncoderModel, examples: Sequence[Example], head: Head, phase: Phase
) -> Iterator[tuple[int, Tensor]]:
    """The number of each example, and `[1, width]` float32 on the CPU; or a row for each of its `places`. `phase` has a
    step for each example.

    Raises:
        Stopped: the process was asked to stop.
    """
    ordered = sorted(examples, key=lambda example: len(example.token_ids))
    for part in _parts(ordered):
        rows = model.forward.run([request_of(example, head) for example in part])
        for example, found in zip(part, rows, strict=True):
            exact = found.float().cpu()
            if example.places:
                yield example.number, exact[list(example.places)]
            else:
                yield example.number, pool(exact, head.pooling or Pooling.MEAN)
        phase.advance(steps=len(part))


def request_of(example: Example, head: Head) -> Submit:
    """The example as the engine is asked about it."""
    pooling = None if example.places else head.pooling or Pooling.MEAN
    return Submit(
        example.number,
        example.token_ids,
        None,
        Sampling(1),
        encode=Encode(pooling, example.second_start),
        pixels=example.image.pixels() if example.image else None,
    )


def _parts(examples: Sequence[Example]) -> Iterator[list[Example]]:
    part: list[Example] = []
    tokens = 0
    for example in examples:
        if part and (tokens >= _FORWARD_TOKENS or len(part) == _FORWARD_INPUTS):
            yield part
            part, tokens = [], 0
        part.append(example)
        tokens += len(example.token_ids)
    if part:
        yield part
