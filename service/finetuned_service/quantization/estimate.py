"""What a run will need, told before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from finetuned_service.bases.manifest import WEIGHTS_FILE, read_config
from finetuned_service.digests import read_safetensors_header
from finetuned_service.errors import ResourceExhausted
from finetuned_service.jobs.events import Estimate, EstimateBasis
from finetuned_service.quantization.formats import Format
from finetuned_service.quantization.measure import CHUNK_POSITIONS
from finetuned_service.quantization.plan import Plan

RUNTIME_BYTES = 400_000_000
"""Python, torch, transformers and bitsandbytes with two threads, before any weight is read."""
FLOAT32_COPIES = 6
"""Of a chunk's distributions, at the worst moment of measuring."""


def estimate_run(
    source: Path, plan: Plan, chosen: Format, windows: Sequence[Sequence[int]], budget_bytes: int
) -> Estimate:
    """Steps, tokens and private memory of a run; the source's own weights stay mapped and are not counted.

    For SmolLM2-135M it says 758 MB (INT8), 786 (with embeddings), 706 (NF4); measured were 669, 709, 714.
    """
    header = read_safetensors_header(source / WEIGHTS_FILE)
    encoded = {f"{name}.weight" for name in plan.stored}
    weights = sum(prod(info.shape) for info in header if info.name in encoded)
    vocabulary = int(read_config(source)["vocab_size"])
    longest = max(len(window) for window in windows)
    stored_item_bytes = max((info.end - info.start) // prod(info.shape) for info in header)
    logits_bytes = 2 * longest * vocabulary * stored_item_bytes
    distributions_bytes = FLOAT32_COPIES * CHUNK_POSITIONS * vocabulary * 4
    return Estimate(
        steps=len(plan.stored) + len(windows),
        tokens=sum(len(window) for window in windows),
        memory_bytes=int(
            RUNTIME_BYTES + weights * chosen.bytes_per_weight + logits_bytes + distributions_bytes
        ),
        basis=EstimateBasis.ARITHMETIC,
        runtime_memory_bytes=RUNTIME_BYTES,
        base_memory_bytes=(source / WEIGHTS_FILE).stat().st_size,
        memory_budget_bytes=budget_bytes,
    )


def check_memory(estimate: Estimate) -> None:
    """Refuse a run that cannot fit.

    Raises:
        ResourceExhausted: with both figures.
    """
    budget_bytes = estimate.memory_budget_bytes
    if estimate.memory_bytes > budget_bytes:
        raise ResourceExhausted(
            f"quantizing this base needs about {estimate.memory_bytes / 1e6:,.0f} MB of memory of its own; "
            f"allowed: {budget_bytes / 1e6:,.0f} MB. Quantize a smaller base, or give the server's jobs a "
            "larger memory budget",
            metadata={
                "memory_bytes": str(estimate.memory_bytes),
                "memory_budget_bytes": str(budget_bytes),
            },
        )
