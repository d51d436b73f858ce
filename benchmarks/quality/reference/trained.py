"""What was seen of a run of transformers' Trainer or of who is made of it, and what it comes to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from benchmarks.quality.order import Order, Outcome

QUIET: Mapping[str, Any] = {
    "use_cpu": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
"""Arguments of a Trainer that does nothing but train."""


@dataclass(slots=True)
class Trained:
    """What was seen of training."""

    losses: list[float] = field(default_factory=list[float])
    """Of every step, unrounded."""
    seconds: float = 0.0


class Clock(TrainerCallback):
    """From the first step's begin to the last one's end."""

    def __init__(self, trained: Trained) -> None:
        self._trained, self._began = trained, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trained.seconds = time.perf_counter() - self._began


def outcome(
    order: Order,
    trained: Trained,
    parameters: Mapping[str, nn.Parameter],
    dtype: torch.dtype,
    predictions: dict[str, Any],
) -> Outcome:
    """Of a run that has ended; writes what was trained into the order's directory, in `dtype`, to know its size."""
    file = Path(order.directory) / "trained.safetensors"
    save_file({name: p.detach().to(dtype).clone().contiguous() for name, p in parameters.items()}, file)
    return Outcome(
        trained.losses,
        trained.seconds,
        sum(parameter.numel() for parameter in parameters.values()),
        file.stat().st_size,
        predictions,
    )
