"""HEAD of a decoder, LAYERS and FULL: parameters of the base itself, trained as float32 copies of theirs.

The products run with the copies rounded to the base's dtype: AdamW's small updates are not lost, and what is
computed is what will be stored and served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from finetuned_service.adapters.geometry import HEAD, BaseGeometry
from finetuned_service.adapters.layouts.parameters import ParametersLayout
from finetuned_service.bases.load import dtype_of
from finetuned_service.jobs.methods.saved import saved_parameters
from finetuned_service.training.methods.method import Installed, replace_module
from finetuned_service.training.norm import FrozenRmsNorm, rms_norm
from finetuned_service.vocabulary import Method


class TrainedModule(nn.Module):
    """Takes the place of a module of transformers, and computes with copies of some of its parameters.

    Args:
        base: frozen.
        copies: by their names in it.
        dtype: the base's.
        turned: the copy of its weight is `[in, out]`, and the base's `[out, in]`.
    """

    def __init__(
        self, base: nn.Module, copies: Mapping[str, nn.Parameter], dtype: torch.dtype, *, turned: bool = False
    ) -> None:
        super().__init__()
        self.base = base
        self._dtype = dtype
        self._turned = turned
        self._names = tuple(copies)
        self.copies = nn.ParameterList(copies.values())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers calls the module."""
        rounded = {name: copy.to(self._dtype) for name, copy in zip(self._names, self.copies, strict=True)}
        if self._turned:
            rounded["weight"] = rounded["weight"].T
        if isinstance(self.base, FrozenRmsNorm):
            return rms_norm(args[0], self.base.eps) * rounded["weight"]
        return functional_call(self.base, rounded, args, kwargs)


def install(
    model: Any, method: Method, names: Iterable[str], tied: Mapping[str, tuple[str, ...]]
) -> Installed:
    """Copies of the named parameters in their places.

    Args:
        model: with `norm.replace_norms` done.
        method: which of the three.
        names: as in the base's file; a head that shares the embedding's weight gets a copy of its own if it is named.
        tied: parameter → other modules that share it, and go on sharing it.
    """
    copies = put_copies(model, names)
    kept = {name: modules for name, modules in tied.items() if name in copies}
    shared = next((copies[name] for name, modules in kept.items() if HEAD in modules), None)
    layout = ParametersLayout(method, tuple(sorted(copies)), kept)
    return Installed(copies, head=copies.get(f"{HEAD}.weight", shared), config=layout.spelled_out(()))


def put_saved(model: Any, names: Iterable[str], geometry: BaseGeometry) -> dict[str, nn.Parameter]:
    """As `put_copies`, of resolved `modules_to_save`."""
    return put_copies(model, saved_parameters(names, geometry.parameters), geometry.saved_turned)


def put_copies(
    model: Any, names: Iterable[str], turned: Callable[[str], bool] = lambda _: False
) -> dict[str, nn.Parameter]:
    """A trainable copy of each named parameter in its place, by its full name, in the model's order.

    The head's is not put anywhere: the loss computes with it.

    Args:
        model: with `norm.replace_norms` done.
        names: as in the base's file.
        turned: whether the copy of a module's weight is kept as `[in, out]`, by the module's name.
    """
    wanted, dtype = set(names), dtype_of(model)
    copies: dict[str, nn.Parameter] = {}
    by_module: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in wanted:
            value: Tensor = parameter.detach()
            exact = torch.promote_types(value.dtype, torch.float32)
            module, _, part = name.rpartition(".")
            if part == "weight" and turned(module):
                value = value.T
            # In the order of its own shape: a turned weight of GPT-2 would keep its strides, and no file takes those.
            copy = torch.empty(value.shape, dtype=exact, device=value.device).copy_(value)
            copies[name] = by_module.setdefault(module, {})[part] = nn.Parameter(copy)
    for module, parts in by_module.items():
        if module != HEAD:
            replace_module(
                model,
                module,
                TrainedModule(
                    model.get_submodule(module), parts, dtype, turned="weight" in parts and turned(module)
                ),
            )
    return copies
