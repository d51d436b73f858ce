"""Which rows of a step belong to which adapter, where every input is computed whole."""

from __future__ import annotations

from collections.abc import Sequence

from finetuned_service.adapters.head import CLASSIFIER
from finetuned_service.engine.lora_bank import Placement
from finetuned_service.engine.lora_kernel import LoraRows
from finetuned_service.engine.place import AdapterPlace
from finetuned_service.engine.site_kernel import AdaptedRows, RowRun


def adapted_rows(inputs: Sequence[tuple[int, AdapterPlace | None]]) -> AdaptedRows:
    """The rows of packed inputs, given by their tokens and adapters; neighbours with one adapter are one run."""
    chunks: list[tuple[int, int, Placement]] = []
    runs: list[RowRun] = []
    start = 0
    last: AdapterPlace | None = None
    for tokens, place in inputs:
        end = start + tokens
        if place is not None and place.lora.ranges:
            first = chunks.pop()[0] if place is last else start
            chunks.append((first, end, place.lora))
        if place is not None and place.ops.keys() - {CLASSIFIER}:
            first = runs.pop().start if place is last else start
            runs.append(RowRun(first, end, place))
        start, last = end, place
    return AdaptedRows(LoraRows((), tuple(chunks)), tuple(runs))
