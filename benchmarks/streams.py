"""Closed-loop streams: each asks for its next reply when the last one is complete. What users of a busy
server see, between one token and the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetuned import AsyncClient

from benchmarks.figures import quantile


@dataclass(slots=True)
class Observed:
    """Times between tokens: a message with k tokens that came t after the one before counts k times t / k."""

    gaps_seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def gap_ms(self, share: float) -> float:
        """The time that `share` of all tokens did not exceed."""
        return 1000 * quantile(self.gaps_seconds, share)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


async def closed_loop(
    client: AsyncClient,
    streams: int,
    draw: Callable[[], dict[str, Any]],
    stop: asyncio.Event,
    *,
    pause_share: float = 0.0,
) -> Observed:
    """Keep `streams` requests in flight until `stop`, or until `draw` has no more (IndexError).

    Args:
        client: to ask.
        streams: how many at once.
        draw: arguments of the next request, for `client.stream`.
        stop: ends all streams, also within a reply.
        pause_share: the part of the time in which a stream waits between its replies.
    """
    observed = Observed()
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        loops = [group.create_task(_loop(client, draw, pause_share, observed)) for _ in range(streams)]
        end = group.create_task(_cancel(loops, stop))
        await asyncio.wait(loops)
        observed.seconds = time.perf_counter() - began
        end.cancel()
    return observed


async def _cancel(loops: Sequence[asyncio.Task[None]], stop: asyncio.Event) -> None:
    await stop.wait()
    for loop in loops:
        loop.cancel()


async def closed_loop_for(
    client: AsyncClient,
    streams: int,
    draw: Callable[[], dict[str, Any]],
    seconds: float,
    *,
    pause_share: float = 0.0,
) -> Observed:
    """As `closed_loop`, for a time."""
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    return await closed_loop(client, streams, draw, stop, pause_share=pause_share)


async def _loop(
    client: AsyncClient, draw: Callable[[], dict[str, Any]], pause_share: float, observed: Observed
) -> None:
    while True:
        try:
            arguments = draw()
        except IndexError:
            return
        began = time.perf_counter()
        before = None
        async with await client.stream(**arguments) as stream:
            async for delta in stream:
                now, tokens = time.perf_counter(), len(delta.token_ids)
                observed.tokens += tokens
                if before is not None and tokens:
                    observed.gaps_seconds += [(now - before) / tokens] * tokens
                before = now
        if pause_share:
            await asyncio.sleep((time.perf_counter() - began) * pause_share / (1 - pause_share))
