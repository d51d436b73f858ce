"""A base that encodes with a method on it, and the head over it: they train together (`training/loop.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.head import Head
from finetuned_service.bases.device import CPU
from finetuned_service.bases.load import dtype_of
from finetuned_service.bases.resident import put_on
from finetuned_service.engine.encoders.model import forward_of, load_module
from finetuned_service.engine.encoders.pooling import pool
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.training.heads.examples import Example
from finetuned_service.training.heads.features import request_of
from finetuned_service.training.heads.model import TrainedHead
from finetuned_service.training.heads.unit import Unit
from finetuned_service.training.methods import install


class AdaptedEncoder:
    """See `training.loop.Trainable`. The method begins where the base is as it was."""

    def __init__(
        self,
        module: Any,
        spec: TrainSpec,
        head: Head,
        geometry: BaseGeometry,
        weights: Sequence[float] | None = None,
        unit: Unit | None = None,
    ) -> None:
        """Args:
        module: as `load_module` gives it; changed in place. The method and the head go where it is.
        spec: resolved.
        head: what the outputs mean.
        geometry: of the base's files.
        weights: see `TrainedHead`.
        unit: see `TrainedHead`.
        """
        device = module.device
        torch.manual_seed(spec.optimization.seed)
        method = install(module, spec, geometry)
        self.dtype = dtype_of(module)
        """See `Trainable`."""
        self._forward = forward_of(module)
        self._told = head
        self._switched = method.switched
        self.head = TrainedHead(head, geometry.width, weights, unit, device)
        put_on(module, device)
        self.installed = self.head.beside(method)

    @classmethod
    def load(
        cls,
        directory: Path,
        spec: TrainSpec,
        head: Head,
        weights: Sequence[float] | None = None,
        device: torch.device = CPU,
        unit: Unit | None = None,
    ) -> AdaptedEncoder:
        """The method of a resolved spec on the base in `directory`, on the device."""
        module = load_module(directory, device)
        return cls(module, spec, head, BaseGeometry.of_files(directory), weights, unit)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """By their names in the adapter's file, without its prefix."""
        yield from self.installed.parameters.items()

    def outputs_of(self, rows: Sequence[Example]) -> Tensor:
        """See `measure.Answering`."""
        requests = [request_of(row, self._told) for row in rows]
        vectors: list[Tensor] = []
        for row, request, encoded in zip(rows, requests, self._forward.run(requests), strict=True):
            exact = encoded.float()
            wanted = request.encode
            pooled = pool(exact, wanted.pooling if wanted else None)
            vectors.append(exact[list(row.places)] if row.places else pooled)
        return self.head.outputs(torch.cat(vectors))

    def loss_of(self, rows: Sequence[Example], scale: float) -> Tensor:
        """`scale` times the summed loss of the rows; a scalar."""
        return scale * self.head.loss(self.outputs_of(rows), rows)

    def train(self, mode: bool) -> None:  # noqa: FBT001 - as nn.Module.train
        """Dropout of the method on or off; the base has none that trains."""
        for module in self._switched:
            module.train(mode)
