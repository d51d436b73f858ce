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

HOME = Path("build/bench/bases")


def packed_base(base: Path, weight_format: WeightFormat) -> Path:
    """In few bits; made anew each time, so that it is what today's code stores."""
    directory = HOME / weight_format.lower()
    shutil.rmtree(directory, ignore_errors=True)
    with building(directory) as scratch:
        store_packed(base, scratch, weight_format)
    return directory


def store_packed(base: Path, directory: Path, weight_format: WeightFormat) -> None:
    """Write the base into a directory that is there and empty."""
    spec = QuantizeSpec(output_base_id=weight_format.lower(), weight_format=weight_format)
    plan = plan_quantization(base, spec)
    name = BaseName(spec.output_base_id, "bench")
    store_quantized(base, directory, plan, weight_format, name, lambda: None)
