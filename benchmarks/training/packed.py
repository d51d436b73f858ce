"""The base in 4 bits, as Quantize stores it."""

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
    """Made anew each time, so that it is what today's code stores."""
    spec = QuantizeSpec(output_base_id=PACKED.name, weight_format=WeightFormat.NF4)
    shutil.rmtree(PACKED, ignore_errors=True)
    with building(PACKED) as scratch:
        plan = plan_quantization(base, spec)
        name = BaseName(PACKED.name, "bench")
        store_quantized(base, scratch, plan, spec.weight_format, name, lambda: None)
    return PACKED
