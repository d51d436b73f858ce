"""A Llama-like decoder layer with LoRA as one autograd function, its passes compiled.

What autograd would keep of a layer's some forty operators is several times what its gradient needs. Here a
layer keeps its input, the rotated queries and keys, the values, what attention returned, the sum before the
feed-forward part, and gate and up; norms and the product of gate and up are computed again. With
`checkpointing` it keeps the input alone and computes the rest again. Frozen weights get no gradient.

Parameters are float32 and products run in the base's dtype, as in `lora.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetuned_service.training.methods.lora import LoraLinear
from finetuned_service.training.native.kernels import LANES, MOST_HEAD_DIM, Kernels
from finetuned_service.training.norm import FrozenRmsNorm
from finetuned_service.training.packing import RowLayout

FUSED = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})
"""transformers' classes that compute exactly this. Others of a like name do not (Qwen3 norms its heads)."""

_SILU = frozenset({"SiLU", "SiLUActivation"})
_QKV, _O, _GATE_UP, _DOWN = slice(0, 3), slice(3, 4), slice(4, 6), slice(6, 7)


class FusedLayer(nn.Module):
    """Takes the place of a decoder layer whose linear modules are frozen, with LoRA or without.

    Args:
        plain: the layer; it still computes where LoRA's dropout is on.
        kernels: the compiled passes.
    """

    def __init__(self, plain: nn.Module, kernels: Kernels) -> None:
        super().__init__()
        self.plain = plain
        self.kernels = kernels
        self.checkpointing = False
        layer: Any = plain
        attention, mlp = layer.self_attn, layer.mlp
        self.modules_in_order: tuple[nn.Linear | LoraLinear, ...] = (
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.o_proj,
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
        )
        self.scaling: float = attention.scaling
        self.head_dim: int = attention.head_dim
        self.input_norm: FrozenRmsNorm = layer.input_layernorm
        self.post_norm: FrozenRmsNorm = layer.post_attention_layernorm

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        layout: RowLayout,
        **others: Any,
    ) -> Tensor:
        """As transformers calls a decoder layer; hidden_states: [1, T, d]."""
        if any(isinstance(m, LoraLinear) and m.dropout and m.training for m in self.modules_in_order):
            out: Tensor = self.plain(
                hidden_states, position_embeddings=position_embeddings, layout=layout, **others
            )
            return out
        parameters = [
            parameter
            for module in self.modules_in_order
            if isinstance(module, LoraLinear)
            for parameter in (module.lora_a, module.lora_b)
        ]
        cosines, sines = position_embeddings
        fused: Tensor = _FusedLayer.apply(
            hidden_states[0], cosines[0].contiguous(), sines[0].contiguous(), self, layout, *parameters
        )
        return fused[None]


def fuse(layers: nn.ModuleList, kernels: Kernels) -> None:
    """Put FusedLayer in the place of every layer that it computes."""
    for index, layer in enumerate(layers):
        if can_fuse(layer):
            layers[index] = FusedLayer(layer, kernels)


def can_fuse(layer: nn.Module) -> bool:
    """Whether `FusedLayer` computes what this layer does; its norms must be replaced already."""
    if type(layer).__name__ not in FUSED:
        return False
    known: Any = layer
    attention, mlp = known.self_attn, known.mlp
    # A bottleneck that stands in the place of one of the two has none of them.
    linears: list[Any] = [getattr(attention, f"{name}_proj", None) for name in "qkvo"]
    linears += [getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")]
    norms = [known.input_layernorm, known.post_attention_layernorm]
    widths = [norm.weight.shape[0] for norm in norms if isinstance(norm, FrozenRmsNorm)]
    weights = [_frozen(linear)[0] for linear in linears if type(linear) in (nn.Linear, LoraLinear)]
    if len(widths) < len(norms) or len(weights) < len(linears):
        return False
    return (
        all(weight.dtype is torch.bfloat16 and weight.device.type == "cpu" for weight in weights)
        and not any(size % LANES for size in (*widths, attention.head_dim, weights[4].shape[0]))
        and attention.head_dim <= MOST_HEAD_DIM
        # Qwen2 has it in the layer, Mistral in the configuration.
        and getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None)) is None
        and type(mlp.act_fn).__name__ in _SILU
    )


@dataclass(frozen=True, slots=True)
class _Site:
    """One linear module with its update, in the dtype of the products."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None
    scaling: float


class _Kept(NamedTuple):
    """What the gradient of a layer needs besides its input. All [T, …]."""

    input_scales: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    attended: Tensor
    sums: Tensor
    middle: Tensor
    middle_scales: Tensor
    gate: Tensor
    up: Tensor


class _FusedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cosines: Tensor,
        sines: Tensor,
        layer: FusedLayer,
        layout: RowLayout,
        *parameters: Tensor,
    ) -> Tensor:
        """x: [T, d]; cosines, sines: [T, D]; parameters: A and B of the modules that have them."""
        sites = _sites(layer, parameters)
        kept = _until_gate_and_up(layer, sites, x, cosines, sines, layout)
        activated = layer.kernels.swiglu_forward(kept.gate, kept.up)
        (out,) = _project(sites[_DOWN], activated)
        ctx.layer, ctx.layout = layer, layout
        ctx.recomputes = layer.checkpointing
        ctx.save_for_backward(x, cosines, sines, *(() if layer.checkpointing else kept), *parameters)
        return out.add_(kept.middle)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layer, layout = ctx.layer, ctx.layout
        kernels: Kernels = layer.kernels
        x, cosines, sines, *rest = ctx.saved_tensors
        count = 0 if ctx.recomputes else len(_Kept._fields)
        sites = _sites(layer, rest[count:])
        kept = (
            _until_gate_and_up(layer, sites, x, cosines, sines, layout)
            if ctx.recomputes
            else _Kept(*rest[:count])
        )
        grad = grads[0].contiguous()
        # The feed-forward part.
        down = _Gradients(sites[_DOWN], [grad])
        activated, d_gate, d_up = kernels.swiglu_backward(kept.gate, kept.up, down.of_input())
        normed, _ = kernels.rms_forward(kept.middle, layer.post_norm.weight, layer.post_norm.eps)
        gate_up = _Gradients(sites[_GATE_UP], [d_gate, d_up])
        found = [*gate_up.of_parameters(normed), *down.of_parameters(activated)]
        grad = kernels.rms_backward(
            gate_up.of_input(), kept.middle, layer.post_norm.weight, kept.middle_scales, grad
        )
        # The attention part.
        output = _Gradients(sites[_O], [grad])
        found[:0] = output.of_parameters(kept.attended)
        d_attended = output.of_input()
        q, k, v, attended = (_heads(t, layer.head_dim) for t in (kept.q, kept.k, kept.v, kept.attended))
        d_heads = kernels.attention_backward(
            q, k, v, attended, kept.sums, _heads(d_attended, layer.head_dim), layout, layer.scaling
        )
        for turned in d_heads[:2]:
            kernels.rotate_(turned, cosines, sines, back=True)
        d_qkv = [heads.flatten(1) for heads in d_heads]
        normed, _ = kernels.rms_forward(x, layer.input_norm.weight, layer.input_norm.eps)
        qkv = _Gradients(sites[_QKV], d_qkv)
        found[:0] = qkv.of_parameters(normed)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = kernels.rms_backward(qkv.of_input(), x, layer.input_norm.weight, kept.input_scales, grad)
        return d_x, None, None, None, None, *found


def _until_gate_and_up(
    layer: FusedLayer, sites: Sequence[_Site], x: Tensor, cosines: Tensor, sines: Tensor, layout: RowLayout
) -> _Kept:
    kernels, norm = layer.kernels, layer.input_norm
    normed, input_scales = kernels.rms_forward(x, norm.weight, norm.eps)
    q, k, v = _project(sites[_QKV], normed)
    for turned in (q, k):
        kernels.rotate_(_heads(turned, layer.head_dim), cosines, sines)
    by_head, sums = kernels.attention_forward(
        _heads(q, layer.head_dim), _heads(k, layer.head_dim), _heads(v, layer.head_dim), layout, layer.scaling
    )
    attended = by_head.flatten(1)
    (middle,) = _project(sites[_O], attended)
    middle.add_(x)
    norm = layer.post_norm
    normed, middle_scales = kernels.rms_forward(middle, norm.weight, norm.eps)
    gate, up = _project(sites[_GATE_UP], normed)
    return _Kept(input_scales, q, k, v, attended, sums, middle, middle_scales, gate, up)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    return x.view(x.shape[0], -1, head_dim)


def _frozen(module: nn.Linear | LoraLinear) -> tuple[Tensor, Tensor | None]:
    linear = module.base if isinstance(module, LoraLinear) else module
    return linear.weight, linear.bias


def _sites(layer: FusedLayer, parameters: Iterable[Tensor]) -> list[_Site]:
    left = iter(parameters)
    sites: list[_Site] = []
    for module in layer.modules_in_order:
        weight, bias = _frozen(module)
        if isinstance(module, LoraLinear):
            a, b = (next(left).to(weight.dtype) for _ in range(2))
            sites.append(_Site(weight, bias, a, b, module.scaling))
        else:
            sites.append(_Site(weight, bias, None, None, 0.0))
    return sites


def _project(sites: Sequence[_Site], x: Tensor) -> list[Tensor]:
    """What each of the sites makes of x, [T, in]: [T, out] each."""
    outs: list[Tensor] = []
    for site in sites:
        out = functional.linear(x, site.weight, site.bias)
        if site.a is not None and site.b is not None:
            out.addmm_((x @ site.a.T).mul_(site.scaling), site.b.T)
        outs.append(out)
    return outs


class _Gradients:
    """What the gradients of some sites' outputs, [T, out] each, give to their common input and to A and B."""

    def __init__(self, sites: Sequence[_Site], grads: Sequence[Tensor]) -> None:
        self._sites, self._grads = sites, grads
        self._shrunk = [
            None if site.b is None else (grad @ site.b).mul_(site.scaling)
            for site, grad in zip(sites, grads, strict=True)
        ]

    def of_input(self) -> Tensor:
        """[T, in]."""
        total = self._grads[0] @ self._sites[0].weight
        for site, grad in zip(self._sites[1:], self._grads[1:], strict=True):
            total.addmm_(grad, site.weight)
        for site, shrunk in zip(self._sites, self._shrunk, strict=True):
            if site.a is not None and shrunk is not None:
                total.addmm_(shrunk, site.a)
        return total

    def of_parameters(self, x: Tensor) -> list[Tensor]:
        """A's and B's of each site that has them, float32. x: their input, [T, in]."""
        found: list[Tensor] = []
        for site, grad, shrunk in zip(self._sites, self._grads, self._shrunk, strict=True):
            if site.a is not None and shrunk is not None:
                found.append((shrunk.T @ x).float())
                found.append((grad.T @ (x @ site.a.T).mul_(site.scaling)).float())
        return found
