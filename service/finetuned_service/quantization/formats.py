"""The formats a base can be stored in: what a weight becomes, and what config.json says of it.

Pure functions of one weight: no forward ever runs on what is stored, so nothing can have rewritten it
(see `bases/nf4.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from bitsandbytes import functional
from torch import Tensor

from finetuned_service.bases.int8 import METHOD, quantize_rows
from finetuned_service.vocabulary import WeightFormat

NF4_BLOCK_WEIGHTS = 64
"""Weights that share a scale; the QLoRA paper's choice (https://arxiv.org/abs/2305.14314, section 3)."""
NF4_BLOCK_SCALES = 256
"""Scales that share a second-level scale: double quantization, as there."""
ROUNDING_CHUNK_WEIGHTS = 262_144
"""Weights that are rounded at a time; whole blocks."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store weights."""

    encode: Callable[[Tensor], Mapping[str, Tensor]]
    """A weight `[out, in]` to the tensors stored for it, by what follows the module's name."""
    configuration: Callable[[torch.dtype, Sequence[str]], dict[str, Any]]
    """The `quantization_config` of config.json, from the other tensors' dtype and the modules kept."""
    bytes_per_weight: float
    """As stored, scales included; of a large matrix."""
    recipe: str
    """How the result was made, for its manifest."""


def _encode_int8(weight: Tensor) -> Mapping[str, Tensor]:
    values, scale = quantize_rows(weight)
    return {"weight": values, "weight_scale": scale}


def _configure_int8(_dtype: torch.dtype, kept: Sequence[str]) -> dict[str, Any]:
    return {"quant_method": METHOD, "modules_to_not_convert": list(kept)}


def _encode_nf4(weight: Tensor) -> Mapping[str, Tensor]:
    """Bitsandbytes' own rounding and its layout of a prequantized checkpoint.

    Equal to `quantize_4bit(weight, compress_statistics=True)`, in pieces: blocks are independent up to
    the rounding of their scales, and as a whole it needs 64 bytes for each weight.
    """
    pieces = [
        functional.quantize_4bit(piece, blocksize=NF4_BLOCK_WEIGHTS, quant_type="nf4")
        for piece in weight.reshape(-1).split(ROUNDING_CHUNK_WEIGHTS)
    ]
    packed = torch.cat([values for values, _ in pieces])
    block_scales = torch.cat([state.absmax for _, state in pieces])
    offset = block_scales.mean()
    scales, scales_state = functional.quantize_blockwise(block_scales - offset, blocksize=NF4_BLOCK_SCALES)
    state = functional.QuantState(
        absmax=scales,
        shape=weight.shape,
        dtype=weight.dtype,
        blocksize=NF4_BLOCK_WEIGHTS,
        code=pieces[0][1].code,
        quant_type="nf4",
        offset=offset,
        state2=scales_state,
    )
    parts: dict[str, Tensor] = state.as_dict(packed=True)
    return {"weight": packed} | {f"weight.{name}": tensor.contiguous() for name, tensor in parts.items()}


def _configure_nf4(dtype: torch.dtype, kept: Sequence[str]) -> dict[str, Any]:
    """What transformers' BitsAndBytesConfig reads; spelled out, as its own dump varies by version."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": list(kept),
    }


FORMATS: Mapping[WeightFormat, Format] = {
    WeightFormat.INT8: Format(
        _encode_int8, _configure_int8, 1.0, "INT8: rounded to nearest, one scale per output row"
    ),
    WeightFormat.NF4: Format(
        _encode_nf4,
        _configure_nf4,
        (4 + 8 / NF4_BLOCK_WEIGHTS + 32 / (NF4_BLOCK_WEIGHTS * NF4_BLOCK_SCALES)) / 8,
        f"NF4 in blocks of {NF4_BLOCK_WEIGHTS} with double quantization (bitsandbytes {version('bitsandbytes')})",
    ),
}
