"""A look at something now and then, while a block of code runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def watching(name: str, interval_seconds: float, look: Callable[[], bool]) -> Generator[None]:
    """While the block runs, call `look` every `interval_seconds`, from a thread of that name, until it returns True."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(interval_seconds):
            if look():
                return

    thread = threading.Thread(target=watch, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
