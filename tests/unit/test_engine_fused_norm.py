"""One kernel for an RMS norm, beside transformers' own modules."""

from __future__ import annotations

import pytest
import torch
from finetuned_service.engine.fused_norm import FusedRmsNorm, fuse_norms
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_it_computes_what_transformers_does(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(3)
    theirs = LlamaRMSNorm(48, 1e-5).to(dtype)
    with torch.no_grad():
        theirs.weight.copy_(torch.randn(48, generator=generator))
    x = (3 * torch.randn(7, 48, generator=generator)).to(dtype)
    weight = nn.Parameter(theirs.weight.detach().clone())
    found = FusedRmsNorm(weight, 1e-5)(x)
    assert found.dtype is dtype
    torch.testing.assert_close(found, theirs(x), rtol=tolerance, atol=tolerance)


def test_only_those_that_compute_the_same_are_replaced_and_keep_their_weight() -> None:
    model = nn.ModuleDict({"same": LlamaRMSNorm(8), "adds_one": GemmaRMSNorm(8)})
    weight = model["same"].weight
    fuse_norms(model)
    assert type(model["same"]) is FusedRmsNorm
    assert model["same"].weight is weight
    assert type(model["adds_one"]) is GemmaRMSNorm
    assert set(dict(model.named_parameters())) == {"same.weight", "adds_one.weight"}
