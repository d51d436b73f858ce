"""GPT-2's linear modules (transformers' `Conv1D`, weight [in, out]) as the `nn.Linear` that everything else knows.

The checkpoint keeps its form, so that transformers and PEFT read the base and its adapters. Only the module in memory
is another one: its weight is a view of the mapped one with the axes turned, no copy.
"""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D


def replace_conv1d(model: nn.Module) -> None:
    """Put an `nn.Linear` in the place of every Conv1D of a model, in place, under the same name."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, _linear(module))


def _linear(module: Conv1D) -> nn.Linear:
    in_features, out_features = module.weight.shape
    linear = nn.Linear(in_features, out_features, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().T, requires_grad=module.weight.requires_grad)
    linear.bias = module.bias
    return linear.train(module.training)
