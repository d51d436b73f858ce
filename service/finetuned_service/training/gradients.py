"""Gradients on a GPU, from kernels that add in a fixed order where there are any."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from finetuned_service.jobs.events import Notice
from finetuned_service.jobs.process import ReportFunction

_REFUSED = "does not have a deterministic implementation"
"""What torch says of an operator that it has been told to refuse."""


@final
class Gradients:
    """`loss.backward()`, repeatable to the bit wherever torch can be.

    Attention's kernels add gradients up in whatever order their threads end, unless torch refuses every operator that
    has no fixed order (`warn_only=False`); told to warn, they do too
    (https://docs.pytorch.org/docs/stable/notes/randomness.html). So all others are refused, until a model needs one.
    A process that asks torch for no order at all, as on a CPU, is left alone.

    Args:
        report: takes a Notice where a run is not repeatable.
    """

    def __init__(self, report: ReportFunction) -> None:
        self._report = report
        self._strict = True

    def add(self, loss: Tensor) -> None:
        """To those of the leaves, as `loss.backward()`.

        Raises:
            RuntimeError: of torch; `accept_any_order` says whether it is worth another try.
        """
        with self._strictly():
            loss.backward()

    def accept_any_order(self, error: RuntimeError) -> bool:
        """Whether it was raised because an operator has no fixed order: it is taken as it is from here on, and a notice
        says so. What was added before it is not whole.
        """
        operator, refused, _ = str(error).partition(_REFUSED)
        if not (refused and self._strict):
            return False
        self._strict = False
        text = (
            f"{operator.strip()} adds numbers in no fixed order on this GPU: training again, or going on from a "
            "checkpoint, gives other bits"
        )
        self._report(Notice(severity="WARNING", text=text))
        return True

    @contextmanager
    def _strictly(self) -> Generator[None]:
        if not (self._strict and torch.are_deterministic_algorithms_enabled()):
            yield
            return
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(mode=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(mode=True, warn_only=warn_only)
