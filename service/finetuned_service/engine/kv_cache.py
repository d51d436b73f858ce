"""Keys and values of all running sequences, in one arena per layer.

Which tokens belong to whom is the scheduler's business (`RangeAllocator`); the arena only stores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finetuned_service.engine.lazy_pages import lazy_zeros


class KvArena:
    """`[kv_heads, capacity_tokens, head_dim]` for keys and for values of each layer.

    Heads come first: the tokens of a sequence are then one run of memory for each head. What is not
    used is not resident.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.capacity_tokens, self.dtype = capacity_tokens, dtype
        shape = (kv_heads, capacity_tokens, head_dim)
        self._keys = [lazy_zeros(shape, dtype, device) for _ in range(layers)]
        self._values = [lazy_zeros(shape, dtype, device) for _ in range(layers)]

    @property
    def size_bytes(self) -> int:
        return 2 * sum(keys.nbytes for keys in self._keys)

    @property
    def token_bytes(self) -> int:
        """Key and value of one token in one layer."""
        return 2 * self._keys[0][:, :1].nbytes

    def places(self, slots: Tensor) -> Tensor:
        """`[kv_heads * N]` int64 of `slots [N]`, all of the first head first: where their keys and values lie in a layer's
        arena seen as one matrix `[kv_heads * capacity_tokens, head_dim]`. Gathering rows of a matrix is one kernel on a
        GPU, and three times as fast there as gathering along the second dimension.
        """
        heads = torch.arange(self._keys[0].shape[0], device=slots.device)
        return (heads[:, None] * self.capacity_tokens + slots).view(-1)

    @torch.inference_mode()
    def copy(self, source: int, target: int, tokens: int) -> None:
        """Keys and values of all layers, from the slots at `source` to those at `target`, which do not overlap."""
        for stored in (*self._keys, *self._values):
            stored[:, target : target + tokens] = stored[:, source : source + tokens]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store rows `[kv_heads, T, head_dim]` at `slots [T]`; the layer's whole key and value arenas."""
        layer_keys, layer_values = self._keys[layer], self._values[layer]
        layer_keys.index_copy_(1, slots, keys)
        layer_values.index_copy_(1, slots, values)
        return layer_keys, layer_values
