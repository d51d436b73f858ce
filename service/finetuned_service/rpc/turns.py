"""Who works when: calls that would wait for each other in threads wait here instead, where waiting costs none.

The threads of `asyncio.to_thread` are few and belong to all tenants: what takes minutes has threads of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

_LONG_THREADS = 4
_LONG_THREADS_OF_A_TENANT = 2

_P = ParamSpec("_P")
_T = TypeVar("_T")


_under_way = set[asyncio.Task[Any]]()
"""The loop itself holds no task that nobody waits for."""


async def to_the_end(work: Coroutine[Any, Any, _T]) -> _T:
    """What the work makes; it goes on although its caller leaves, as a thread does in any case."""
    task = asyncio.create_task(work)
    _under_way.add(task)
    task.add_done_callback(_let_go)
    return await asyncio.shield(task)


def _let_go(ended: asyncio.Task[Any]) -> None:
    _under_way.discard(ended)
    if not ended.cancelled():
        ended.exception()  # told to whoever still waits; else asyncio would log it, with what it says of somebody's rows


class Turns:
    """Lets `at_once` calls work under each key; others wait, in the order in which they came."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._turns = WeakValueDictionary[str, asyncio.Semaphore]()

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Do the work when it is its turn; a call that is cancelled meanwhile gives the turn back when its work ends."""
        turn = self._turns.get(key) or self._turns.setdefault(key, asyncio.Semaphore(self._at_once))

        async def in_turn() -> _T:
            try:
                return await work()
            finally:
                turn.release()

        await turn.acquire()
        return await to_the_end(in_turn())


class LongCalls:
    """Threads for calls that may take minutes. A tenant has half of them at most, so that there are some for others."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LONG_THREADS, thread_name_prefix="long-call")
        self._turns = Turns(_LONG_THREADS_OF_A_TENANT)

    async def run(self, tenant: str, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """`asyncio.to_thread`, in one of these threads."""

        async def work() -> _T:
            bound = partial(copy_context().run, partial(call, *args, **kwargs))
            return await asyncio.get_running_loop().run_in_executor(self._threads, bound)

        return await self._turns.run(tenant, work)
