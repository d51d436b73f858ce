"""A base that encodes, in memory: one frozen module, and what computes its steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.nn import functional

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.head import CLASSIFIER
from finetuned_service.adapters.site_ops import Project
from finetuned_service.bases.device import CPU, device_name
from finetuned_service.bases.family import family_of
from finetuned_service.bases.load import dense_weight, load_base, stored_tensors
from finetuned_service.bases.manifest import read_config
from finetuned_service.bases.resident import share
from finetuned_service.bases.shared_tensor import SharedTensor
from finetuned_service.engine.adapter_files import AdapterReader
from finetuned_service.engine.adapter_memory import AdapterMemory
from finetuned_service.engine.chunks import Chunk
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.encoders import attention
from finetuned_service.engine.encoders.adapted import adapted_rows
from finetuned_service.engine.encoders.pooling import pool
from finetuned_service.engine.encoders.text import TextForward
from finetuned_service.engine.encoders.vision import VisionForward
from finetuned_service.engine.lora_bank import LoraBanks
from finetuned_service.engine.messages import Sampling, Submit
from finetuned_service.engine.model import fingerprint
from finetuned_service.engine.module_change import install_module_sites
from finetuned_service.engine.place import AdapterPlace
from finetuned_service.engine.prefix_cache import PrefixCopy
from finetuned_service.engine.runner import PlaceOf, Runner, StepLogits
from finetuned_service.engine.sequence import Sequence as TokenSequence
from finetuned_service.engine.site_kernel import build_module_changes, build_site_kernels
from finetuned_service.engine.sites import CurrentStep, SiteTable, install_sites
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

    def batch_of(self, request: Submit) -> tuple[int, ...]:
        """Requests of one batch are computed together; those of a batch are equal in the first place of `order`."""
        ...

    def run(self, requests: Sequence[Submit]) -> list[Tensor]:
        """`[tokens, width]` of each, in the base's dtype."""
        ...


def load_module(directory: Path, device: torch.device = CPU) -> Any:
    """Transformers' model of a base that encodes, frozen; see `load_base`."""
    attention.register()
    vision = family_of(read_config(directory)) is Family.VISION
    implementation = None if vision else attention.IMPLEMENTATION
    module: Any = load_base(directory, attn_implementation=implementation, device=device)
    return module.requires_grad_(requires_grad=False)


def forward_of(module: Any) -> Forward:
    """How a model from `load_module` computes; differentiable where something in it trains."""
    vision = family_of(module.config.to_dict()) is Family.VISION
    return VisionForward(module) if vision else TextForward.of(module)


@final
class EncoderModel:
    """Owns the base; its weights are never written."""

    encodes = True
    end_token_ids: frozenset[int] = frozenset()

    def __init__(self, module: Any, directory: Path) -> None:
        """See `load`."""
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        self.forward = forward_of(module)
        self._stored = stored_tensors(module, directory)
        self._parameters = list(module.named_parameters())
        self.directory = directory
        self._module = module
        self.geometry = BaseGeometry.of_files(directory)
        self.current = CurrentStep()
        # The rows of images at a linear module are no packed batch.
        takes_images = isinstance(self.forward, VisionForward)
        install_module_sites(module, self.geometry, self.current, packed=not takes_images)
        self.sites = SiteTable((), ()) if takes_images else install_sites(module, self.current)
        self._class_name = type(module).__name__

    @classmethod
    def load(cls, directory: Path, *, device: torch.device = CPU) -> EncoderModel:
        """The base in `directory`; on the CPU its tensors are mapped from model.safetensors."""
        return cls(load_module(directory, device), directory)

    @property
    def path(self) -> str:
        """See `runner.Model`."""
        return f"{self._class_name}, which encodes, {self.dtype} on {device_name(self.device)}"

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

    def share(self) -> tuple[SharedTensor, ...]:
        """See `runner.Model`."""
        return share(self._parameters)

    def fingerprint(self) -> str:
        """The base's digest from the weights in memory now; reads all of them."""
        return fingerprint(self._stored, self.directory)

    def open(self, config: EngineConfig) -> Runner:
        """See `runner.Model`."""
        return EncoderRunner(self, config)

    def linear_weight(self, module: str) -> Tensor:
        """The weight of a linear module or a convolution of the base, unpacked, on the CPU."""
        site: Any = self._module.get_submodule(module)
        return dense_weight(site.base).cpu()


@final
class EncoderRunner:
    """Computes the inputs of a step together; what one becomes does not wait for the others' tokens."""

    kv_block_tokens = 1
    shares_prefixes = False
    idle_work_proceeds = False
    kv_bytes = 0

    def __init__(self, model: EncoderModel, config: EngineConfig) -> None:
        """See `EncoderModel.open`."""
        self._model = model
        self._banks = LoraBanks(model.sites, config.device_budget_bytes, model.dtype, model.device)
        reader = AdapterReader(model.sites, model.geometry, model.dtype, model.linear_weight)
        self.memory = AdapterMemory(reader, self._banks, config.device_budget_bytes)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk], place_of: PlaceOf, *, all_logits: bool = False) -> StepLogits:
        """See `Runner`; every chunk is a whole input."""
        placed = [(chunk.sequence, place_of(chunk.sequence)) for chunk in chunks]
        placed.sort(key=lambda entry: self._order(*entry))
        encoded: list[tuple[TokenSequence, Tensor]] = []
        for _, group in groupby(placed, lambda entry: self._model.forward.batch_of(entry[0].request)):
            batch = list(group)
            for (sequence, place), rows in zip(batch, self._forward(batch), strict=True):
                wanted = sequence.request.encode
                pooled = pool(rows.float(), wanted.pooling if wanted else None)
                encoded.append((sequence, projected(pooled, place).cpu()))
        return StepLogits(torch.empty(0, 0), (), [], tuple(encoded))

    def _order(self, sequence: TokenSequence, place: AdapterPlace | None) -> tuple[Any, ...]:
        own = self._model.forward.order(sequence.request)
        return (own, place is None, place.position if place else ())

    def _forward(self, placed: Sequence[tuple[TokenSequence, AdapterPlace | None]]) -> list[Tensor]:
        current, requests = self._model.current, [sequence.request for sequence, _ in placed]
        rows = adapted_rows([(len(sequence.tokens), place) for sequence, place in placed])
        if rows.lora.chunks or rows.runs:
            current.kernels = build_site_kernels(self._banks, rows)
            current.modules = build_module_changes(self._model.sites, rows)
        try:
            return self._model.forward.run(requests)
        finally:
            current.kernels = current.modules = None

    def draw(
        self, rows: Sequence[Tensor], samplings: Sequence[Sampling], uniforms: Sequence[float]
    ) -> list[int]:
        """Never asked for: nothing is continued here."""
        raise NotImplementedError

    def warm(self) -> bool:
        """See `runner.Runner`."""
        return False

    def copy_kv(self, copy: PrefixCopy) -> None:
        """Never asked for: nothing is kept from step to step."""
        raise NotImplementedError(copy)

    def close(self) -> None:
        """Nothing but memory, which goes with the object."""


def projected(rows: Tensor, place: AdapterPlace | None) -> Tensor:
    """`[N, width]` float32 to what the adapter's head makes of it, `[N, outputs]`; as it is without one."""
    for op in place.ops.get(CLASSIFIER, ()) if place else ():
        if isinstance(op, Project):
            return functional.linear(rows, op.weight, op.bias)
    return rows
