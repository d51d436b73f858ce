"""IA3 (Liu et al. 2022): a gain for each output of a module, or for each input of a feed-forward's last product.

Gains are float32 and are rounded to the base's dtype in the product, as they will be stored and served.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finetuned_service.adapters.geometry import HEAD, BaseGeometry
from finetuned_service.adapters.layouts.ia3 import VECTOR
from finetuned_service.adapters.lora_config import is_end
from finetuned_service.bases.family import weights_transposed
from finetuned_service.jobs.specs import Ia3Settings
from finetuned_service.training.methods.method import (
    Installed,
    linear_targets,
    replace_module,
)
from finetuned_service.training.methods.parameters import put_saved


class Ia3Linear(nn.Module):
    """Takes the place of a frozen `nn.Linear`: `base(x * gain)` or `base(x) * gain`."""

    def __init__(self, base: nn.Linear, *, scales_input: bool) -> None:
        super().__init__()
        self.base = base
        self.scales_input = scales_input
        shape = (1, base.in_features) if scales_input else (base.out_features, 1)
        # From one: training starts from the base itself.
        self.gain = nn.Parameter(
            torch.ones(shape, dtype=torch.promote_types(base.weight.dtype, torch.float32))
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in]; returns [..., out] in the dtype of x."""
        gain = self.gain.flatten().to(x.dtype)
        out: Tensor = self.base(x * gain) if self.scales_input else self.base(x) * gain
        return out


def install(model: Any, settings: Ia3Settings, geometry: BaseGeometry) -> Installed:
    """IA3 on the modules that resolved settings name, and copies of those to be saved."""
    parameters: dict[str, nn.Parameter] = {}
    feedforward = settings.feedforward_modules or ()
    for name, linear in list(linear_targets(model)):
        if any(is_end(target, name) for target in settings.target_modules):
            module = Ia3Linear(linear, scales_input=any(is_end(end, name) for end in feedforward))
            replace_module(model, name, module)
            parameters[f"{name}.{VECTOR}"] = module.gain
    config: dict[str, object] = {
        "peft_type": "IA3",
        "target_modules": sorted(settings.target_modules),
        "feedforward_modules": sorted(feedforward),
        "fan_in_fan_out": weights_transposed(model.config.to_dict()),
        "init_ia3_weights": True,
    }
    if settings.modules_to_save:
        config["modules_to_save"] = sorted(settings.modules_to_save)
    copies = put_saved(model, settings.modules_to_save, geometry)
    return Installed(parameters | copies, config=config, head=copies.get(f"{HEAD}.weight"))
