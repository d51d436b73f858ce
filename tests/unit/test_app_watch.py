"""The watch of the engine ends when it is cancelled, whatever arrives at that moment."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from finetuned_service.app import Server


@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_while_the_answer_arrives(turns: int):
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def inspect() -> object:
        return await answer

    server = object.__new__(Server)
    server.engine = SimpleNamespace(inspect=inspect)
    server._health = SimpleNamespace(set=lambda name, *, serving: None)
    watch = asyncio.create_task(server._watch_engine())
    await asyncio.sleep(0.01)
    answer.set_result(object())
    for _ in range(turns):
        await asyncio.sleep(0)
    watch.cancel()
    await asyncio.wait({watch}, timeout=0.5)
    assert watch.cancelled()
