"""LoRA, attention and loss, forward and backward, beside PEFT, transformers and torch in float64."""

from __future__ import annotations

import pytest
import torch
from finetuned_service.text.supervision import EncodedRow
from finetuned_service.training import attention
from finetuned_service.training.loss import supervised_cross_entropy
from finetuned_service.training.methods.lora import LoraLinear
from finetuned_service.training.norm import FrozenRmsNorm, replace_norms
from finetuned_service.training.packing import RowLayout, pack
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=dtype.is_floating_point)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def peft_twin(module: LoraLinear) -> PeftLinear:
    rank = module.lora_a.shape[0]
    config = LoraConfig(r=rank, lora_alpha=module.scaling * rank)
    twin = PeftLinear(module.base, "default", config, r=rank, lora_alpha=module.scaling * rank)
    twin.lora_A["default"].weight = nn.Parameter(module.lora_a.detach().clone())
    twin.lora_B["default"].weight = nn.Parameter(module.lora_b.detach().clone())
    return twin


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("x_has_gradient", [False, True])
def test_lora_equals_peft(bias, x_has_gradient):
    base = nn.Linear(6, 5, bias=bias, dtype=torch.float64).requires_grad_(requires_grad=False)
    module = LoraLinear(base, rank=3, scaling=0.7)
    nn.init.normal_(module.lora_b)
    twin = peft_twin(module)
    x = random(2, 4, 6).detach().requires_grad_(x_has_gradient)
    x_twin = x.detach().clone().requires_grad_(x_has_gradient)
    weights = torch.randn(2, 4, 5, dtype=torch.float64)
    (module(x) * weights).sum().backward()
    (twin(x_twin) * weights).sum().backward()
    torch.testing.assert_close(module(x), twin(x_twin))
    torch.testing.assert_close(module.lora_a.grad, twin.lora_A["default"].weight.grad)
    torch.testing.assert_close(module.lora_b.grad, twin.lora_B["default"].weight.grad)
    if x_has_gradient:
        torch.testing.assert_close(x.grad, x_twin.grad)


def test_lora_with_dropout_has_the_gradient_of_the_same_mask():
    base = nn.Linear(6, 5, bias=False, dtype=torch.float64).requires_grad_(requires_grad=False)
    module = LoraLinear(base, rank=3, scaling=2.0, dropout=0.5)
    nn.init.normal_(module.lora_b)
    x = random(7, 6)
    torch.manual_seed(1)
    module(x).square().sum().backward()
    reference = x.detach().clone().requires_grad_()
    a, b = (p.detach().clone().requires_grad_() for p in (module.lora_a, module.lora_b))
    torch.manual_seed(1)
    expected = (
        functional.linear(reference, base.weight) + 2.0 * functional.dropout(reference, 0.5) @ a.T @ b.T
    )
    expected.square().sum().backward()
    torch.testing.assert_close(
        (x.grad, module.lora_a.grad, module.lora_b.grad), (reference.grad, a.grad, b.grad)
    )
    module.eval()
    torch.testing.assert_close(module(x), functional.linear(x, base.weight) + 2.0 * x @ a.T @ b.T)


def test_lora_starts_as_the_base_and_keeps_float32_parameters():
    base = nn.Linear(6, 5, bias=False, dtype=torch.bfloat16).requires_grad_(requires_grad=False)
    module = LoraLinear(base, rank=3, scaling=2.0)
    x = torch.randn(4, 6, dtype=torch.bfloat16, requires_grad=True)
    out = module(x)
    out.sum().backward()
    assert torch.equal(out, base(x))
    assert module.lora_a.dtype == module.lora_b.dtype == torch.float32
    assert module.lora_b.grad is not None
    assert module.lora_b.grad.dtype == torch.float32


LENGTHS = (3, 1, 7, 5)


def attend_each(q, k, v, window: int | None) -> torch.Tensor:
    """Plain attention, row by row: the packed sequence must not know of its neighbours."""
    rows, start = [], 0
    for length in LENGTHS:
        part = slice(start, start + length)
        start += length
        queries, keys, values = q[:, :, part], k[:, :, part], v[:, :, part]
        groups = q.shape[1] // k.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        distance = torch.arange(length)[:, None] - torch.arange(length)
        hidden = (distance < 0) | (distance >= (window or length))
        scores = (queries @ keys.transpose(2, 3) * 0.3).masked_fill(hidden, -torch.inf)
        rows.append((scores.softmax(-1) @ values).transpose(1, 2))
    return torch.cat(rows, dim=1)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("limit_bytes", [attention.MAX_SCORES_BYTES, 0], ids=["products", "torch-kernel"])
def test_attention_stays_within_each_row(monkeypatch, window, limit_bytes):
    monkeypatch.setattr(attention, "MAX_SCORES_BYTES", limit_bytes)
    tokens = sum(LENGTHS)
    ours = [random(1, heads, tokens, 8) for heads in (6, 2, 2)]
    plain = [tensor.detach().clone().requires_grad_() for tensor in ours]
    out, _ = attention.packed_attention(
        nn.Identity(), *ours, None, layout=RowLayout.of(LENGTHS, tokens), scaling=0.3, sliding_window=window
    )
    expected = attend_each(*plain, window)
    weights = torch.randn_like(expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close([t.grad for t in ours], [t.grad for t in plain])


def test_layout_is_its_own_inverse_and_filling_stays_outside():
    layout = RowLayout.of(LENGTHS, tokens=20)
    packed = torch.arange(20)
    padded = packed[layout.to_padded]
    assert padded.view(4, 8)[1].tolist() == [3] * 8
    assert padded.max() == sum(LENGTHS) - 1
    assert torch.equal(padded[layout.to_packed][: sum(LENGTHS)], packed[: sum(LENGTHS)])


def test_rows_are_packed_one_after_another():
    rows = [EncodedRow([5, 6, 7], [False, True, True]), EncodedRow([8, 9], [False, True])]
    packed = pack(rows)
    assert packed.token_ids[0, :5].tolist() == [5, 6, 7, 8, 9]
    assert packed.position_ids[0, :5].tolist() == [0, 1, 2, 0, 1]
    assert packed.token_ids.shape == packed.position_ids.shape == (1, 32)
    assert packed.predicting.tolist() == [0, 1, 3]
    assert packed.targets.tolist() == [6, 7, 9]


@pytest.mark.parametrize("tokens_multiple", [1, 4, 32])
@pytest.mark.parametrize("chunk_elements", [1, 44, 10**6])
def test_loss_equals_torch_whatever_the_chunks(monkeypatch, chunk_elements, tokens_multiple):
    monkeypatch.setattr("finetuned_service.training.loss.TOKENS_MULTIPLE", tokens_multiple)
    monkeypatch.setattr("finetuned_service.training.loss.MAX_CHUNK_ELEMENTS", chunk_elements)
    hidden, head = random(9, 4), random(11, 4).detach()
    targets = torch.randint(11, (9,))
    twin = hidden.detach().clone().requires_grad_()
    loss = supervised_cross_entropy(hidden, head, targets, 0.25)
    expected = functional.cross_entropy(twin @ head.T, targets, reduction="sum") * 0.25
    (loss * 3).backward()
    (expected * 3).backward()
    torch.testing.assert_close((loss, hidden.grad), (expected, twin.grad))


def test_loss_without_gradient_keeps_none():
    hidden, head = random(5, 4).detach(), random(11, 4).detach()
    loss = supervised_cross_entropy(hidden, head, torch.arange(5), 1.0)
    assert not loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_equals_transformers(dtype):
    theirs = LlamaRMSNorm(16, eps=1e-3).to(dtype).requires_grad_(requires_grad=False)
    nn.init.normal_(theirs.weight)
    ours = FrozenRmsNorm(theirs.weight, theirs.variance_epsilon)
    x = random(2, 5, 16, dtype=dtype)
    twin = x.detach().clone().requires_grad_()
    weights = torch.randn(2, 5, 16, dtype=dtype)
    (ours(x) * weights).sum().backward()
    (theirs(twin) * weights).sum().backward()
    assert torch.equal(ours(x), theirs(twin))
    torch.testing.assert_close(x.grad, twin.grad)


def test_only_known_norms_are_replaced():
    model = nn.ModuleDict(
        {"known": LlamaRMSNorm(4), "other": nn.RMSNorm(4), "in": nn.Sequential(LlamaRMSNorm(4))}
    )
    replace_norms(model)
    kinds = [type(module).__name__ for module in model.modules() if not list(module.children())]
    assert kinds == ["FrozenRmsNorm", "RMSNorm", "FrozenRmsNorm"]
