"""What a job would train, as it is before the first step."""

from __future__ import annotations

from pathlib import Path

from finetuned_service.bases.inputs import base_inputs
from finetuned_service.bases.manifest import read_config
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.training.embeddings.model import EmbeddingModel
from finetuned_service.training.heads.adapted import AdaptedEncoder
from finetuned_service.training.heads.examples import read_head_data
from finetuned_service.training.model import load_model
from finetuned_service.training.trainable import Parameters
from finetuned_service.vocabulary import Task


def model_of(spec: TrainSpec, base: Path, train: Path) -> Parameters:
    """The base with the method of a resolved spec on it. Of a head alone nothing is asked."""
    match spec.task:
        case Task.TEXT_GENERATION:
            return load_model(base, spec)
        case Task.FEATURE_EXTRACTION:
            return EmbeddingModel.load(base, spec, base_inputs(read_config(base))[0])
        case _:
            data = read_head_data(spec, base, train, None)
            return AdaptedEncoder.load(base, spec, data.head, unit=data.unit)
