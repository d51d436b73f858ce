"""Which modules of a base change format. Decided from the model class alone, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from finetuned_service.errors import InvalidField
from finetuned_service.jobs.specs import QuantizeSpec
from finetuned_service.vocabulary import WeightFormat

PLAIN: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding, Conv1D)
"""Classes that compute nothing but their product or look-up, which is what packed ones compute in their place."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Module names, in the order of the model. Norms and biases are never candidates."""

    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    """Linear and embedding modules that stay in the source's format."""
    stored: tuple[str, ...]
    """Those of `quantized` that own their weight; a tied output layer has the embeddings'."""
    turned: frozenset[str]
    """Those of `stored` whose weight lies as [in, out] in the source (GPT-2's Conv1D); quantized it lies as [out, in]."""


def plan_quantization(directory: Path, spec: QuantizeSpec) -> Plan:
    """Linear layers of the decoder always; embeddings of tokens and the output layer if asked for.

    Embeddings of positions stay: they are small, and in every token. The output layer goes with the embeddings, tied to
    them or not: it is as large, and the last thing between the model and its answer. Modules of a class that derives
    from the usual ones stay: they compute something of their own.

    Args:
        directory: the source base.
        spec: what to make of it.

    Raises:
        InvalidField: if embeddings are asked for in a format that has none, or are of a class of their own.
    """
    if spec.quantize_embeddings and spec.weight_format is not WeightFormat.INT8:
        raise InvalidField.one(
            "quantize_embeddings",
            f"is set with weight_format {spec.weight_format}; embeddings can be INT8 only: unset it, or "
            "choose INT8",
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory, local_files_only=True))
    token_layers = (model.get_input_embeddings(), model.get_output_embeddings())
    if spec.quantize_embeddings:
        _refuse_own_classes(token_layers)
    quantized: list[str] = []
    kept: list[str] = []
    stored: dict[int, str] = {}
    turned: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, PLAIN):
            continue
        of_tokens = any(module is layer for layer in token_layers)
        positions = isinstance(module, nn.Embedding) and not of_tokens
        if (of_tokens and not spec.quantize_embeddings) or positions or type(module) not in PLAIN:
            kept.append(name)
            continue
        quantized.append(name)
        stored.setdefault(id(module.weight), name)
        if isinstance(module, Conv1D):
            turned.add(name)
    return Plan(tuple(quantized), tuple(kept), tuple(stored.values()), frozenset(turned))


def _refuse_own_classes(token_layers: Iterable[nn.Module | None]) -> None:
    """The embeddings and the head go together: with one that cannot, neither does."""
    for layer in token_layers:
        if layer is not None and type(layer) not in PLAIN:
            raise InvalidField.one(
                "quantize_embeddings",
                f"is set, and the base's embeddings are {type(layer).__name__}, which computes more than a look-up; "
                "allowed: Embedding and Linear: unset it",
            )
