"""A base that encodes with a method on it, trained on pairs (`training/loop.py`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.device import CPU
from finetuned_service.bases.load import dtype_of
from finetuned_service.bases.resident import put_on
from finetuned_service.engine.encoders.model import forward_of, load_module
from finetuned_service.engine.encoders.pooling import pool
from finetuned_service.engine.messages import Encode, Sampling, Submit
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.training.embeddings.evaluate import scored
from finetuned_service.training.embeddings.figures import Vectors
from finetuned_service.training.embeddings.in_parts import vectors_in_parts
from finetuned_service.training.embeddings.loss import cosine_loss, in_batch_loss
from finetuned_service.training.embeddings.pairs import PairExample, Tokens
from finetuned_service.training.loop import HeldOut
from finetuned_service.training.methods import install
from finetuned_service.vocabulary import Pooling


class EmbeddingModel:
    """See `training.loop.Trainable`; the rows of a call are each other's negatives."""

    def __init__(
        self, module: Any, spec: TrainSpec, pooling: Pooling, geometry: BaseGeometry, rows_at_once: int = 0
    ) -> None:
        """Args:
        module: as `load_module` gives it; changed in place. The method goes where it is.
        spec: resolved.
        pooling: how the vectors of a text's tokens become one.
        geometry: of the base's files.
        rows_at_once: fewer than the spec's, where the memory had no room; 0 for as many as it says.
        """
        device = module.device
        torch.manual_seed(spec.optimization.seed)
        self.installed = install(module, spec, geometry)
        put_on(module, device)
        self.dtype = dtype_of(module)
        """See `Trainable`."""
        self._forward = forward_of(module)
        self._pooling, self._scale = pooling, spec.contrastive.scale
        self._batch_rows = spec.optimization.batch_rows
        self._rows_at_once = rows_at_once or spec.optimization.micro_batch_rows or self._batch_rows

    @classmethod
    def load(
        cls,
        directory: Path,
        spec: TrainSpec,
        pooling: Pooling,
        device: torch.device = CPU,
        rows_at_once: int = 0,
    ) -> EmbeddingModel:
        """The method of a resolved spec on the base in `directory`, on the device."""
        module = load_module(directory, device)
        return cls(module, spec, pooling, BaseGeometry.of_files(directory), rows_at_once)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """By their names in the adapter's file, without its prefix."""
        yield from self.installed.parameters.items()

    def loss_of(self, rows: Sequence[PairExample], scale: float) -> Tensor:
        """`scale` times the summed loss of the rows; a scalar. All have scores, or none has."""
        anchors, candidates = self._vectors(_anchors(rows), rows), self._vectors(_candidates(rows), rows)
        return scale * self._loss(rows, anchors, candidates)

    @torch.no_grad()
    def measure(self, rows: Sequence[PairExample]) -> HeldOut:
        """The mean loss of held-out rows in batches as large as a step's, and how well their texts are found among all of
        theirs, or their scores told; at least one row.
        """
        parts = [rows[start : start + self._batch_rows] for start in range(0, len(rows), self._batch_rows)]
        if len(parts) > 1 and len(parts[-1]) == 1:
            # Alone it would be told apart from nothing.
            parts[-2:] = [[*parts[-2], *parts[-1]]]
        scale, loss, vectors = 1.0 / len(rows), 0.0, dict[Tokens, Vectors]()
        self.train(mode=False)
        for part in parts:
            anchors, candidates = (
                self._vectors(_anchors(part), part),
                self._vectors(_candidates(part), part),
            )
            loss += (scale * self._loss(part, anchors, candidates)).item()
            found = torch.cat([anchors, candidates]).float().cpu().numpy()
            vectors.update(zip((*_anchors(part), *_candidates(part)), found, strict=True))
        self.train(mode=True)
        return HeldOut(loss, scored(rows, vectors).metrics)

    def _loss(self, rows: Sequence[PairExample], anchors: Tensor, candidates: Tensor) -> Tensor:
        """Summed over the rows; the vectors `[N, width]` and `[M, width]` of their texts."""
        scores = [row.score for row in rows if row.score is not None]
        if scores:
            targets = torch.tensor(scores, dtype=anchors.dtype, device=anchors.device)
            return cosine_loss(anchors, candidates, targets)
        texts = _candidates(rows)
        same = torch.tensor([[text == row.positive for text in texts] for row in rows], device=anchors.device)
        return in_batch_loss(anchors, candidates, same, self._scale)

    def train(self, mode: bool) -> None:  # noqa: FBT001 - as nn.Module.train
        """Dropout of the method on or off; the base has none that trains."""
        for module in self.installed.switched:
            module.train(mode)

    def _vectors(self, texts: Sequence[Tokens], rows: Sequence[PairExample]) -> Tensor:
        """`[N, width]` of texts of rows, float32 or wider; equal texts are computed once, and those of so many rows together
        as run at once.
        """
        distinct = sorted(dict.fromkeys(texts), key=len)
        size = math.ceil(len(distinct) / math.ceil(len(rows) / self._rows_at_once))
        parts = [distinct[start : start + size] for start in range(0, len(distinct), size)]
        vectors = vectors_in_parts(self, parts, self._together)
        place = {tokens: number for number, tokens in enumerate(distinct)}
        return vectors[[place[tokens] for tokens in texts]]

    def _together(self, texts: Sequence[Tokens]) -> Tensor:
        requests = [
            Submit(number, tokens, None, Sampling(1), encode=Encode(self._pooling))
            for number, tokens in enumerate(texts)
        ]
        found = self._forward.run(requests)
        wide = torch.promote_types(found[0].dtype, torch.float32)
        return torch.cat([pool(rows.to(wide), self._pooling) for rows in found])


def _anchors(rows: Sequence[PairExample]) -> list[Tokens]:
    return [row.anchor for row in rows]


def _candidates(rows: Sequence[PairExample]) -> list[Tokens]:
    """The positives in the rows' order, then all negatives."""
    return [*(row.positive for row in rows), *(negative for row in rows for negative in row.negatives)]
