"""The device that a base and everything computed with it are on: chosen once a process, from one setting."""

from __future__ import annotations

import torch

from finetuned_service.errors import StartRefused

CPU = torch.device("cpu")


def resolve_device(wanted: str) -> torch.device:
    """The device that `Settings.device` names; `auto` is the first CUDA device where torch finds one, else the CPU.

    Raises:
        StartRefused: torch finds no such device; the message says which there are.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise StartRefused(
            f"device {wanted!r} is asked for, and torch {torch.__version__} finds no CUDA device; it {built}. Install "
            "a build of torch for CUDA and the driver, or choose device 'cpu' or 'auto'"
        )
    index = int(wanted.partition(":")[2] or 0)
    count = torch.cuda.device_count()
    if index >= count:
        raise StartRefused(
            f"device {wanted!r} is asked for; found: {count} CUDA devices, 'cuda:0' to 'cuda:{count - 1}'"
        )
    return torch.device("cuda", index)


def device_name(device: torch.device) -> str:
    """For people: `cpu`, or a GPU's model."""
    return "cpu" if device.type == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}"


def instruction_set(device: torch.device) -> str:
    """What numbers depend on besides the code: the processor's widest vectors, or a GPU's model and its generation."""
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}"


def usual_prefill_tokens(device: torch.device) -> int:
    """Prompt tokens of one step: about so many keep the device busy, and sequences that decode wait no longer for it."""
    return 512 if device.type == "cpu" else 8192
