"""A base that encodes, in memory: one frozen module, and what computes its steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.family import family_of, width_of
from finetuned_service.bases.load import load_base, stored_tensors
from finetuned_service.bases.manifest import read_config
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.encoders import attention
from finetuned_service.engine.encoders.heads import HeadMemory, HeadPlace
from finetuned_service.engine.encoders.pooling import pool
from finetuned_service.engine.encoders.text import TextForward
from finetuned_service.engine.encoders.vision import VisionForward
from finetuned_service.engine.messages import Submit
from finetuned_service.engine.model import fingerprint
from finetuned_service.engine.prefix_cache import PrefixCopy
from finetuned_service.engine.runner import PlaceOf, Runner, StepLogits
from finetuned_service.engine.scheduler import Chunk
from finetuned_service.vocabulary import Family


class Forward(Protocol):
    """How a family computes the inputs of one step."""

    @property
    def context_tokens(self) -> int: ...
    @property
    def vocabulary_tokens(self) -> int: ...

    def order(self, request: Submit) -> tuple[int, ...]:
        """Requests are computed in this order."""
        ...

    def run(self, requests: Sequence[Submit]) -> list[Tensor]:
        """`[tokens, width]` of each, in the base's dtype."""
        ...


@final
class EncoderModel:
    """Owns the base; its weights are never written."""

    encodes = True
    end_token_ids: frozenset[int] = frozenset()

    def __init__(self, module: Any, directory: Path) -> None:
        """See `load`."""
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        vision = family_of(read_config(directory)) is Family.VISION
        self.forward: Forward = VisionForward(module) if vision else TextForward.of(module)
        self.width = width_of(read_config(directory))
        self._stored = stored_tensors(module, directory)
        self.directory = directory
        self._class_name = type(module).__name__

    @classmethod
    def load(cls, directory: Path) -> EncoderModel:
        """The base in `directory`, its tensors mapped from model.safetensors."""
        attention.register()
        vision = family_of(read_config(directory)) is Family.VISION
        module: Any = load_base(directory, attn_implementation=None if vision else attention.IMPLEMENTATION)
        module.requires_grad_(requires_grad=False)
        return cls(module, directory)

    @property
    def path(self) -> str:
        """See `runner.Model`."""
        return f"{self._class_name}, which encodes, {self.dtype} on {self.device.type}"

    @property
    def context_tokens(self) -> int:
        return self.forward.context_tokens

    @property
    def vocabulary_tokens(self) -> int:
        return self.forward.vocabulary_tokens

    @property
    def size_bytes(self) -> int:
        """All weights as stored."""
        return sum(read().nbytes for read in self._stored.values())

    def fingerprint(self) -> str:
        """The base's digest from the weights in memory now; reads all of them."""
        return fingerprint(self._stored, self.directory)

    def open(self, config: EngineConfig) -> Runner:
        """See `runner.Model`."""
        geometry = BaseGeometry("", "", {}, self.width)
        return EncoderRunner(self, HeadMemory(geometry, config.device_budget_bytes))


@final
class EncoderRunner:
    """Computes the inputs of a step together; what one becomes does not wait for the others' tokens."""

    kv_block_tokens = 1
    shares_prefixes = False
    kv_bytes = 0

    def __init__(self, model: EncoderModel, memory: HeadMemory) -> None:
        self._forward = model.forward
        self.memory = memory

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk], place_of: PlaceOf, *, all_logits: bool = False) -> StepLogits:
        """See `Runner`; every chunk is a whole input."""
        sequences = sorted((c.sequence for c in chunks), key=lambda s: self._forward.order(s.request))
        encoded: list[tuple[Any, Tensor]] = []
        for sequence, rows in zip(sequences, self._forward.run([s.request for s in sequences]), strict=True):
            wanted = sequence.request.encode
            pooled = pool(rows.float(), wanted.pooling if wanted else None).cpu()
            place: HeadPlace | None = place_of(sequence)
            encoded.append((sequence, pooled if place is None or place.head is None else place.head(pooled)))
        return StepLogits(torch.empty(0, 0), (), tuple(encoded))

    def copy_kv(self, copy: PrefixCopy) -> None:
        """Never asked for: nothing is kept from step to step."""
        raise NotImplementedError(copy)

    def close(self) -> None:
        """Nothing but memory, which goes with the object."""
