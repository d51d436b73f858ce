"""The states of torch's random generators that a step draws from: dropout draws from the device's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from finetuned_service.training.trainable import Parameters

_OF_CPU, _OF_GPU = "generator", "generator_cuda"


def generator_states(model: Parameters) -> dict[str, Tensor]:
    """Uint8, by names of their own: of the CPU, and of the GPU that the model is on."""
    states = {_OF_CPU: torch.get_rng_state()}
    device = _device_of(model)
    if device.type == "cuda":
        states[_OF_GPU] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(model: Parameters, states: Mapping[str, Tensor]) -> None:
    """Put them back; of a device that has no state here (the run was on another) its generator stays."""
    torch.set_rng_state(states[_OF_CPU])
    device = _device_of(model)
    if device.type == "cuda" and _OF_GPU in states:
        torch.cuda.set_rng_state(states[_OF_GPU], device)


def _device_of(model: Parameters) -> torch.device:
    return next(parameter.device for _, parameter in model.named_parameters())
