"""The side of a peer's process: settings as JSON in the first argument, then a command a line, an answer a
line. What the peer prints goes to its log.

    generate {rows: [{token_ids, adapter}], new_tokens} -> {seconds, tokens}    adapter: a directory, or null
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


Generate = Callable[[Sequence[Row], int], int]
"""Greedy, end of sequence ignored: rows and new tokens of each -> tokens generated in all."""


def serve(start: Callable[[Settings], Generate]) -> None:
    """Answer commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    generate = start(json.loads(sys.argv[1]))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        rows = [Row(**row) for row in command["rows"]]
        began = time.perf_counter()
        tokens = generate(rows, command["new_tokens"])
        answer = {"seconds": time.perf_counter() - began, "tokens": tokens}
        print(json.dumps(answer), file=answers, flush=True)
