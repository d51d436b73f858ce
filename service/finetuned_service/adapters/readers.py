"""Whose files calls in flight may still read. A deletion leaves those where they are; they go after the last call."""

from __future__ import annotations

import threading
from collections import Counter


class Readers:
    """By digest; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading: Counter[str] = Counter()
        self._going: set[str] = set()
        """Of what is read, what a deletion has left."""

    def begin(self, digest: str) -> None:
        """A call may read the files from now on, until `end`."""
        with self._lock:
            self._reading[digest] += 1

    def end(self, digest: str) -> bool:
        """Whether a deletion has left the files, and this was the last call that read them."""
        with self._lock:
            self._reading[digest] -= 1
            if self._reading[digest]:
                return False
            del self._reading[digest]
            going = digest in self._going
            self._going.discard(digest)
            return going

    def keep(self, digest: str) -> bool:
        """Whether a deletion has to leave the files; then the last `end` tells that they are to go."""
        with self._lock:
            if digest not in self._reading:
                return False
            self._going.add(digest)
            return True

    def digests(self) -> frozenset[str]:
        """What is read now."""
        with self._lock:
            return frozenset(self._reading)
