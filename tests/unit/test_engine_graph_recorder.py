"""Capturing on a GPU that is not the first one, with a driver that only notes what it is asked."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from finetuned_service.engine.graph_recorder import CudaRecorder

DEVICE = torch.device("cuda", 1)


@dataclass(eq=False)
class Stream:
    device: torch.device

    def wait_stream(self, other: Stream) -> None:
        assert other.device == self.device


@dataclass
class Driver:
    """A thread's current device, and the current stream of each."""

    device: int = 0
    streams: dict[int, Stream] = field(
        default_factory=lambda: {n: Stream(torch.device("cuda", n)) for n in (0, 1)}
    )
    captured_on: list[tuple[int, Stream]] = field(default_factory=list)
    fails: bool = False

    def set_stream(self, stream: Stream) -> None:
        self.device, self.streams[stream.device.index] = stream.device.index, stream

    @contextmanager
    def stream(self, stream: Stream) -> Generator[None]:
        device, before = self.device, self.streams[stream.device.index]
        self.set_stream(stream)
        yield
        self.set_stream(before)
        self.device = device

    @contextmanager
    def current(self, device: torch.device) -> Generator[None]:
        before, self.device = self.device, device.index
        try:
            yield
        finally:
            self.device = before

    @contextmanager
    def graph(self, graph: Any, *, pool: Any, stream: Stream, capture_error_mode: str) -> Generator[None]:
        """As torch's, which leaves its stream only where the end of a capture succeeds."""
        device, before = self.device, self.streams[stream.device.index]
        self.set_stream(stream)
        self.captured_on.append((self.device, stream))
        yield
        if self.fails:
            raise RuntimeError("capture was invalidated")
        self.set_stream(before)
        self.device = device


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Graph", (), {"pool": lambda _: 1}))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: driver.streams[device.index])
    monkeypatch.setattr(torch.cuda, "set_stream", driver.set_stream)
    monkeypatch.setattr(torch.cuda, "stream", driver.stream)
    monkeypatch.setattr(torch.cuda, "device", driver.current)
    monkeypatch.setattr(torch.cuda, "graph", driver.graph)
    return driver


def test_what_is_captured_is_launched_on_the_stream_that_is_captured(driver: Driver) -> None:
    usual, launched = driver.streams[1], []

    def compute() -> Any:
        launched.append(driver.streams[1])  # where kernels on tensors of that GPU go
        return torch.zeros(1), torch.zeros(1)

    CudaRecorder(DEVICE).record(compute)
    ((device, stream),) = driver.captured_on
    assert (device, stream.device) == (1, DEVICE)
    assert launched == [stream] * 3
    assert driver.streams[1] is usual


def test_a_capture_that_fails_leaves_the_usual_stream(driver: Driver) -> None:
    driver.fails, usual = True, driver.streams[1]
    with pytest.raises(RuntimeError, match="invalidated"):
        CudaRecorder(DEVICE).record(lambda: (torch.zeros(1), torch.zeros(1)))
    assert driver.streams[1] is usual
