"""INT8: symmetric rounding with one scale per output row, and the modules that compute with it.

A weight `[out, in]` becomes int8 values in [-127, 127] and one scale per row, in the weight's own
dtype. The scale is the row's largest magnitude over 127, rounded *up* in that dtype: nothing
saturates, every value is within half a step of the source, and kernels that take scales in the
activations' dtype take exactly the stored ones.

Activations stay as they are (W8A16). bitsandbytes' LLM.int8 was not taken: it rounds activations
too, and picks its outlier columns from the whole batch, so that a reply would depend on its
batch-mates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuned_service.bases.product import FrozenProduct

METHOD = "finetuned-int8"
"""`quant_method` in config.json."""
LEVELS = 127
ROUNDING_CHUNK_WEIGHTS = 4_194_304
"""Weights that are rounded at a time: about 50 MB of float32 between the source and the result."""
PACKED_KERNEL_ROWS = 16
"""Up to this many activation rows PyTorch's int8 kernel beats converting the weight and using the
bfloat16 one. Milliseconds of one thread for all 210 GEMMs of SmolLM2-135M, int8 kernel against
conversion against plain bfloat16: 1 row 16/50/31, 8 rows 34/58/33, 16 rows 54/56/34, 32 rows 93/59/32."""
PACKED_KERNEL_MULTIPLE = 32
"""That kernel reads whole vectors: it runs past the end of a row whose length is no multiple of its
vector (PyTorch 2.13 crashes), and does not check."""
PACKED_KERNEL_ALIGNMENT = 16
"""In bytes: with several rows it reads the weight as if it lay at such an address (PyTorch 2.13 crashes). A weight that is mapped
lies where its file has it, and safetensors promises 8 bytes."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to int8, row by row.

    Args:
        weight: `[out, in]`, any floating dtype, finite.

    Returns:
        int8 `[out, in]` and the scales `[out]` in the weight's dtype, all positive.
    """
    chunk_rows = max(1, ROUNDING_CHUNK_WEIGHTS // weight.shape[1])
    chunks = [_quantize_chunk(chunk) for chunk in weight.split(chunk_rows)]
    return torch.cat([values for values, _ in chunks]), torch.cat([scale for _, scale in chunks])


def _quantize_chunk(weight: Tensor) -> tuple[Tensor, Tensor]:
    exact = weight.abs().amax(dim=1).double() / LEVELS
    scale = exact.to(weight.dtype)
    scale = torch.where(scale.double() < exact, scale.nextafter(torch.full_like(scale, torch.inf)), scale)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # a row of zeros
    values = (weight.float() / scale.float()[:, None]).round_()
    return values.to(torch.int8), scale


def dequantize_rows(values: Tensor, scale: Tensor) -> Tensor:
    """The weight that int8 values `[out, in]` and scales `[out]` stand for, in float32."""
    return values.float() * scale.float()[:, None]


class Int8Linear(nn.Linear):
    """`nn.Linear` on an int8 weight: `y = (x · valuesᵀ) * scale + bias`, in x's dtype.

    A subclass because everything that adapts a model (our sites, PEFT) looks for `nn.Linear`.
    Differentiable in its input; its weight is frozen. What it computes per row of x may differ in
    the last bits between few and many rows, as different kernels take them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device="meta", dtype=dtype)
        self.weight = _frozen(torch.empty(self.weight.shape, dtype=torch.int8, device=device))
        self.weight_scale = _frozen(torch.empty(out_features, dtype=dtype, device=device))
        if bias:
            self.bias = _frozen(torch.empty(out_features, dtype=dtype, device=device))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name for it
        """`[..., in_features]` to `[..., out_features]`, dtype kept."""
        rows = input.reshape(-1, self.in_features)
        if self._fits_packed_kernel(rows):
            outputs: Tensor = torch.ops.aten._weight_int8pack_mm(  # noqa: SLF001 - its only name; guarded above
                rows.contiguous(), self.weight, self.weight_scale
            )
        elif torch.is_grad_enabled() and rows.requires_grad:
            outputs = FrozenProduct.apply(rows, self.unpacked, None)
        elif rows.dtype == torch.float16:
            # The product with levels of up to 127 is beyond its largest number long before what they stand for is.
            outputs = functional.linear(rows, self.unpacked().to(rows.dtype))
        else:
            outputs = functional.linear(rows, self.weight.to(rows.dtype)) * self.weight_scale.to(rows.dtype)
        if self.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]  # torch's annotation leaves None out
            outputs = outputs + self.bias.to(rows.dtype)
        return outputs.view(*input.shape[:-1], self.out_features)

    def unpacked(self) -> Tensor:
        """The weight `[out, in]` in the scales' dtype."""
        return dequantize_rows(self.weight, self.weight_scale).to(self.weight_scale.dtype)

    def _fits_packed_kernel(self, rows: Tensor) -> bool:
        return (
            0 < rows.shape[0] <= PACKED_KERNEL_ROWS
            and rows.device.type == "cpu"
            and rows.dtype == self.weight_scale.dtype
            and self.in_features % PACKED_KERNEL_MULTIPLE == 0
            and self.weight.data_ptr() % PACKED_KERNEL_ALIGNMENT == 0
            and not (torch.is_grad_enabled() and rows.requires_grad)  # it has no backward
        )


class Int8Embedding(nn.Module):
    """`nn.Embedding` on an int8 table `[entries, width]` with one scale per entry."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.weight = _frozen(torch.empty((num_embeddings, embedding_dim), dtype=torch.int8, device=device))
        self.weight_scale = _frozen(torch.empty(num_embeddings, dtype=dtype, device=device))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Integer ids `[...]` to vectors `[..., embedding_dim]` in the scales' dtype."""
        scale = self.weight_scale[token_ids]
        return self.weight[token_ids].to(scale.dtype) * scale[..., None]


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
