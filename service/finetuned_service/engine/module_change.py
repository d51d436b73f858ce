"""What adapters do at modules that are no sites: norms, embeddings, convolutions, the head, sublayers and layers.

For the rows of each adapter alone, what such a module returns is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.site_ops import Activation, AddLowRank, MapOutput, SubstituteParameter
from finetuned_service.bases.int8 import Int8Embedding
from finetuned_service.bases.load import dense_weight
from finetuned_service.engine.adapter_weights import LoadedOp, ScaleProduct
from finetuned_service.engine.sites import CurrentStep

RowOps = tuple[slice, tuple[LoadedOp, ...]]
"""Neighbouring rows, and what happens to them."""

_FUNCTIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    Activation.RELU: functional.relu,
    Activation.GELU: functional.gelu,
    Activation.SILU: functional.silu,
}


def bottleneck(op: MapOutput[Tensor], rows: Tensor) -> Tensor:
    """What a bottleneck adds for `rows` `[..., hidden]`."""
    inner = _FUNCTIONS[op.activation](functional.linear(rows, op.down, op.down_bias))
    return functional.linear(inner, op.up, op.up_bias) * op.scaling


def with_parameters(module: nn.Module, rows: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """What a module makes of `rows` with other parameters, each by its name; its own ones may be packed."""
    if isinstance(module, nn.Linear):
        own_bias: Any = module.bias
        weight = parameters["weight"] if "weight" in parameters else dense_weight(module)
        return functional.linear(rows, weight, parameters.get("bias", own_bias))
    if type(module) in {nn.Embedding, Int8Embedding}:
        return functional.embedding(rows, parameters["weight"])
    # torch's annotation has it return anything.
    outputs: Tensor = functional_call(module, dict(parameters), (rows,))
    return outputs


def low_rank(convolution: nn.Conv2d, images: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """What an update of rank r, `a [r, in, rows, columns]` and `b [out, r, 1, 1]`, adds unscaled (as in PEFT)."""
    # torch's annotation has padding a string, too; a module keeps numbers unless it was given one.
    inner = functional.conv2d(images, a, stride=convolution.stride, padding=convolution.padding)
    return functional.conv2d(inner, b)


def scale_channels(convolution: nn.Conv2d, outputs: Tensor, gain: Tensor) -> None:
    """What DoRA does to `outputs [N, out, rows, columns]`, in place: all but the bias is scaled by `gain [out]`."""
    each = gain[:, None, None]
    if convolution.bias is None:
        outputs.mul_(each)
    else:
        bias = convolution.bias[:, None, None]
        outputs.sub_(bias).mul_(each).add_(bias)


def substituted(ops: Iterable[LoadedOp]) -> dict[str, Tensor]:
    """The parameters that the ops of one adapter put in the place of a module's own."""
    return {op.parameter: op.value for op in ops if isinstance(op, SubstituteParameter)}


@final
class RowChange:
    """See `sites.ModuleChange`."""

    __slots__ = ("_changes",)

    def __init__(self, changes: Sequence[RowOps]) -> None:
        self._changes = changes

    def __call__(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        for rows, ops in self._changes:
            if parameters := substituted(ops):
                outputs[rows] = with_parameters(module, inputs[rows], parameters)
            for op in ops:
                match op:
                    case MapOutput():
                        source = inputs if op.parallel else outputs
                        outputs[rows] += bottleneck(op, source[rows])
                    case AddLowRank(a, b, scaling) if isinstance(module, nn.Conv2d):
                        outputs[rows] += low_rank(module, inputs[rows], a, b) * scaling
                    case ScaleProduct(gain) if isinstance(module, nn.Conv2d):
                        scale_channels(module, outputs[rows], gain)
                    case _:
                        pass


@final
class ModuleSite(nn.Module):
    """A module of the base with parameters of its own, and what adapters make of them."""

    def __init__(self, base: nn.Module, name: str, current: CurrentStep, *, packed: bool) -> None:
        super().__init__()
        self.base = base
        self._name = name
        self._current = current
        self._packed = packed

    def forward(self, inputs: Tensor) -> Tensor:
        """`[1, T, ...]` to `[1, T, ...]`, rows packed; or `[N, ...]` to `[N, ...]`, images."""
        outputs: Tensor = self.base(inputs)
        changes = self._current.modules
        if changes is not None and (change := changes.get(self._name)) is not None:
            if self._packed:
                change(self.base, inputs[0], outputs[0])
            else:
                change(self.base, inputs, outputs)
        return outputs


def install_module_sites(
    model: nn.Module, geometry: BaseGeometry, current: CurrentStep, *, packed: bool = True
) -> None:
    """Let adapters act at every module with parameters that is no linear module of a layer.

    Args:
        model: of transformers, whose linear sites are not installed yet; changed in place.
        geometry: of its files.
        current: what is looked at in each forward.
        packed: its rows are packed into one; else it computes a batch of images.
    """
    owners = dict.fromkeys(name.rpartition(".")[0] for name in geometry.parameters)
    for name in owners:
        if name not in geometry.linear_shapes:
            parent, _, last = name.rpartition(".")
            site = ModuleSite(model.get_submodule(name), name, current, packed=packed)
            setattr(model.get_submodule(parent), last, site)
    for name in geometry.sublayers.keys() - geometry.linear_shapes.keys():
        _change_output(model.get_submodule(name), name, current)


def _change_output(module: nn.Module, name: str, current: CurrentStep) -> None:
    """A layer and its parts stay in their place: others read their attributes, and they return more than one value."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        changes = current.modules
        if changes is not None and (change := changes.get(name)) is not None:
            inputs = args[0] if args else kwargs["hidden_states"]
            outputs = output[0] if isinstance(output, tuple) else output
            change(module, inputs[0], outputs[0])

    module.register_forward_hook(hook, with_kwargs=True)
