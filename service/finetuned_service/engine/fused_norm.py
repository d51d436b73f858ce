"""RMS norm (Zhang and Sennrich 2019) as one kernel, where transformers launches eight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

RMS_NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "SmolLM3RMSNorm"})
"""transformers' classes that compute exactly this. Others of a like name do not (Gemma adds 1)."""


class FusedRmsNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32 inside; in 16 bits rounded once, at the end."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: `[..., d]`; its shape and dtype."""
        return torch.rms_norm(x, self.weight.shape, self.weight, self.eps)


def fuse_norms(model: nn.Module) -> None:
    """Put FusedRmsNorm in the place of every norm that computes the same, in place."""
    found = [(name, module) for name, module in model.named_modules() if type(module).__name__ in RMS_NORMS]
    for name, module in found:
        norm: Any = module
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, FusedRmsNorm(norm.weight, norm.variance_epsilon))
