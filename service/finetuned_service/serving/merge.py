"""Several asynchronous generators as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def merged(sources: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[Item]:
    """Items of all sources as they come. The first failure ends all; leaving early ends all.

    A source is asked for its next item when the one before has been taken: sources that join what comes meanwhile, as
    `EngineStream` does, have few and long ones for a slow reader.
    """
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for item in only:
                yield item
        return
    queue: asyncio.Queue[tuple[Item, asyncio.Event] | Exception | None] = asyncio.Queue()

    async def pump(source: AsyncGenerator[Item]) -> None:
        try:
            async with aclosing(source) as items:
                async for item in items:
                    taken = asyncio.Event()
                    queue.put_nowait((item, taken))
                    await taken.wait()
        except Exception as error:  # noqa: BLE001 - handed to the reader's own task
            queue.put_nowait(error)
        finally:
            # Also when what it waited for was cancelled: the reader must not wait for ever.
            queue.put_nowait(None)

    pumps = [asyncio.create_task(pump(source)) for source in sources]
    try:
        running = len(pumps)
        while running:
            found = await queue.get()
            if found is None:
                running -= 1
            elif isinstance(found, Exception):
                raise found
            else:
                item, taken = found
                yield item
                taken.set()
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
