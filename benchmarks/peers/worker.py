"""The side of a peer's process: settings as JSON in the first argument, then a command a line, an answer a
line. What the peer prints goes to its log.

    generate {rows: [{token_ids, adapter, temperature, top_p}], new_tokens} -> {seconds, tokens}
    adapter: a directory, or null; temperature: 0 is greedy
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One sequence to generate."""

    token_ids: list[int]
    adapter: str | None
    temperature: float
    top_p: float


Generate = Callable[[Sequence[Row], int], int]
"""End of sequence ignored; greedy where the worker says nothing else: rows and new tokens of each -> tokens generated in all."""


Command = Mapping[str, Any]
Answer = Callable[[Command], Mapping[str, object]]


def serve(start: Callable[[Settings], Generate]) -> None:
    """Answer `generate` until standard input ends."""

    def started(settings: Settings) -> Answer:
        generate = start(settings)

        def timed(command: Command) -> Mapping[str, object]:
            rows = [Row(**row) for row in command["rows"]]
            began = time.perf_counter()
            tokens = generate(rows, command["new_tokens"])
            return {"seconds": time.perf_counter() - began, "tokens": tokens}

        return timed

    answer(started)


def answer(start: Callable[[Settings], Answer]) -> None:
    """Answer commands of any kind until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    handle = start(json.loads(sys.argv[1]))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(handle(json.loads(line))), file=answers, flush=True)
