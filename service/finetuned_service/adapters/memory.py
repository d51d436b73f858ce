"""What an adapter takes in memory, in whatever dtype its files hold it: one figure for who makes it, serves it or pins it."""

from __future__ import annotations

from finetuned_service.bases.manifest import BaseManifest
from finetuned_service.vocabulary import Family, WeightFormat

_FLOAT32_BYTES, _FLOAT16_BYTES = 4, 2


def host_bytes(elements: int, base_element_bytes: int, *, encodes: bool) -> int:
    """HOST memory of an adapter of so many numbers: they are of the base's dtype, but heads over what encodes of float32."""
    return elements * max(base_element_bytes, _FLOAT32_BYTES if encodes else 0)


def served_bytes(elements: int, base: BaseManifest) -> int:
    """The same, of a base that is not in memory; packed weights are computed with in two bytes each."""
    element_bytes = _FLOAT32_BYTES if base.weight_format is WeightFormat.FP32 else _FLOAT16_BYTES
    return host_bytes(elements, element_bytes, encodes=base.family is not Family.DECODER)
