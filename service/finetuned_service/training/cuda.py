"""What a job process sets up on a GPU before it computes there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finetuned_service.bases.device import resolve_device
from finetuned_service.bases.resident import RESIDENT
from finetuned_service.jobs.events import Notice
from finetuned_service.jobs.memory import MEMORY, private_memory_bytes
from finetuned_service.jobs.process import ReportFunction
from finetuned_service.jobs.task import TaskLimits, TrainTask


def prepare_device(task: TrainTask, report: ReportFunction) -> torch.device:
    """Let this process compute on the task's device: repeatably, within its memory, and on the base that the server
    beside it holds there, where it has told of it. Nothing to do for a CPU.

    Returns:
        The device.

    Raises:
        StartRefused: there is no such device.
        LenderEnded: the server's engine has ended meanwhile.
    """
    device = resolve_device(task.device)
    if device.type != "cuda":
        return device
    torch.cuda.set_device(device)
    compute_repeatably()
    budget_bytes = task.limits.device_budget_bytes
    if budget_bytes:  # what is more raises OutOfMemoryError
        total_bytes = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget_bytes / total_bytes), device)
    MEMORY.device_peak = lambda: torch.cuda.max_memory_reserved(device)
    if task.resident and task.lender:
        try:
            RESIDENT.open(Path(task.base_directory), task.resident, task.lender)
        except RuntimeError as error:
            text = f"the server's base on the GPU could not be opened, so the job loads a copy: {error}"
            report(Notice(severity="WARNING", text=text))
    return device


def compute_repeatably() -> None:
    """Resuming a run bit by bit asks for kernels that add in a fixed order; an operator that has none warns once, and the
    job goes on. (https://docs.pytorch.org/docs/stable/notes/randomness.html; cuBLAS reads its part from
    the environment, see `jobs/process.py`.)
    """
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # Nothing here reads memory that it has not written.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    # cuDNN's attention has no fixed order for its gradients, and would be chosen first in the forward pass alone.
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)


def memory_room(device: torch.device, limits: TaskLimits) -> tuple[int, int]:
    """What the job holds of the memory in which it trains, and what it may hold, in bytes: its own on a CPU; on a GPU what
    torch has of it there, and what is free besides.
    """
    if device.type == "cpu":
        return private_memory_bytes(), limits.memory_budget_bytes
    held_bytes = torch.cuda.memory_allocated(device)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    allowed_bytes = held_bytes + free_bytes
    return held_bytes, min(allowed_bytes, limits.device_budget_bytes or allowed_bytes)


def free_unused_device_memory() -> None:
    """Give back to the GPU what torch keeps of it after a part of a job that needed much; serving may want it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
