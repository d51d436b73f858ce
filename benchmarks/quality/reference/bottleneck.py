"""Bottlenecks (Houlsby et al. 2019, Pfeiffer et al. 2021) on what modules of transformers return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_DOWN, _UP = "adapter_down", "adapter_up"


class Bottleneck(nn.Module):
    """`x + up(gelu(down(x)))`."""

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        """Args: arrays: `adapter_down.weight` and so on."""
        super().__init__()
        self.adapter_down, self.adapter_up = (
            nn.Linear(arrays[f"{part}.weight"].shape[1], arrays[f"{part}.weight"].shape[0])
            for part in (_DOWN, _UP)
        )
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(arrays[name])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.adapter_up(functional.gelu(self.adapter_down(x)))

    def after(self, _module: nn.Module, _arguments: Any, output: Any) -> Any:
        """As a forward hook of the module that it stands behind."""
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


def near_identity(width: int, inner: int) -> dict[str, Tensor]:
    """What a bottleneck begins with that was not trained (Houlsby et al. 2019, section 3.6): normal numbers of
    deviation 0.01, cut off at two deviations.
    """
    shapes = {f"{_DOWN}.weight": (inner, width), f"{_UP}.weight": (width, inner)}
    biases = {f"{_DOWN}.bias": torch.zeros(inner), f"{_UP}.bias": torch.zeros(width)}
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    for weight in weights.values():
        nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02)
    return weights | biases


def add_bottlenecks(model: nn.Module, arrays: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """One behind each module that the arrays name; returns what trains, by the same names."""
    by_module: dict[str, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        module, found, part = name.partition(".adapter_")
        if found:
            by_module.setdefault(module, {})[f"adapter_{part}"] = array
    trained: dict[str, nn.Parameter] = {}
    for name, parts in by_module.items():
        bottleneck, module = Bottleneck(parts), model.get_submodule(name)
        module.register_forward_hook(bottleneck.after)
        # So that who trains the model's parameters finds them.
        module.add_module("bottleneck", bottleneck)
        trained |= {f"{name}.{part}": parameter for part, parameter in bottleneck.named_parameters()}
    return trained
