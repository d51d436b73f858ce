"""Stands for what captures graphs on a GPU: a replay computes again, into the same tensors."""

from __future__ import annotations

from collections.abc import Callable

from finetuned_service.engine.graph_recorder import Outputs


class FakeRecording:
    def __init__(self, compute: Callable[[], Outputs], replays: list[None]) -> None:
        self._compute, self._replays = compute, replays
        self.outputs = compute()

    def replay(self) -> None:
        self._replays.append(None)
        for kept, computed in zip(self.outputs, self._compute(), strict=True):
            kept.copy_(computed)


class FakeRecorder:
    """Counts captures and replays; from the `fails_at`th capture on there are none."""

    def __init__(self, fails_at: int = 10**9) -> None:
        self.captures = 0
        self.replays: list[None] = []
        self._fails_at = fails_at
        self.on_capture: Callable[[], object] = lambda: None

    def record(self, compute: Callable[[], Outputs]) -> FakeRecording:
        self.captures += 1
        self.on_capture()
        if self.captures >= self._fails_at:
            raise RuntimeError("no capture today")
        return FakeRecording(compute, self.replays)
