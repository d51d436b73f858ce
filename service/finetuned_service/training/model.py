"""The base with a method of training on it.

The base's weights stay where they are: `from_pretrained` in the stored dtype keeps every tensor in the
mapping of model.safetensors, whose pages the server and all jobs share. A cast would be a private copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetuned_service.adapters.geometry import NO_GEOMETRY, BaseGeometry
from finetuned_service.bases.conv1d import replace_conv1d
from finetuned_service.bases.device import CPU
from finetuned_service.bases.load import dense_weight, load_base
from finetuned_service.bases.resident import put_on
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training import attention
from finetuned_service.training.activations import checkpoint_layers, kept_bytes
from finetuned_service.training.fused import fuse
from finetuned_service.training.loss import supervised_cross_entropy, token_losses
from finetuned_service.training.methods import Installed, install
from finetuned_service.training.methods.method import decoder_layers
from finetuned_service.training.native.kernels import Kernels
from finetuned_service.training.norm import replace_norms
from finetuned_service.training.packing import PackedRows, pack


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """A frozen causal LM whose only trainable parameters are those of the method on it."""

    decoder: nn.Module
    frozen_head: Tensor
    """[vocabulary, hidden]: the base's weight that makes logits."""
    method: Installed
    kernels: Kernels | None = None
    """The compiled passes, where this machine and the base have them."""

    @property
    def head(self) -> Tensor:
        """[vocabulary, hidden]: the weight that makes logits now."""
        trained = self.method.head
        return self.frozen_head if trained is None else trained.to(self.frozen_head.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """See `Trainable`."""
        return self.frozen_head.dtype

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable parameters, always in the same order, by their names in the adapter's file."""
        yield from self.method.parameters.items()

    def loss_of(self, rows: Sequence[EncodedRow], scale: float) -> Tensor:
        """See `Trainable`."""
        return self.loss(pack(rows, self.frozen_head.device), scale)

    def loss(self, rows: PackedRows, scale: float) -> Tensor:
        """`scale` times the summed loss of the supervised tokens, in nats; a scalar."""
        return supervised_cross_entropy(self._predicting(rows), self.head, rows.targets, scale, self.kernels)

    def log_probabilities(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Of the supervised tokens of each row, summed, in nats: [rows]. Float32, float64 if the base is."""
        packed = pack(rows, self.frozen_head.device)
        losses = token_losses(self._predicting(packed), self.head, packed.targets, kernels=self.kernels)
        parts = losses.split([row.supervised_tokens for row in rows])
        return -torch.stack([part.sum() for part in parts])

    def _predicting(self, rows: PackedRows) -> Tensor:
        """The last hidden states where the next token is supervised, [N, d]."""
        out = self.decoder(
            input_ids=rows.token_ids, position_ids=rows.position_ids, use_cache=False, layout=rows.layout
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden.index_select(0, rows.predicting)

    def checkpoint_activations(self) -> None:
        """Keep less of each layer for the gradient, and compute more; once."""
        checkpoint_layers(self._layers)

    def kept_bytes(self, tokens: int) -> int:
        """About how much the layers keep of so many tokens, unless activations are checkpointed."""
        return kept_bytes(self._layers, tokens)

    @property
    def _layers(self) -> nn.ModuleList:
        return decoder_layers(self.decoder)

    def train(self, mode: bool) -> None:  # noqa: FBT001 - as nn.Module.train
        """Dropout of the method on or off; the base has none that trains."""
        for module in self.method.switched:
            module.train(mode)


def load_model(
    directory: Path, spec: TrainSpec, cache_directory: str | None = None, device: torch.device = CPU
) -> AdaptedModel:
    """Map a base and put the method of a resolved spec on it.

    Args:
        directory: a base's.
        spec: resolved.
        cache_directory: where compiled passes for the CPU are kept, as `library_path` takes it; None computes with
            plain torch everywhere.
        device: where the base is, or goes, and the method with it.
    """
    attention.register()
    model: Any = load_base(directory, attn_implementation=attention.IMPLEMENTATION, device=device)
    compiled = cache_directory is not None and model.dtype is torch.bfloat16 and device.type == "cpu"
    kernels = Kernels.load(cache_directory or "") if compiled else None
    return adapt(model, spec, kernels, BaseGeometry.of_files(directory))


def adapt(
    model: Any, spec: TrainSpec, kernels: Kernels | None = None, geometry: BaseGeometry = NO_GEOMETRY
) -> AdaptedModel:
    """Freeze a transformers causal LM and put a method on it; see `load_model`.

    The model must use `attention.IMPLEMENTATION`; the method goes where it is. `kernels` are for the layers and the
    head in bfloat16; `geometry` is of its files, for methods that train parameters of its own.
    """
    model.requires_grad_(requires_grad=False)
    model.eval()
    replace_conv1d(model)
    replace_norms(model)
    torch.manual_seed(spec.optimization.seed)
    device = model.device
    method = install(model, spec, geometry)
    put_on(model, device)
    head = dense_weight(model.get_output_embeddings())
    if kernels is not None:
        fuse(decoder_layers(model.get_decoder()), kernels)
    return AdaptedModel(model.get_decoder(), head, method, kernels if head.dtype is torch.bfloat16 else None)
