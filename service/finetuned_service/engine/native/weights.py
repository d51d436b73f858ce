"""The base as the native decoder reads it: linear weights packed, norms and angles in float32.

Packing is a private copy of the linear weights. Where the packed copy stands for the stored one, nothing
else keeps the stored one in memory: it stays in the file.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetuned_service.engine.lazy_pages import huge_page_bytes
from finetuned_service.engine.native.geometry import Geometry
from finetuned_service.engine.native.library import (
    PANEL,
    SITES,
    LayerStruct,
    Library,
    LinearStruct,
    ModelStruct,
)


def packed_elements(shape: Sequence[int]) -> int:
    """Of a weight `[outputs, inputs]` when it is packed: its outputs fill whole panels."""
    outputs, inputs = shape
    return -(-outputs // PANEL) * PANEL * inputs


def pack_panels(library: Library, weight: Tensor, packed: Tensor) -> None:
    """`[outputs, inputs]` bfloat16 to panels `[packed_elements]`."""
    outputs, inputs = weight.shape
    stored = weight.detach().contiguous()
    library.pack_panels(stored.data_ptr(), outputs, inputs, packed.data_ptr())


def unpack_panels(library: Library, packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The way back: bit for bit what was packed."""
    weight = torch.empty(outputs, inputs, dtype=torch.bfloat16)
    library.unpack_panels(packed.data_ptr(), outputs, inputs, weight.data_ptr())
    return weight


class NativeWeights:
    """Owns every tensor that its structs point to, except the arenas of keys and values."""

    def __init__(self, library: Library, model: Any, geometry: Geometry) -> None:
        """Pack `model`, one module after another; `decoder` is the name of its part with the layers."""
        self.geometry = geometry
        self._library = library
        self._kept: list[Tensor] = []
        self._packed: dict[str, tuple[Tensor, int, int]] = {}
        self._linears: dict[str, LinearStruct] = {}
        self._biases: dict[str, Tensor] = {}
        decoder = model.get_decoder()
        head = model.get_output_embeddings()
        linears = [_linear_of(layer, site)[1] for layer in decoder.layers for site in SITES]
        sizes = [packed_elements(linear.weight.shape) for linear in (*linears, head)]
        # Huge pages: a step reads every byte of it, and would wait for the address of each small page.
        self._blocks = iter(huge_page_bytes(2 * sum(sizes)).view(torch.bfloat16).split(sizes))
        self.decoder = next(name for name, module in model.named_modules() if module is decoder)
        self._layers = (LayerStruct * geometry.layers)()
        for index, (struct, layer) in enumerate(zip(self._layers, decoder.layers, strict=True)):
            self._fill_layer(struct, layer, f"{self.decoder}.layers.{index}")
        cosines, sines = _angles(decoder.rotary_emb, geometry)
        self._struct = ModelStruct(
            layers=self._layers,
            embedding=self._keep(model.get_input_embeddings().weight),
            final_norm=self._keep(decoder.norm.weight.float()),
            cosines=self._keep(cosines),
            sines=self._keep(sines),
            head=self._linear(head, "lm_head"),
            layer_count=geometry.layers,
            hidden=geometry.hidden,
            intermediate=geometry.intermediate,
            heads=geometry.heads,
            kv_heads=geometry.kv_heads,
            head_dim=geometry.head_dim,
            epsilon=geometry.epsilon,
            scaling=float(decoder.layers[0].self_attn.scaling),
        )

    def with_arena(self, arena: Tensor) -> tuple[ctypes.Array[LayerStruct], ModelStruct]:
        """Layers and model of one engine.

        Args:
            arena: of its keys and values, `[blocks, layers, 2, kv_heads, PANEL * head_dim]` bfloat16.
        """
        layers = type(self._layers).from_buffer_copy(self._layers)
        for index, struct in enumerate(layers):
            struct.keys, struct.values = (arena[0, index, part].data_ptr() for part in (0, 1))
        model = ModelStruct.from_buffer_copy(self._struct)
        model.layers = layers
        model.kv_stride = arena.stride(0)
        return layers, model

    def readers(self) -> dict[str, Callable[[], Tensor]]:
        """For each packed weight, by its name in the file, how to read it back out of its packed form."""
        return {
            name: partial(unpack_panels, self._library, packed, outputs, inputs)
            for name, (packed, outputs, inputs) in self._packed.items()
        }

    @property
    def linears(self) -> Mapping[str, LinearStruct]:
        """The linear modules and the head, by name."""
        return self._linears

    @property
    def biases(self) -> Mapping[str, Tensor]:
        """Their biases in float32, by the module's name."""
        return self._biases

    @property
    def packed_bytes(self) -> int:
        return sum(packed.nbytes for packed, _, _ in self._packed.values())

    def _fill_layer(self, struct: LayerStruct, layer: Any, name: str) -> None:
        attention = layer.self_attn
        struct.input_norm = self._keep(layer.input_layernorm.weight.float())
        struct.post_norm = self._keep(layer.post_attention_layernorm.weight.float())
        for field, norm in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            module = getattr(attention, norm, None)
            setattr(struct, field, None if module is None else self._keep(module.weight.float()))
        for index, site in enumerate(SITES):
            parent, module = _linear_of(layer, site)
            struct.sites[index] = self._linear(module, f"{name}.{parent}.{site}")

    def _linear(self, module: Any, name: str) -> LinearStruct:
        outputs, inputs = module.weight.shape
        packed = next(self._blocks)
        pack_panels(self._library, module.weight, packed)
        self._packed[f"{name}.weight"] = (packed, outputs, inputs)
        if module.bias is not None:
            self._biases[name] = module.bias.detach().float().contiguous()
        bias = self._biases[name].data_ptr() if name in self._biases else None
        self._linears[name] = LinearStruct(packed.data_ptr(), bias, outputs, inputs)
        return self._linears[name]

    def _keep(self, tensor: Tensor) -> int:
        kept = tensor.detach().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()


def _linear_of(layer: Any, site: str) -> tuple[str, Any]:
    """The name of its part of the layer, and the module."""
    parent = "self_attn" if hasattr(layer.self_attn, site) else "mlp"
    return parent, getattr(getattr(layer, parent), site)


def _angles(rotary: Any, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[context, head_dim / 2]` float32 of transformers' own rotary embedding."""
    positions = torch.arange(geometry.context)[None]
    with torch.inference_mode():
        cosines, sines = rotary(torch.zeros(1, dtype=torch.float32), positions)
    half = geometry.head_dim // 2
    return cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()
