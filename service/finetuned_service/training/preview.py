"""What a TrainJob will find in its rows, told before it starts. Torch-free: the RPC process asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.jobs.methods import CLASSIFICATION_TASKS
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.names import BaseName
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.training.data import read_job_data
from finetuned_service.training.embeddings.pairs import read_embedding_data
from finetuned_service.training.heads.examples import read_head_data
from finetuned_service.training.preferences.pairs import read_pair_data
from finetuned_service.vocabulary import DataReport, Objective, Task


@dataclass(frozen=True, slots=True)
class RowPreview:
    """Reads the rows of a resolved spec exactly as the job process will (`jobs/submit.py`)."""

    bases: BaseCatalog

    def __call__(self, spec: TrainSpec, train_path: Path, eval_path: Path | None) -> DataReport:
        """The data report.

        Raises:
            InvalidData: rows that cannot be trained on, by line.
        """
        base = self.bases.path(BaseName.parse(spec.base))
        if spec.task is Task.FEATURE_EXTRACTION:
            return read_embedding_data(spec, base, train_path, eval_path).report
        if spec.task in CLASSIFICATION_TASKS:
            return read_head_data(spec, base, train_path, eval_path, decoded_bytes=0).report
        tokenizer = BaseTokenizer.load(base)
        if spec.objective is Objective.DPO:
            return read_pair_data(spec, tokenizer, train_path, eval_path).report
        return read_job_data(spec, tokenizer, train_path, eval_path).report
