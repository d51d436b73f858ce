"""The watch of the engine ends when it is cancelled, whatever arrives at that moment."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from finetuned_service.app import Server
from finetuned_service.settings import Settings


@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_while_the_answer_arrives(turns: int):
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def inspect() -> object:
        return await answer

    server = object.__new__(Server)
    server.engine = SimpleNamespace(inspect=inspect, leave_time=lambda share: None, device="cpu")
    server._settings, server._job_processes = Settings(), list
    server._health = SimpleNamespace(set=lambda name, *, serving: None)
    watch = asyncio.create_task(server._watch_engine())
    await asyncio.sleep(0.01)
    answer.set_result(object())
    for _ in range(turns):
        await asyncio.sleep(0)
    watch.cancel()
    await asyncio.wait({watch}, timeout=0.5)
    assert watch.cancelled()


@pytest.mark.parametrize(
    ("processes", "device", "share"), [([], "cpu", 0.0), ([4711], "cpu", 0.3), ([4711], "cuda", 0.0)]
)
async def test_the_engine_leaves_time_while_a_job_runs(processes: list[int], device: str, share: float):
    """Told each time, so that an engine that was started again knows."""
    told: list[float] = []

    async def inspect() -> object:
        return object()

    server = object.__new__(Server)
    server.engine = SimpleNamespace(inspect=inspect, leave_time=told.append, device=device)
    server._health = SimpleNamespace(set=lambda name, *, serving: None)
    server._settings, server._job_processes = Settings(job_share=0.3), lambda: processes
    watch = asyncio.create_task(server._watch_engine())
    await asyncio.sleep(0.01)
    watch.cancel()
    await asyncio.wait({watch}, timeout=0.5)
    assert told == [share]
