"""What an adapter does to its base beside low-rank updates, as the native decoder reads it (`source/change.h`).

Vectors are float32, weights are packed as the base's are.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from finetuned_service.adapters.geometry import HEAD
from finetuned_service.adapters.opened import MappedTensor
from finetuned_service.adapters.site_ops import (
    AddLowRank,
    MapOutput,
    ScaleInput,
    ScaleOutput,
    ScaleRows,
    SiteOp,
    SubstituteParameter,
)
from finetuned_service.engine.adapter_files import copied, not_finite
from finetuned_service.engine.adapter_weights import adapted_row_lengths
from finetuned_service.engine.lazy_pages import huge_page_bytes
from finetuned_service.engine.native.library import (
    ACTIVATIONS,
    PANEL,
    PARTS,
    SITES,
    ChangeStruct,
    LayerChangeStruct,
    Library,
    LoraPairStruct,
    SiteChangeStruct,
)
from finetuned_service.engine.native.weights import NativeWeights, pack_panels, packed_elements

_LAYER = re.compile(r".+\.layers\.(?P<number>\d+)(?:\.(?P<inside>.+))?")
_NORMS: Mapping[str, str] = {
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "post_norm",
    "self_attn.q_norm": "query_norm",
    "self_attn.k_norm": "key_norm",
}
"""Of a layer, and their fields in LayerChange."""

Ops = tuple[SiteOp[MappedTensor], ...]


@dataclass(frozen=True, slots=True, eq=False)
class PackedChange:
    """A Change and all that it points to, beside the pairs of bottlenecks."""

    struct: ChangeStruct
    kept: tuple[Tensor, ...]
    multiplies_apart: bool
    """It has weights or inputs of its own: its rows cannot share a product with those of the base."""

    @property
    def pointer(self) -> Any:
        return ctypes.pointer(self.struct)

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.kept)


@final
class ChangeBuilder:
    """Makes the Change of one adapter, module after module. See `packing.AdapterPacker` for the arguments."""

    def __init__(self, library: Library, weights: NativeWeights, weight_of: Callable[[str], Tensor]) -> None:
        self._library = library
        self._weights = weights
        self._weight_of = weight_of
        self._layers = (LayerChangeStruct * weights.geometry.layers)()
        self._struct = ChangeStruct(layers=self._layers)
        self._kept: list[Tensor] = []
        self._room = torch.empty(0, dtype=torch.bfloat16)
        self._apart = False

    def reserve(self, changes: Iterable[Ops]) -> None:
        """Make room for the weights among `changes`, in one block on huge pages as the base's are."""
        shapes = (op.value.shape for ops in changes for op in ops if isinstance(op, SubstituteParameter))
        elements = sum(packed_elements(shape) for shape in shapes if len(shape) > 1)
        if elements:
            self._room = huge_page_bytes(2 * elements).view(torch.bfloat16)

    def add(self, module: str, ops: Ops) -> None:
        """All ops of a module but updates and bottlenecks, whose pairs are packed elsewhere."""
        update = next((op.over(copied) for op in ops if isinstance(op, AddLowRank)), None)
        for op in ops:
            match op:
                case ScaleInput(gain):
                    self._apart = True
                    self._site(module).input_gain = self._vector(copied(gain))
                case ScaleOutput(gain):
                    self._site(module).output_gain = self._vector(copied(gain))
                case ScaleRows(magnitude):
                    assert update is not None, "a DoRA layout has A and B wherever it has a magnitude"
                    self._scale_rows(module, copied(magnitude), update)
                case SubstituteParameter(parameter, value, tied):
                    self._substitute((module, *tied), parameter, copied(value))
                case _:
                    pass

    def bottleneck(self, module: str, op: MapOutput[MappedTensor]) -> LoraPairStruct:
        """A bottleneck's biases; where its down and up go is returned, to be filled."""
        number, inside = self._place(module)
        part = self._layers[number].parts[PARTS.index(inside)]
        part.down_bias = self._vector(copied(op.down_bias))
        part.up_bias = self._vector(copied(op.up_bias).float() * op.scaling)
        part.activation = ACTIVATIONS.index(op.activation)
        part.parallel = op.parallel
        return part.pair

    def build(self, digest: str) -> PackedChange:
        """Raises: InvalidAdapterFiles, if it is not finite as it is served."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self._kept):
            raise not_finite(digest, torch.bfloat16)
        return PackedChange(self._struct, tuple(self._kept), self._apart)

    def _scale_rows(self, module: str, magnitude: Tensor, update: AddLowRank[Tensor]) -> None:
        """See `adapter_weights.load_op`; the bias is not scaled."""
        lengths = adapted_row_lengths(self._weight_of(module), update.a, update.b, update.scaling)
        gain = magnitude.float() / lengths
        site = self._site(module)
        site.output_gain = self._vector(gain)
        if (bias := self._weights.biases.get(module)) is not None:
            site.output_shift = self._vector((1 - gain) * bias)

    def _substitute(self, modules: Iterable[str], parameter: str, value: Tensor) -> None:
        """The same parameter at every module that shares it."""
        address = self._packed(value) if value.ndim > 1 else self._vector(value)
        self._apart = self._apart or value.ndim > 1
        for module in modules:
            if (base := self._weights.linears.get(module)) is not None:
                own = self._struct.head if module == HEAD else self._site(module).own
                if not own.packed:
                    own.packed, own.bias, own.outputs, own.inputs = (
                        base.packed,
                        base.bias,
                        base.outputs,
                        base.inputs,
                    )
                setattr(own, {"weight": "packed", "bias": "bias"}[parameter], address)
            elif module == f"{self._weights.decoder}.embed_tokens":
                self._struct.embedding = address
            elif module == f"{self._weights.decoder}.norm":
                self._struct.final_norm = address
            else:
                number, inside = self._place(module)
                setattr(self._layers[number], _NORMS[inside], address)

    def _site(self, module: str) -> SiteChangeStruct:
        number, inside = self._place(module)
        return self._layers[number].sites[SITES.index(inside.rpartition(".")[2])]

    def _place(self, module: str) -> tuple[int, str]:
        """The layer that a module is in, and its name there; empty for the layer itself."""
        found = _LAYER.fullmatch(module)
        assert found is not None, "the base's geometry has no such module"
        return int(found["number"]), found["inside"] or ""

    def _vector(self, values: Tensor) -> int:
        """In float32, filled up to whole panels with zeros."""
        flat = values.flatten().float()
        self._kept.append(functional.pad(flat, (0, -flat.numel() % PANEL)))
        return self._kept[-1].data_ptr()

    def _packed(self, weight: Tensor) -> int:
        elements = packed_elements(weight.shape)
        packed, self._room = self._room[:elements], self._room[elements:]
        pack_panels(self._library, weight.to(torch.bfloat16), packed)
        self._kept.append(packed)
        return packed.data_ptr()
