"""A base in few bits, as Quantize stores it."""

from __future__ import annotations

import shutil
from pathlib import Path

from finetuned_service.bases.publish import building
from finetuned_service.jobs.specs import QuantizeSpec
from finetuned_service.names import BaseName
from finetuned_service.quantization.plan import plan_quantization
from finetuned_service.quantization.store import store_quantized
from finetuned_service.vocabulary import WeightFormat

PACKED = Path("build/bench/bases/nf4")


def packed_base(base: Path) -> Path:
    """In 4 bits; made anew each time, so that it is what today's code stores."""
    shutil.rmtree(PACKED, ignore_errors=True)
    with building(PACKED) as scratch:
        store_packed(base, scratch, WeightFormat.NF4)
    return PACKED


def store_packed(base: Path, directory: Path, weight_format: WeightFormat) -> None:
    """Write the base into a directory that is there and empty."""
    spec = QuantizeSpec(output_base_id=weight_format.lower(), weight_format=weight_format)
    plan = plan_quantization(base, spec)
    name = BaseName(spec.output_base_id, "bench")
    store_quantized(base, directory, plan, weight_format, name, lambda: None)
