"""What a method of training brings: which parameters train and how they begin, and how its files look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from finetuned_service.adapters.geometry import IN_BLOCK


@dataclass(frozen=True, slots=True)
class Installed:
    """A method put on a base, which is frozen but for what it added."""

    parameters: Mapping[str, nn.Parameter]
    """By the names that they have in the adapter's file (without its prefix), in an order that never changes."""
    switched: tuple[nn.Module, ...] = ()
    """Modules that behave otherwise in training, such as dropout."""
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    """adapter_config.json, but for what the files of all methods say."""
    head: nn.Parameter | None = None
    """The weight that makes logits, where it trains; one of `parameters`."""


def decoder_layers(decoder: Any) -> nn.ModuleList:
    """The repeated layers of a decoder, by the name that its architecture has for them."""
    layers: nn.ModuleList = decoder.h if hasattr(decoder, "h") else decoder.layers
    return layers


def linear_targets(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear modules inside numbered blocks, by their full names, in the model's order."""
    for name, module in model.named_modules():
        if IN_BLOCK.fullmatch(name) and isinstance(module, nn.Linear):
            yield name, module


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of the one that `name` leads to."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)
