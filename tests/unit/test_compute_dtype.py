"""What a job says that it computes in is what its base's vectors come out in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetuned_service.bases.load import dtype_of, load_base
from finetuned_service.bases.manifest import compute_dtype
from packed_oracle import pack
from tiny_bases import make_tiny_base
from tiny_encoders import make_encoder_base, make_resnet_base

WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.mark.parametrize("stored", ["", "INT8", "NF4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_of_language_models_as_they_are_and_packed(tmp_path: Path, dtype: torch.dtype, stored: str) -> None:
    base = make_tiny_base(tmp_path / "base", dtype=dtype, **WIDE)
    if stored:
        base = pack(base, tmp_path / "packed", stored)
    model = load_base(base)
    assert f"torch.{compute_dtype(base)}" == str(dtype) == str(dtype_of(model))
    assert model(input_ids=torch.tensor([[3, 4, 5]])).logits.dtype is dtype


def test_of_encoders_and_of_images(tmp_path: Path) -> None:
    for base in (make_encoder_base(tmp_path / "bert"), make_resnet_base(tmp_path / "resnet")):
        assert f"torch.{compute_dtype(base)}" == str(dtype_of(load_base(base)))
