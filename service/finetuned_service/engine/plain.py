"""The plain path's runner: transformers' own modules with adapter sites, PyTorch's operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from finetuned_service.engine.adapter_files import AdapterReader
from finetuned_service.engine.adapter_memory import AdapterMemory
from finetuned_service.engine.batch import build_batch
from finetuned_service.engine.chunks import Chunk
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.decode_graphs import DecodeGraphs
from finetuned_service.engine.decode_shapes import Decoding, usual_shapes
from finetuned_service.engine.draws import draw_tokens
from finetuned_service.engine.graph_recorder import recorder_of
from finetuned_service.engine.lora_bank import LoraBanks
from finetuned_service.engine.messages import Sampling
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.prefix_cache import PrefixCopy
from finetuned_service.engine.runner import PlaceOf, StepLogits
from finetuned_service.engine.sampling import greedy_tokens


@final
class PlainRunner:
    """Any architecture, dtype, weight format and device that transformers loads."""

    kv_block_tokens = 16
    """Only whole blocks of prompts are shared, and compared as such."""
    shares_prefixes = True
    idle_work_proceeds = False

    def __init__(self, model: EngineModel, config: EngineConfig) -> None:
        """See `EngineModel.open`."""
        self._model = model
        self._banks = LoraBanks(model.sites, config.device_budget_bytes, model.dtype, model.device)
        recorder = recorder_of(model.device)
        self._arena = model.make_arena(config.kv_capacity_tokens + (recorder is not None))
        self._graphs: DecodeGraphs | None = None
        if recorder is not None:
            usual = usual_shapes(
                config.max_running_sequences,
                min(model.context_tokens, config.kv_capacity_tokens),
                self._banks.capacity_ranks,
            )
            self._graphs = DecodeGraphs(self._banks, self._arena, model.decode, model.device, recorder, usual)
        reader = AdapterReader(model.sites, model.geometry, model.dtype, model.linear_weight)
        self.memory = AdapterMemory(reader, self._banks, config.device_budget_bytes, model.forget_rows)

    @property
    def kv_bytes(self) -> int:
        return self._arena.size_bytes

    def run(self, chunks: Sequence[Chunk], place_of: PlaceOf, *, all_logits: bool = False) -> StepLogits:
        if self._graphs is not None and not all_logits:
            step = self._replay(self._graphs, chunks, place_of)
            if step is not None:
                return step
        model = self._model
        batch = build_batch(chunks, place_of, self._arena, model.dtype, model.device, all_logits=all_logits)
        logits = model.forward(batch, self._banks)
        return StepLogits(logits, batch.chosen, [] if all_logits else greedy_tokens(logits))

    @staticmethod
    def _replay(graphs: DecodeGraphs, chunks: Sequence[Chunk], place_of: PlaceOf) -> StepLogits | None:
        """The step by a graph, where there is one: all rows decode, no adapter does more than LoRA."""
        if any(chunk.rows > 1 or not chunk.completes for chunk in chunks):
            return None
        places = [place_of(chunk.sequence) for chunk in chunks]
        if any(place.ops for place in places if place is not None):
            return None
        decoding = Decoding.of(chunks, [None if place is None else place.lora for place in places])
        found = graphs.run(decoding)
        if found is None:
            return None
        logits, greedy = found
        return StepLogits(logits, tuple(chunk.sequence for chunk in chunks), greedy)

    def draw(
        self, rows: Sequence[Tensor], samplings: Sequence[Sampling], uniforms: Sequence[float]
    ) -> list[int]:
        """See `runner.Runner`."""
        return draw_tokens(torch.stack(list(rows)), samplings, uniforms)

    def warm(self) -> bool:
        """See `runner.Runner`."""
        return self._graphs is not None and self._graphs.warm()

    def copy_kv(self, copy: PrefixCopy) -> None:
        """See `runner.Runner`."""
        self._arena.copy(copy.source, copy.target, copy.tokens)

    def close(self) -> None:
        """Nothing but memory, which goes with the object."""
