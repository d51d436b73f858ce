"""Inputs encoded by the engine that serves: what counts is what users will get."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetuned_service.engine.choose import load_model
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Encoded, Failed, Submit
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import from_wire
from finetuned_service.jobs.pace import Phase

_RUNNING = 64
_AT_ONCE = 2 * _RUNNING
"""Requests that the engine has: those of a step and those of the next. All the images of a job would be too many."""


def encoded(
    base_directory: Path,
    requests: Iterable[Submit],
    threads: int,
    device: str = "cpu",
    phase: Phase | None = None,
) -> dict[int, NDArray[np.float32]]:
    """What each request becomes, by its number: `[1, width]` or `[tokens, width]`, or what its adapter's head
    makes of that. They are asked for as the engine has room for them. `phase` has a step for each.

    Raises:
        Stopped: the process was asked to stop.
        FinetunedError: an adapter cannot be applied.
    """
    model = load_model(base_directory, device=device)
    config = EngineConfig(
        str(base_directory),
        threads=threads,
        max_running_sequences=_RUNNING,
        kv_capacity_tokens=_RUNNING * model.context_tokens,
    )
    found: dict[int, NDArray[np.float32]] = {}
    waiting, asked = iter(requests), 0
    with OfflineEngine(model, config) as engine:
        while True:
            before = len(found)
            more = list(islice(waiting, _AT_ONCE - (asked - before)))
            engine.deliver(*more)
            asked += len(more)
            if before == asked:
                return found
            for event in engine.step():
                if isinstance(event, Failed):
                    raise from_wire(event.error)
                if isinstance(event, Encoded):
                    found[event.request_id] = np.frombuffer(event.data, "<f4").reshape(-1, event.width)
            if phase is not None:
                phase.advance(steps=len(found) - before)
