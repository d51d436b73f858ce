"""A beginning a bit apart: how far the smallest difference that float32 knows carries a run, and so what another order of
additions may come to.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WAYS = 4
"""One does not tell: of runs that begin a bit apart some part after 15 steps, others after 150, and others never."""


def write_nudged(initial: Path, nudged: Path, way: int) -> None:
    """The tensors of a safetensors file, as `nudge` has them."""
    save_file({name: nudge(tensor, way) for name, tensor in load_file(initial).items()}, nudged)


def nudge(tensor: Tensor, way: int) -> Tensor:
    """Each number as the next one of its type: `2**way` of them up, as many down, and so on.

    A zero stays: what is next to it vanishes in the first step.
    """
    flat = tensor.flatten()
    up = torch.arange(flat.numel()) >> way & 1 == 0
    to = torch.where(up, torch.inf, -torch.inf).to(flat.dtype)
    return torch.where(flat == 0, flat, torch.nextafter(flat, to)).view_as(tensor)
