"""The base in memory: one frozen Hugging Face model, its adapter sites, one forward for a packed batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.conv1d import replace_conv1d
from finetuned_service.bases.device import CPU, device_name
from finetuned_service.bases.load import dense_weight, load_base, stored_tensors
from finetuned_service.bases.manifest import canonical_config, read_config
from finetuned_service.bases.resident import share
from finetuned_service.bases.shared_tensor import SharedTensor
from finetuned_service.digests import tensors_digest
from finetuned_service.engine import attention
from finetuned_service.engine.attention_rows import PackedRows
from finetuned_service.engine.batch import StepBatch
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.fused_norm import fuse_norms
from finetuned_service.engine.kv_cache import KvArena
from finetuned_service.engine.lora_bank import LoraBanks
from finetuned_service.engine.module_change import RowChange, install_module_sites
from finetuned_service.engine.runner import Runner
from finetuned_service.engine.site_kernel import (
    AdaptedRows,
    LinearKernel,
    build_module_changes,
    build_site_kernels,
)
from finetuned_service.engine.sites import CurrentStep, SiteKernel, install_sites
from finetuned_service.text.tokenizer import end_tokens

_SAFETENSORS_DTYPE: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


class EngineModel:
    """Owns the base. Its weights are never written; adapters act only in `forward`, only on their rows."""

    encodes = False

    def __init__(self, module: Any, directory: Path, why_plain: str = "") -> None:
        """See `load`."""
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        self.config: Any = module.config
        self.end_token_ids = end_token_ids(module, directory)
        self._stored = stored_tensors(module, directory)
        self._parameters = list(module.named_parameters())
        replace_conv1d(module)
        if self.device.type == "cuda":
            fuse_norms(module)  # a launch costs more than what a norm computes
        self.directory = directory
        self._why_plain = why_plain
        self.geometry = BaseGeometry.of_files(directory)
        self._module = module
        self._current = CurrentStep()
        install_module_sites(module, self.geometry, self._current)
        self.sites = install_sites(module, self._current)
        self._kernels: tuple[AdaptedRows, list[LinearKernel | None], dict[str, RowChange]] | None = None

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device = CPU,
        why_plain: str = "",
    ) -> EngineModel:
        """The base in `directory`, in the dtype it is stored in unless `dtype` says another.

        As stored, the weights of a base on the CPU stay mapped from model.safetensors: pages shared with every
        process that maps the same file. Another dtype is a private copy. `why_plain` says why no faster path computes it.

        Raises:
            Unimplemented: if its attention has a feature that the engine does not compute.
        """
        attention.register()
        module: Any = load_base(
            directory, dtype=dtype, attn_implementation=attention.IMPLEMENTATION, device=device
        )
        attention.require_full_attention(module)
        module.requires_grad_(requires_grad=False)
        return cls(module, directory, why_plain)

    @property
    def path(self) -> str:
        """See `runner.Model`."""
        because = f"; not native: {self._why_plain}" if self._why_plain else ""
        return f"plain PyTorch, {self.dtype} on {device_name(self.device)}{because}"

    def open(self, config: EngineConfig) -> Runner:
        """See `runner.Model`."""
        from finetuned_service.engine.plain import PlainRunner  # noqa: PLC0415 - it holds an EngineModel

        return PlainRunner(self, config)

    @property
    def context_tokens(self) -> int:
        return int(self.config.max_position_embeddings)

    @property
    def vocabulary_tokens(self) -> int:
        return int(self.config.vocab_size)

    @property
    def size_bytes(self) -> int:
        """All weights as stored, tied ones once."""
        return sum(read().nbytes for read in self._stored.values())

    def make_arena(self, capacity_tokens: int) -> KvArena:
        """An arena in the shape of this model's keys and values."""
        config = self.config
        heads = int(config.num_attention_heads)
        return KvArena(
            layers=int(config.num_hidden_layers),
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            capacity_tokens=capacity_tokens,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def forward(self, batch: StepBatch, banks: LoraBanks) -> Tensor:
        """One step: writes the rows' keys and values, returns logits `[S, vocabulary]` in the base's dtype."""
        self._set_current(batch.adapted, banks)
        try:
            output = self._module(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=batch.logit_rows,
                **{attention.ROWS_ARGUMENT: batch.attention},
            )
        finally:
            self._current.kernels = self._current.modules = None
        logits: Tensor = output.logits[0]
        return logits

    def share(self) -> tuple[SharedTensor, ...]:
        """See `runner.Model`."""
        return share(self._parameters)

    @torch.inference_mode()
    def decode(
        self,
        token_ids: Tensor,
        position_ids: Tensor,
        rows: PackedRows,
        kernels: Sequence[SiteKernel | None] | None,
    ) -> Tensor:
        """See `decode_graphs.Forward`."""
        self._current.kernels = kernels
        try:
            output = self._module(
                input_ids=token_ids,
                position_ids=position_ids,
                use_cache=False,
                **{attention.ROWS_ARGUMENT: rows},
            )
        finally:
            self._current.kernels = None
        logits: Tensor = output.logits[0]
        return logits

    def fingerprint(self) -> str:
        """The base's digest from the weights in memory now; reads all of them."""
        return fingerprint(self._stored, self.directory)

    def linear_weight(self, module: str) -> Tensor:
        """The weight `[out, in]` of a linear module of the base, unpacked, on the CPU."""
        site: Any = self._module.get_submodule(module)
        return dense_weight(site.base).cpu()

    def forget_rows(self) -> None:
        """Let go of what the last step had of its adapters: one of them leaves the device."""
        self._kernels = None

    def _set_current(self, rows: AdaptedRows, banks: LoraBanks) -> None:
        if not rows.lora.decoding and not rows.lora.chunks:
            return
        if self._kernels is None or self._kernels[0] != rows:
            changes = build_module_changes(self.sites, rows)
            self._kernels = (rows, build_site_kernels(banks, rows), changes)
        _, self._current.kernels, self._current.modules = self._kernels


def fingerprint(stored: Mapping[str, Callable[[], Tensor]], directory: Path) -> str:
    """The digest of a base whose tensors `stored` reads from memory, by their names in the file."""
    tensors: list[tuple[str, str, tuple[int, ...], Any]] = []
    for name, read in stored.items():
        tensor = read().detach().cpu().contiguous()
        buffer = tensor.reshape(-1).view(torch.uint8).numpy()
        tensors.append((name, _SAFETENSORS_DTYPE[tensor.dtype], tuple(tensor.shape), buffer))
    return tensors_digest(tensors, canonical_config(read_config(directory)))


def end_token_ids(module: Any, directory: Path) -> frozenset[int]:
    """The tokens that end a reply: those of generation_config.json, else config.json's, as in transformers; and all others
    that the base's files name, since training ends answers with any of them.
    """
    ids = module.generation_config.eos_token_id
    if ids is None:
        ids = module.config.eos_token_id
    named = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return end_tokens(directory).union(named)
