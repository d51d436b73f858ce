"""Bottleneck adapters (Houlsby et al. 2019, Pfeiffer et al. 2021; parallel: He et al. 2022) at layers and sublayers.

Parameters are float32 and products run in the base's dtype, as in `lora.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from finetuned_service.adapters.layouts.bottleneck import DOWN, DOWN_BIAS, UP, UP_BIAS, BottleneckLayout
from finetuned_service.adapters.site_ops import MapOutput
from finetuned_service.bases.load import dtype_of
from finetuned_service.engine.module_change import bottleneck
from finetuned_service.jobs.methods.bottleneck import bottleneck_layout
from finetuned_service.jobs.specs import BottleneckSettings
from finetuned_service.training.methods.method import Installed, replace_module


class BottleneckModule(nn.Module):
    """Takes the place of a layer, a sublayer or its last product, and adds to what it returns.

    Args:
        base: of transformers; returns `[1, T, hidden]` or a tuple that begins with it.
        layout: of the adapter's files.
        hidden: the width of what it returns.
        dtype: the base's.
    """

    def __init__(self, base: nn.Module, layout: BottleneckLayout, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        self._layout = layout
        exact, width = torch.promote_types(dtype, torch.float32), layout.width
        self.down = nn.Parameter(torch.empty(width, hidden, dtype=exact))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.down_bias = nn.Parameter(torch.zeros(width, dtype=exact))
        # From zero: training starts from the base itself.
        self.up = nn.Parameter(torch.zeros(hidden, width, dtype=exact))
        self.up_bias = nn.Parameter(torch.zeros(hidden, dtype=exact))

    @property
    def parts(self) -> dict[str, nn.Parameter]:
        """By their names in the file."""
        return {DOWN: self.down, DOWN_BIAS: self.down_bias, UP: self.up, UP_BIAS: self.up_bias}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers calls the module."""
        output = self.base(*args, **kwargs)
        if isinstance(output, tuple):
            return (self._added(args, kwargs, output[0]), *output[1:])
        return self._added(args, kwargs, output)

    def _added(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        down, down_bias, up, up_bias = (parameter.to(output.dtype) for parameter in self.parts.values())
        layout = self._layout
        op = MapOutput(down, down_bias, up, up_bias, layout.activation, layout.scaling, layout.parallel)
        source: Tensor = (args[0] if args else kwargs["hidden_states"]) if op.parallel else output
        return output + bottleneck(op, source)


def install(model: Any, settings: BottleneckSettings) -> Installed:
    """A bottleneck at each layer or sublayer that resolved settings name."""
    layout = bottleneck_layout(settings)
    parameters: dict[str, nn.Parameter] = {}
    hidden, dtype = int(model.config.hidden_size), dtype_of(model)
    for name in settings.target_modules:
        module = BottleneckModule(model.get_submodule(name), layout, hidden, dtype)
        replace_module(model, name, module)
        parameters |= {f"{name}.{part}": parameter for part, parameter in module.parts.items()}
    return Installed(parameters, config=layout.spelled_out(settings.target_modules))
