"""The forward of a vision model: images of one size as one batch, BatchNorm with the statistics it was stored with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, final

import torch
from torch import Tensor

from finetuned_service.bases.load import dtype_of
from finetuned_service.engine.messages import Pixels, Submit


@final
@dataclass(frozen=True, slots=True)
class VisionForward:
    """A transformers vision model that pools its last feature map."""

    module: Any
    context_tokens: int = 1
    vocabulary_tokens: int = 1

    def order(self, request: Submit) -> tuple[int, ...]:
        """Images of one size are one batch."""
        return self.batch_of(request)

    def batch_of(self, request: Submit) -> tuple[int, ...]:
        """The size of its image."""
        return request.pixels.shape if request.pixels else ()

    def run(self, requests: Sequence[Submit]) -> list[Tensor]:
        """`[1, width]` of each image, in their order."""
        found = [request.pixels for request in requests]
        images = [_tensor(pixels) for pixels in found if pixels is not None]
        vectors: list[Tensor] = []
        for _, batch in groupby(images, key=lambda image: image.shape):
            vectors.extend(self.encode(torch.stack(list(batch))).split(1))
        return vectors

    def encode(self, images: Tensor) -> Tensor:
        """`[N, channels, rows, columns]` to `[N, width]`."""
        pooled: Tensor = self.module(
            pixel_values=images.to(self.module.device, dtype_of(self.module))
        ).pooler_output
        return pooled.flatten(1)


def _tensor(pixels: Pixels) -> Tensor:
    return torch.frombuffer(bytearray(pixels.data), dtype=torch.float32).view(pixels.shape)
