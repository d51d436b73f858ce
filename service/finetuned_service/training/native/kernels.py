"""The compiled passes of a training step, as functions of tensors. What each computes is in `source/`.

Tensors are bfloat16, contiguous and on the CPU; T is the tokens of a packed sequence.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_float, c_int64, c_void_p
from pathlib import Path

import structlog
import torch
from torch import Tensor

from finetuned_service.engine.native.build import CannotCompile, library_path
from finetuned_service.training.packing import RowLayout

_log = structlog.get_logger()

SOURCE = Path(__file__).parent / "source" / "training.cpp"
FLAGS = ("-fopenmp",)
"""torch's own OpenMP: its threads are there already, and wait as it was told to."""
LANES = 16
"""kLanes: a head's and a row's elements must be a multiple of it."""
MOST_HEAD_DIM = 256
"""kMostDim."""


class _Packed(Structure):
    _fields_ = (
        ("starts", c_void_p),
        ("lengths", c_void_p),
        ("rows", c_int64),
        ("tokens", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("dim", c_int64),
        ("scaling", c_float),
    )

    @classmethod
    def of(cls, layout: RowLayout, q: Tensor, k: Tensor, scaling: float) -> _Packed:
        tokens, heads, dim = q.shape
        starts, lengths = layout.starts.data_ptr(), layout.lengths.data_ptr()
        return cls(starts, lengths, layout.rows, tokens, heads, k.shape[1], dim, scaling)


class Kernels:
    """The functions of one compiled library."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if the library cannot be loaded on this machine."""
        self._library = ctypes.CDLL(str(path))
        self.uses_avx512_bf16 = bool(self._library.finetuned_training_uses_avx512_bf16())

    @classmethod
    def load(cls, cache_directory: str) -> Kernels | None:
        """Compiled now or before; None where a machine has no compiler, or not the instructions that make
        them pay.
        """
        try:
            kernels = cls(library_path(cache_directory, source=SOURCE, extra_flags=FLAGS))
        except (CannotCompile, OSError) as error:
            _log.warning("training_plain", reason=str(error), note="it trains, but slower")
            return None
        return kernels if kernels.uses_avx512_bf16 else None

    def rms_forward(self, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """x: [T, d], weight: [d]. Returns x / rms(x) * weight, and 1 / rms(x) as float32 [T]."""
        out, scales = torch.empty_like(x), torch.empty(x.shape[0])
        self._library.finetuned_rms_forward(
            *_pointers(x, weight), *_sizes(x), c_float(epsilon), *_pointers(out, scales)
        )
        return out, scales

    def rms_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, scales: Tensor, residual: Tensor
    ) -> Tensor:
        """The gradient of x, [T, d], plus `residual`, the gradient that went past the norm."""
        out = torch.empty_like(x)
        self._library.finetuned_rms_backward(
            *_pointers(grad, x, weight, scales, residual), *_sizes(x), *_pointers(out)
        )
        return out

    def rotate_(self, x: Tensor, cosines: Tensor, sines: Tensor, *, back: bool = False) -> None:
        """x: [T, H, D] in place; cosines, sines: [T, D], their halves alike. `back` is the gradient."""
        tokens, heads, dim = x.shape
        self._library.finetuned_rotate(
            *_pointers(x, cosines, sines),
            c_int64(tokens),
            c_int64(heads),
            c_int64(dim),
            c_float(-1.0 if back else 1.0),
        )

    def swiglu_forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up, all [T, d]."""
        out = torch.empty_like(gate)
        self._library.finetuned_swiglu_forward(*_pointers(gate, up), *_sizes(gate), *_pointers(out))
        return out

    def swiglu_backward(self, gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The value again, and the gradients of gate and up."""
        value, d_gate, d_up = (torch.empty_like(gate) for _ in range(3))
        self._library.finetuned_swiglu_backward(
            *_pointers(gate, up, grad), *_sizes(gate), *_pointers(value, d_gate, d_up)
        )
        return value, d_gate, d_up

    def attention_forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: RowLayout, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """q: [T, H, D]; k, v: [T, K, D]. Returns [T, H, D], and the logarithms of the softmax's sums as
        float32 [H, T].
        """
        out, sums = _untouched_filling(q, layout), torch.empty(q.shape[1], q.shape[0])
        packed = _Packed.of(layout, q, k, scaling)
        self._library.finetuned_attention_forward(byref(packed), *_pointers(q, k, v, out, sums))
        return out, sums

    def attention_backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        sums: Tensor,
        grad: Tensor,
        layout: RowLayout,
        scaling: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v; `out` and `sums` are what `attention_forward` returned."""
        d_q, d_k, d_v = (_untouched_filling(tensor, layout) for tensor in (q, k, v))
        packed = _Packed.of(layout, q, k, scaling)
        self._library.finetuned_attention_backward(
            byref(packed), *_pointers(q, k, v, out, grad, sums, d_q, d_k, d_v)
        )
        return d_q, d_k, d_v

    def cross_entropy_(self, logits: Tensor, targets: Tensor, scale: float) -> Tensor:
        """The loss of each row, scale * -log softmax(logits)[target], float32 [N].

        Its gradient takes the place of the logits, [N, V].
        """
        losses = torch.empty(logits.shape[0])
        self._library.finetuned_cross_entropy(
            *_pointers(logits, targets), *_sizes(logits), c_float(scale), *_pointers(losses)
        )
        return losses


def _pointers(*tensors: Tensor) -> list[c_void_p]:
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [c_void_p(tensor.data_ptr()) for tensor in tensors]


def _sizes(x: Tensor) -> tuple[c_int64, c_int64]:
    rows, columns = x.shape
    return c_int64(rows), c_int64(columns)


def _untouched_filling(like: Tensor, layout: RowLayout) -> Tensor:
    """Room for a result of `like`'s shape; zeros where tokens belong to no row and nothing is computed."""
    out = torch.empty_like(like)
    out[int(layout.starts[-1] + layout.lengths[-1]) :] = 0
    return out
