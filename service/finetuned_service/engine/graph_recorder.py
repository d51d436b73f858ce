"""What captures a computation on a GPU once, so that all its launches can be repeated as one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, final

import torch
from torch import Tensor

Outputs = tuple[Tensor, Tensor]


class Recording(Protocol):
    """One captured computation."""

    @property
    def outputs(self) -> Outputs:
        """The same tensors each time; what they hold is the last replay's."""
        ...

    def replay(self) -> None:
        """Compute again, from what the tensors that it reads hold now."""
        ...


class Recorder(Protocol):
    """Captures the computations of one engine."""

    def record(self, compute: Callable[[], Outputs]) -> Recording:
        """Capture what `compute` launches; it must launch the same each time, and is called some times.

        Raises:
            RuntimeError: if it cannot be captured.
        """
        ...


def recorder_of(device: torch.device) -> Recorder | None:
    """None where computations are not captured."""
    return CudaRecorder(device) if device.type == "cuda" else None


@final
class CudaRecorder:
    """CUDA graphs, which share one pool of memory: only one is replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, compute: Callable[[], Outputs]) -> Recording:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        beside = torch.cuda.Stream(self._device)
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(beside):
            for _ in range(2):  # libraries choose kernels and take workspaces at their first calls
                compute()
        torch.cuda.current_stream(self._device).wait_stream(beside)
        with _no_collection(), self._capturing(graph, beside):
            outputs = compute()
        self._pool = self._pool or graph.pool()
        return _CudaRecording(graph, outputs)

    @contextmanager
    def _capturing(self, graph: Any, stream: torch.cuda.Stream) -> Generator[None]:
        """Torch captures on a stream of the current device unless it is told one, and stays on that stream where a capture
        fails.
        """
        current = torch.cuda.current_stream(self._device)
        try:
            # Adapters are loaded by another thread meanwhile.
            with (
                torch.cuda.device(self._device),
                torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
            ):
                yield
        finally:
            torch.cuda.set_stream(current)


@contextmanager
def _no_collection() -> Generator[None]:
    """Garbage waits: freeing what a GPU holds, as an older graph does, is forbidden to a thread that captures, and ends
    the process where it happens in a destructor.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@final
class _CudaRecording:
    def __init__(self, graph: Any, outputs: Outputs) -> None:
        self._graph = graph
        self.outputs = outputs

    def replay(self) -> None:
        self._graph.replay()
