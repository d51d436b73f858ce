"""What is stored for a weight, against bitsandbytes itself."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional
from finetuned_service.bases.int8 import quantize_rows
from finetuned_service.quantization import formats
from finetuned_service.quantization.formats import FORMATS
from finetuned_service.vocabulary import WeightFormat

NF4 = FORMATS[WeightFormat.NF4]
INT8 = FORMATS[WeightFormat.INT8]


def weight_of(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(48, 64), (7, 30), (1, 3), (65, 64)])
@pytest.mark.parametrize("chunk_weights", [64, 128, 1 << 20])
def test_nf4_is_what_bitsandbytes_makes_of_the_whole_weight(monkeypatch, dtype, shape, chunk_weights):
    monkeypatch.setattr(formats, "ROUNDING_CHUNK_WEIGHTS", chunk_weights)
    weight = weight_of(shape, dtype)
    stored = dict(NF4.encode(weight))
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    expected = {"weight": packed} | {f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(stored[name], tensor), name


@pytest.mark.parametrize("shape", [(48, 64), (7, 30)])
def test_nf4_dequantizes_to_what_bitsandbytes_dequantizes(shape):
    weight = weight_of(shape, torch.bfloat16)
    stored = dict(NF4.encode(weight))
    packed = stored.pop("weight")
    state = functional.QuantState.from_dict(
        {name.removeprefix("weight."): tensor for name, tensor in stored.items()}, device=torch.device("cpu")
    )
    restored = functional.dequantize_4bit(packed, state)
    expected = functional.dequantize_4bit(
        *functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    )
    assert (restored.shape, restored.dtype) == (weight.shape, weight.dtype)
    assert torch.equal(restored, expected)
    # NF4's widest gap, between -1 and -0.6962, is 0.304 of a block's largest value; scales are 8-bit.
    assert float((restored - weight).abs().max() / weight.abs().max()) < 0.304 / 2 * 1.05


def test_int8_stores_the_rounded_rows():
    weight = weight_of((5, 8), torch.bfloat16)
    values, scale = quantize_rows(weight)
    stored = INT8.encode(weight)
    assert torch.equal(stored["weight"], values)
    assert torch.equal(stored["weight_scale"], scale)
    assert len(stored) == 2


@pytest.mark.parametrize("weight_format", list(FORMATS))
def test_bytes_per_weight_is_what_a_large_matrix_takes(weight_format):
    chosen = FORMATS[weight_format]
    stored = chosen.encode(weight_of((512, 1024), torch.bfloat16))
    stored_bytes = sum(tensor.nbytes for name, tensor in stored.items() if "map" not in name)
    assert stored_bytes / (512 * 1024) == pytest.approx(chosen.bytes_per_weight, rel=0.01)
