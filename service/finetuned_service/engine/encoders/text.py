"""The forward of a text encoder: inputs packed into one row, no padding, no mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from finetuned_service.bases.family import context_of, first_position
from finetuned_service.engine.encoders import attention
from finetuned_service.engine.messages import Submit


@final
@dataclass(frozen=True, slots=True)
class TextForward:
    """A transformers encoder with `attention.IMPLEMENTATION`."""

    module: Any
    first_position: int
    context_tokens: int
    vocabulary_tokens: int
    tells_pairs: bool = False
    """It has a vector of its own for tokens of a second text."""

    @classmethod
    def of(cls, module: Any) -> TextForward:
        """The forward of a loaded module."""
        config = module.config.to_dict()
        types = int(config.get("type_vocab_size") or 0)
        vocabulary = int(config["vocab_size"])
        return cls(module, first_position(config), context_of(config), vocabulary, types > 1)

    def order(self, request: Submit) -> tuple[int, ...]:
        """Requests of equal order are computed side by side best: inputs of one length are one product."""
        return (len(request.prompt_token_ids),)

    def batch_of(self, request: Submit) -> tuple[int, ...]:
        """All texts are packed into one."""
        return ()

    def run(self, requests: Sequence[Submit]) -> list[Tensor]:
        """`[tokens, width]` of each input, in their order."""
        starts = [request.encode.second_start if request.encode else 0 for request in requests]
        return self.encode([request.prompt_token_ids for request in requests], starts)

    def encode(self, inputs: Sequence[Sequence[int]], second_starts: Sequence[int] = ()) -> list[Tensor]:
        """`[tokens, width]` of each input, given by its token ids; see `Encode.second_start`."""
        lengths = [len(token_ids) for token_ids in inputs]
        device = self.module.device
        positions = [self.first_position + place for length in lengths for place in range(length)]
        types: dict[str, Tensor] = {}
        if self.tells_pairs and any(second_starts):
            flags = [
                int(0 < start <= place)
                for length, start in zip(lengths, second_starts, strict=True)
                for place in range(length)
            ]
            types["token_type_ids"] = torch.tensor([flags], device=device)
        output = self.module(
            input_ids=torch.tensor([[token for token_ids in inputs for token in token_ids]], device=device),
            position_ids=torch.tensor([positions], device=device),
            **types,
            **{attention.LENGTHS_ARGUMENT: lengths},
        )
        rows: Tensor = output.last_hidden_state[0]
        return list(rows.split(lengths))
