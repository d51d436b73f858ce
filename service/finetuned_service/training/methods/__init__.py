"""How each method trains, one a module; `install` puts the one that a spec names on a base."""

from __future__ import annotations

from typing import Any

from finetuned_service.errors import Unimplemented
from finetuned_service.jobs.values import TrainSpec
from finetuned_service.training.methods import ia3, lora
from finetuned_service.training.methods.method import Installed
from finetuned_service.vocabulary import Method

__all__ = ["Installed", "install"]


def install(model: Any, spec: TrainSpec) -> Installed:
    """Put the method of a resolved spec on a frozen transformers causal LM or text encoder, in place.

    What begins at random follows torch's generator; set its seed before.
    """
    match spec.method:
        case Method.LORA:
            return lora.install(model, spec.lora)
        case Method.IA3:
            return ia3.install(model, spec.ia3)
        case Method.HEAD:
            raise Unimplemented.feature("METHOD_HEAD for text-generation", "METHOD_LORA")
