"""What the model says of every answer before it is trained: computed once, kept in the work directory.

The reference of DPO is the model that training began with. At that moment the method on the base changes nothing
(or is the version that is continued), so the reference needs no weights of its own, and its log-probabilities are
all that is ever asked of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from finetuned_service.bases.lender import BORROWED
from finetuned_service.jobs.events import Progress
from finetuned_service.jobs.pace import Stopped
from finetuned_service.jobs.process import ReportFunction, StopFlag
from finetuned_service.storage.files import write_atomically
from finetuned_service.training.loop import EVALUATION_ROWS
from finetuned_service.training.model import AdaptedModel
from finetuned_service.training.preferences.model import ReferencedPair, log_probabilities_of
from finetuned_service.training.preferences.pairs import EncodedPair

_NAME, _KEY = "log_probabilities", "task"


def with_reference(
    model: AdaptedModel,
    pairs: Sequence[EncodedPair],
    kept: Path,
    task_digest: str,
    report: ReportFunction,
    stop: StopFlag,
) -> list[ReferencedPair]:
    """The pairs with their reference; what an earlier attempt at the task computed is read from the file `kept`.

    Args:
        model: as training begins with it; no checkpoint restored.
        pairs: all of the job.
        kept: a file of the work directory.
        task_digest: what the file belongs to.
        report: takes Progress.
        stop: asks to end.

    Raises:
        Stopped: the process was asked to stop.
    """
    found = _read(kept, task_digest)
    if found is None:
        found = _compute(model, pairs, report, stop)
        BORROWED.refuse_lost()
        write_atomically(kept, save({_NAME: found}, metadata={_KEY: task_digest}))
    return [
        ReferencedPair(pair, (chosen, rejected))
        for pair, (chosen, rejected) in zip(pairs, found.tolist(), strict=True)
    ]


def _read(kept: Path, task_digest: str) -> Tensor | None:
    if not kept.exists():
        return None
    with safe_open(kept, "pt") as file:
        tensor: Tensor = file.get_tensor(_NAME)
        return tensor if (file.metadata() or {}).get(_KEY) == task_digest else None


@torch.no_grad()
def _compute(
    model: AdaptedModel, pairs: Sequence[EncodedPair], report: ReportFunction, stop: StopFlag
) -> Tensor:
    """[P, 2] in float64."""
    model.train(mode=False)
    # Pairs of like length side by side; the order of the file is put back at the end.
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index].token_ids))
    found = torch.empty(len(pairs), 2, dtype=torch.float64)
    for first in range(0, len(order), EVALUATION_ROWS // 2):
        if stop.is_set():
            raise Stopped
        report(Progress(phase="reference", step=first, total_steps=len(pairs)))
        part = order[first : first + EVALUATION_ROWS // 2]
        found[part] = log_probabilities_of(model, [pairs[index] for index in part]).double().cpu()
    model.train(mode=True)
    return found
