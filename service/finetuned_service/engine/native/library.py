"""The compiled decoder's functions and structs, as `source/decoder.h`, `change.h` and `draws.h` declare them. Torch-free.

Arrays enter as addresses; whoever calls keeps them alive until the call returns.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import structlog

from finetuned_service.engine.native.build import WITHOUT_TILES, library_path

_log = structlog.get_logger()

SITES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear modules of a layer in the order of `Site`."""
PANEL = 32
"""kPanel: columns of packed weights, tokens of a block of the KV cache."""


class LinearStruct(Structure):
    """`Linear`."""

    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int32),
        ("inputs", c_int32),
    )


class LayerStruct(Structure):
    """`Layer`."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("sites", LinearStruct * len(SITES)),
        ("keys", c_void_p),
        ("values", c_void_p),
    )


class ModelStruct(Structure):
    """`Model`."""

    _fields_ = (
        ("layers", POINTER(LayerStruct)),
        ("embedding", c_void_p),
        ("final_norm", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("head", LinearStruct),
        ("kv_stride", c_int64),
        ("layer_count", c_int32),
        ("hidden", c_int32),
        ("intermediate", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("epsilon", c_float),
        ("scaling", c_float),
    )


class LoraPairStruct(Structure):
    """`LoraPair`."""

    _fields_ = (("a", c_void_p), ("b", c_void_p), ("rank", c_int64))


class SiteChangeStruct(Structure):
    """`SiteChange`."""

    _fields_ = (
        ("input_gain", c_void_p),
        ("output_gain", c_void_p),
        ("output_shift", c_void_p),
        ("own", LinearStruct),
    )


class BottleneckStruct(Structure):
    """`Bottleneck`."""

    _fields_ = (
        ("pair", LoraPairStruct),
        ("down_bias", c_void_p),
        ("up_bias", c_void_p),
        ("activation", c_int32),
        ("parallel", c_int32),
    )


PARTS = ("self_attn", "mlp", "")
"""The parts of a layer in the order of `Part`: their names in it, the last being all of it."""
ACTIVATIONS = ("RELU", "GELU", "SILU")
"""In the order of `Activation`."""


class LayerChangeStruct(Structure):
    """`LayerChange`."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("sites", SiteChangeStruct * len(SITES)),
        ("parts", BottleneckStruct * len(PARTS)),
    )


class ChangeStruct(Structure):
    """`Change`."""

    _fields_ = (
        ("layers", POINTER(LayerChangeStruct)),
        ("embedding", c_void_p),
        ("final_norm", c_void_p),
        ("head", LinearStruct),
    )


class LoraSourceStruct(Structure):
    """`LoraSource`."""

    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("packed_a", c_void_p),
        ("packed_b", c_void_p),
        ("rank", c_int64),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("scaling", c_float),
        ("stored", c_int32),
    )


STORED_DTYPES = {"BF16": 0, "F32": 1, "F16": 2}
"""`Stored`, by the names of safetensors."""


class SegmentStruct(Structure):
    """`Segment`."""

    _fields_ = (
        ("pairs", POINTER(LoraPairStruct)),
        ("change", POINTER(ChangeStruct)),
        ("row", c_int32),
        ("rows", c_int32),
    )


class SpanStruct(Structure):
    """`Span`."""

    _fields_ = (
        ("kv_start", c_int64),
        ("row", c_int32),
        ("rows", c_int32),
        ("live", c_int32),
        ("unused", c_int32),
    )


class StepStruct(Structure):
    """`Step`."""

    _fields_ = (
        ("tokens", POINTER(c_int32)),
        ("positions", POINTER(c_int32)),
        ("segments", POINTER(SegmentStruct)),
        ("spans", POINTER(SpanStruct)),
        ("logit_rows", POINTER(c_int32)),
        ("logits", c_void_p),
        ("highest", POINTER(c_int32)),
        ("rows", c_int32),
        ("segment_count", c_int32),
        ("span_count", c_int32),
        ("logit_count", c_int32),
    )


class DrawStruct(Structure):
    """`Draw`."""

    _fields_ = (
        ("logits", c_void_p),
        ("top_p", c_double),
        ("uniform", c_double),
        ("divisor", c_float),
        ("top_k", c_int32),
    )


class Library:
    """The functions of one compiled library."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if it cannot be loaded on this machine."""
        functions = ctypes.CDLL(str(path))

        def function(name: str, result: Any, *arguments: Any) -> Any:
            found = getattr(functions, f"finetuned_{name}")
            found.restype, found.argtypes = result, arguments
            return found

        self.decoder_new = function("decoder_new", c_void_p, c_int)
        self.decoder_free = function("decoder_free", None, c_void_p)
        self.decoder_step = function(
            "decoder_step", c_int, c_void_p, POINTER(ModelStruct), POINTER(StepStruct)
        )
        self.decoder_draw = function(
            "decoder_draw", c_int, c_void_p, POINTER(DrawStruct), c_int, c_int, POINTER(c_int32)
        )
        self.pack_panels = function("pack_panels", None, c_void_p, c_int64, c_int64, c_void_p)
        self.unpack_panels = function("unpack_panels", None, c_void_p, c_int64, c_int64, c_void_p)
        self.pack_lora = function("pack_lora", c_int64, POINTER(LoraSourceStruct), c_int64)
        self.touch = function("touch", None, c_void_p, c_int64)
        self.instructions: str = function("instructions", c_char_p)().decode()
        """What products are computed with: `AMX-BF16`, `AVX512-BF16`, or `portable` vectors."""
        self.may_multiply = bool(function("may_multiply", c_int)())
        """Whether the system lets this process use these instructions; without, a step would end it."""

    @classmethod
    def of_machine(cls, cache_directory: str = "") -> Library:
        """Compiled for this machine now or before (`build.library_path`), with what the system allows of it.

        Raises:
            CannotCompile: as `library_path`.
            OSError: if it cannot be loaded.
        """
        best = cls(library_path(cache_directory))
        if best.may_multiply:
            return best
        _log.warning(
            "engine_without_tiles", note="the system does not let this process use AMX; it serves, but slower"
        )
        return cls(library_path(cache_directory, extra_flags=(WITHOUT_TILES,)))
