"""How each method trains, one a module; `install` puts the one that a spec names on a base."""

from __future__ import annotations

from typing import Any

from finetuned_service.adapters.geometry import NO_GEOMETRY, BaseGeometry
from finetuned_service.jobs.methods.parameters import chosen_parameters
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.training.methods import bottleneck, ia3, lora, parameters
from finetuned_service.training.methods.method import Installed
from finetuned_service.vocabulary import Method

__all__ = ["Installed", "install"]


def install(model: Any, spec: TrainSpec, geometry: BaseGeometry = NO_GEOMETRY) -> Installed:
    """Put the method of a resolved spec on a frozen transformers causal LM or text encoder, in place.

    What begins at random follows torch's generator; set its seed before. `geometry` is of the base's files.
    """
    match spec.method:
        case Method.LORA | Method.QLORA:
            return lora.install(model, spec.lora, geometry)
        case Method.IA3:
            return ia3.install(model, spec.ia3, geometry)
        case Method.BOTTLENECK:
            return bottleneck.install(model, spec.bottleneck)
        case Method.HEAD | Method.LAYERS | Method.FULL:
            # A head alone leaves the embedding that it shares as it is.
            tied = geometry.tied if spec.method is not Method.HEAD else {}
            return parameters.install(model, spec.method, chosen_parameters(spec, geometry), tied)
