"""What an adapter takes in memory, in whatever dtype its files hold it: one figure for who makes it and for who serves it."""

from __future__ import annotations

_FLOAT32_BYTES = 4


def host_bytes(elements: int, base_element_bytes: int, *, encodes: bool) -> int:
    """HOST memory of an adapter of so many numbers: they are of the base's dtype, but heads over what encodes of float32."""
    return elements * max(base_element_bytes, _FLOAT32_BYTES if encodes else 0)
