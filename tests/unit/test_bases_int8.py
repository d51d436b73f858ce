"""INT8 rounding against float64, and the modules that compute with it."""

from __future__ import annotations

import pytest
import torch
from finetuned_service.bases.int8 import (
    PACKED_KERNEL_ROWS,
    Int8Embedding,
    Int8Linear,
    dequantize_rows,
    quantize_rows,
)
from hypothesis import given
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weight_of(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows of very different magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    return (values * torch.logspace(-3, 2, rows)[:, None]).to(dtype)


def reference(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition in float64: the smallest scale of the dtype under which no value exceeds 127."""
    exact = weight.double().abs().amax(dim=1) / 127
    scale = exact.to(weight.dtype)
    too_small = scale.double() < exact
    scale[too_small] = torch.nextafter(scale, torch.full_like(scale, torch.inf))[too_small]
    return torch.round(weight.double() / scale.double()[:, None]).to(torch.int8), scale


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_scales_equal_the_definition_in_float64(dtype):
    weight = weight_of(40, 72, dtype)
    values, scale = quantize_rows(weight)
    expected_values, expected_scale = reference(weight)
    assert (values.dtype, scale.dtype) == (torch.int8, dtype)
    assert torch.equal(scale, expected_scale)
    # The quotient is taken in float32: exact halves of a step may fall to the other side.
    difference = (values.int() - expected_values.int()).abs()
    halves = (weight.double() / scale.double()[:, None]).frac().abs().sub(0.5).abs() < 1e-5
    assert bool((difference[~halves] == 0).all())
    assert int(difference.max()) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 9), columns=st.integers(1, 40))
def test_every_value_is_within_half_a_step_and_none_saturates(dtype, seed, rows, columns):
    weight = weight_of(rows, columns, dtype, seed)
    values, scale = quantize_rows(weight)
    error = (dequantize_rows(values, scale).double() - weight.double()).abs()
    half_step = scale.double()[:, None] / 2
    assert bool((error <= half_step * (1 + 1e-5)).all())
    assert bool((values.int().abs() <= 127).all())


def test_rounding_in_chunks_gives_what_rounding_at_once_gives(monkeypatch):
    import finetuned_service.bases.int8 as module

    weight = weight_of(50, 8, torch.bfloat16)
    whole = quantize_rows(weight)
    monkeypatch.setattr(module, "ROUNDING_CHUNK_WEIGHTS", 24)
    chunked = quantize_rows(weight)
    assert torch.equal(whole[0], chunked[0])
    assert torch.equal(whole[1], chunked[1])


def test_rows_of_zeros_stay_zero():
    weight = torch.zeros(2, 4, dtype=torch.bfloat16)
    weight[1] = 1.0
    values, scale = quantize_rows(weight)
    assert torch.equal(dequantize_rows(values, scale)[0], torch.zeros(4))
    assert bool((scale > 0).all())


def int8_linear(rows: int, columns: int, dtype: torch.dtype, *, bias: bool) -> Int8Linear:
    linear = Int8Linear(columns, rows, bias=bias, dtype=dtype, device="cpu")
    values, scale = quantize_rows(
        torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)).to(dtype)
    )
    linear.weight.data.copy_(values)
    linear.weight_scale.data.copy_(scale)
    if bias:
        linear.bias.data.normal_(generator=torch.Generator().manual_seed(4))
    return linear


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("columns", [64, 96, 33, 24, 8, 1])
@pytest.mark.parametrize("tokens", [1, 3, PACKED_KERNEL_ROWS, PACKED_KERNEL_ROWS + 1, 70])
def test_linear_equals_the_float64_product(dtype, bias, columns, tokens):
    """Every kernel, on both sides of each switch between them; odd widths run past no row's end."""
    linear = int8_linear(37, columns, dtype, bias=bias)
    inputs = torch.randn(2, tokens, columns, generator=torch.Generator().manual_seed(5)).to(dtype)
    with torch.inference_mode():
        actual = linear(inputs)
    weight = dequantize_rows(linear.weight, linear.weight_scale).double()
    expected = inputs.double() @ weight.T + (linear.bias.double() if bias else 0)
    assert (actual.shape, actual.dtype) == ((2, tokens, 37), dtype)
    # Two roundings of the product and one of the sum, each half a unit in the last place.
    magnitude = inputs.double().abs() @ weight.abs().T + 1
    assert bool(((actual.double() - expected).abs() <= 2 * torch.finfo(dtype).eps * magnitude).all())


def test_linear_takes_an_empty_batch():
    assert int8_linear(5, 64, torch.bfloat16, bias=False)(
        torch.empty(1, 0, 64, dtype=torch.bfloat16)
    ).shape == (
        1,
        0,
        5,
    )


@pytest.mark.parametrize("tokens", [1, 5, PACKED_KERNEL_ROWS])
def test_a_weight_may_lie_anywhere_in_a_mapped_file(tokens):
    """PyTorch's kernel would read past 8 bytes as if they were 16, and end the process."""
    linear = int8_linear(32, 64, torch.bfloat16, bias=False)
    inputs = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(8)).bfloat16()
    with torch.inference_mode():
        expected = linear(inputs)
    room = torch.empty(linear.weight.numel() + 64, dtype=torch.int8)
    start = -room.data_ptr() % 16 + 8
    elsewhere = room[start : start + linear.weight.numel()].view_as(linear.weight).copy_(linear.weight)
    linear.weight = torch.nn.Parameter(elsewhere, requires_grad=False)
    with torch.inference_mode():
        torch.testing.assert_close(linear(inputs), expected, rtol=2e-2, atol=2e-2)


def test_linear_is_row_for_row_independent_of_the_batch_below_the_switch():
    linear = int8_linear(48, 64, torch.bfloat16, bias=False)
    inputs = torch.randn(PACKED_KERNEL_ROWS, 64, generator=torch.Generator().manual_seed(6)).bfloat16()
    with torch.inference_mode():
        together = linear(inputs)
        alone = torch.cat([linear(row[None]) for row in inputs])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("tokens", [1, 40])
def test_gradients_flow_to_the_input_and_equal_the_dequantized_ones(tokens):
    linear = int8_linear(12, 64, torch.float32, bias=True)
    inputs = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(7), requires_grad=True)
    linear(inputs).square().sum().backward()
    plain = inputs.detach().clone().requires_grad_()
    weight = dequantize_rows(linear.weight, linear.weight_scale)
    torch.nn.functional.linear(plain, weight, linear.bias).square().sum().backward()
    torch.testing.assert_close(inputs.grad, plain.grad, rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in linear.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_gives_the_dequantized_rows(dtype):
    table = weight_of(20, 8, dtype)
    embedding = Int8Embedding(20, 8, dtype=dtype, device="cpu")
    values, scale = quantize_rows(table)
    embedding.weight.data.copy_(values)
    embedding.weight_scale.data.copy_(scale)
    token_ids = torch.tensor([[3, 0], [19, 3]])
    expected = (values[token_ids].double() * scale[token_ids].double()[..., None]).to(dtype)
    assert torch.equal(embedding(token_ids), expected)


@pytest.mark.parametrize("rows", [1, PACKED_KERNEL_ROWS + 1])
def test_what_float16_can_say_does_not_overflow_on_the_way(rows):
    """An activation of 700 at a weight of 0.3, as at the first token of many models; 700 * 127 is no float16."""
    weight = torch.full((8, 64), 0.01)
    weight[:, 0] = 0.3
    linear = Int8Linear(64, 8, bias=False, dtype=torch.float16, device="cpu")
    linear.weight.data, linear.weight_scale.data = quantize_rows(weight.half())
    inputs = torch.zeros(rows, 64, dtype=torch.float16)
    inputs[:, 0] = 700
    expected = inputs.double() @ dequantize_rows(linear.weight, linear.weight_scale).double().T
    torch.testing.assert_close(linear(inputs).double(), expected, rtol=2e-3, atol=0)
