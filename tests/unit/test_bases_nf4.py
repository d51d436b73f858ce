"""4-bit weights of every width against float64, by hand from what is stored: values, products, gradients."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from finetuned_service.bases.nf4 import Nf4Linear, dequantize_blocks
from finetuned_service.quantization.formats import FORMATS
from finetuned_service.vocabulary import WeightFormat
from packed_oracle import by_hand
from torch import Tensor

SHAPES = [(20, 48), (16, 576), (64, 64), (5, 96), (37, 80), (7, 30), (9, 33), (3, 8), (4, 2), (1, 3), (1, 1)]
"""[out, in]: of whole blocks, of blocks that go on in the next row, of one that is not full, of odd numbers."""


def stored_parts(shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows of very different magnitudes, so that a scale in the wrong place shows."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight *= torch.logspace(0, 1.5, shape[0])[:, None]
    return dict(FORMATS[WeightFormat.NF4].encode(weight.to(dtype)))


def linear_of(parts: dict[str, Tensor], *, bias: Tensor | None) -> Nf4Linear:
    """As transformers loads a prequantized checkpoint."""
    stats = {name.removeprefix("weight."): tensor for name, tensor in parts.items() if name != "weight"}
    shape = QuantState.from_dict(dict(stats), device=torch.device("cpu")).shape
    stored = Linear4bit(shape[1], shape[0], bias=bias is not None, device="meta")
    stored.weight = Params4bit.from_prequantized(parts["weight"], dict(stats), device="cpu", module=stored)
    if bias is not None:
        stored.bias = torch.nn.Parameter(bias, requires_grad=False)
    return Nf4Linear(stored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_by_hand(shape: tuple[int, int], dtype: torch.dtype) -> None:
    parts = stored_parts(shape, dtype)
    linear = linear_of(parts, bias=None)
    found, expected = dequantize_blocks(linear.weight, linear.weight.quant_state), by_hand(parts)
    assert (found.shape, found.dtype) == (shape, dtype)
    assert (linear.out_features, linear.in_features) == shape
    # Scales are computed in float32, whose offset may be much larger than what is added to it.
    assert float((found.double() - expected).abs().max() / expected.abs().max()) < torch.finfo(dtype).eps
    assert torch.equal(found, linear.unpacked())


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradient_are_those_over_the_weight_by_hand(
    shape: tuple[int, int], has_bias: bool, rows: int
) -> None:
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(shape[0], generator=generator) if has_bias else None
    parts = stored_parts(shape, torch.float32)
    linear, weight = linear_of(parts, bias=bias), by_hand(parts)
    x = torch.randn(2, rows, shape[1], generator=generator)
    plain = x.double().requires_grad_()
    expected = torch.nn.functional.linear(plain, weight, None if bias is None else bias.double())
    expected.square().sum().backward()
    assert plain.grad is not None
    for mode in (True, False, True):
        linear.train(mode)
        with torch.no_grad():
            served = linear(x)
        given = x.clone().requires_grad_()
        trained = linear(given)
        trained.square().sum().backward()
        assert torch.equal(served, trained)
        assert torch.equal(linear.weight, parts["weight"])
        assert given.grad is not None
        for found, wanted in ((served, expected.detach()), (given.grad, plain.grad)):
            assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-5


def test_the_weight_is_unpacked_in_the_dtype_of_what_it_is_multiplied_with() -> None:
    linear = linear_of(stored_parts((20, 48), torch.bfloat16), bias=torch.ones(20))
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(3))
    expected = x @ linear.unpacked().float().T + 1
    torch.testing.assert_close(linear(x), expected)
    assert linear(x.bfloat16()).dtype is torch.bfloat16
