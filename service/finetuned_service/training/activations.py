"""Activation checkpointing (Chen et al. 2016): a layer keeps its input alone and computes the rest again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from finetuned_service.training.fused import FusedLayer

_KEPT_FUSED, _KEPT_PLAIN = 0.6, 1.5
"""Of the inputs and outputs of a layer's linear modules, how much it keeps for its gradient (measured on
SmolLM2-135M: 11.5 KB and 30 KB a token)."""


def checkpoint_layers(layers: nn.ModuleList) -> None:
    """Let every layer keep its input alone. The gradient stays the same to the last bit, dropout included."""
    for index, layer in enumerate(layers):
        if isinstance(layer, FusedLayer):
            layer.checkpointing = True
            layer.plain = CheckpointedLayer(layer.plain)
        else:
            layers[index] = CheckpointedLayer(layer)


def kept_bytes(layers: nn.ModuleList, tokens: int) -> int:
    """About how much the layers keep of so many tokens without checkpointing."""
    return round(sum(_kept_of_layer(layer) for layer in layers) * tokens)


class CheckpointedLayer(nn.Module):
    """Takes the place of a layer."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, hidden_states: Tensor, *more: Any, **others: Any) -> Tensor:
        """As transformers calls a decoder layer."""
        out: Any = checkpoint(self.plain, hidden_states, *more, use_reentrant=False, **others)
        return out


def _kept_of_layer(layer: nn.Module) -> float:
    # Those that LoRA stands around are in here too, each once.
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    share = _KEPT_FUSED if isinstance(layer, FusedLayer) else _KEPT_PLAIN
    return share * sum(
        (linear.in_features + linear.out_features) * max(2, linear.weight.element_size())
        for linear in linears
    )
