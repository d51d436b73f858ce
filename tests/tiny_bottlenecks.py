"""Bottlenecks by their formula, put on transformers' own models: what ours are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class PlainBottleneck(nn.Module):
    """A module of a post-norm encoder, and a bottleneck with GELU on what it returns."""

    def __init__(self, base: nn.Module, arrays: Mapping[str, Tensor]) -> None:
        """Args: arrays: by their names in an adapter's file, from `adapter_` on."""
        super().__init__()
        self.base = base
        for part in ("down", "up"):
            weight, bias = arrays[f"adapter_{part}.weight"], arrays[f"adapter_{part}.bias"]
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            with torch.no_grad():
                linear.weight.copy_(weight)
                linear.bias.copy_(bias)
            setattr(self, part, linear)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output: Tensor = self.base(*args, **kwargs)
        assert isinstance(output, Tensor)
        return output + self.up(functional.gelu(self.down(output)))


def add_bottlenecks(
    model: nn.Module, arrays: Mapping[str, Tensor], prefix: str = ""
) -> dict[str, nn.Parameter]:
    """Put those in their places whose arrays are there, by their names in an adapter's file without its prefix.

    Args:
        model: of transformers; changed in place.
        arrays: others than bottlenecks' are left out.
        prefix: of the encoder in the model.

    Returns:
        what trains, by the same names.
    """
    by_module: dict[str, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        module, found, part = name.partition(".adapter_")
        if found:
            by_module.setdefault(module, {})[f"adapter_{part}"] = array
    trained: dict[str, nn.Parameter] = {}
    # Inner modules first: what is outside wraps what they have become.
    for module in sorted(by_module, key=len, reverse=True):
        made = PlainBottleneck(model.get_submodule(prefix + module), by_module[module])
        model.set_submodule(prefix + module, made)
        for part in ("down", "up"):
            for kind, parameter in getattr(made, part).named_parameters():
                trained[f"{module}.adapter_{part}.{kind}"] = parameter
    return trained
