"""Perplexity, KL and agreement against plain transformers and float64; the gate on them."""

from __future__ import annotations

import math

import pytest
import torch
from finetuned_service.errors import InvalidField
from finetuned_service.jobs.values import QuantizeReport
from finetuned_service.quantization import measure
from finetuned_service.quantization.gate import passes, relative_rise
from finetuned_service.quantization.measure import compare
from tiny_models import load_plain, random_prompt, save_tiny_base

WINDOWS = [random_prompt(1, 200), random_prompt(2, 2), random_prompt(3, 57)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models that mostly agree, as a base and its rounded copy do."""
    source = load_plain(save_tiny_base(tmp_path_factory.mktemp("base") / "tiny"))
    other = load_plain(save_tiny_base(tmp_path_factory.mktemp("base") / "tiny"))
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "proj" in name:
                parameter.copy_((parameter * 8).round() / 8)
    return source, other


@torch.no_grad()
def plain_perplexity(model, windows) -> float:
    """transformers' own loss, weighted by the number of predicted tokens."""
    nats = tokens = 0.0
    for window in windows:
        token_ids = torch.tensor([window])
        nats += model(token_ids, labels=token_ids).loss.double().item() * (len(window) - 1)
        tokens += len(window) - 1
    return math.exp(nats / tokens)


@torch.no_grad()
def distributions(model, windows) -> torch.Tensor:
    """Log-probabilities in float64, `[all predicted positions, vocabulary]`."""
    logits = [model(torch.tensor([window])).logits[0, :-1].double() for window in windows]
    return torch.log_softmax(torch.cat(logits), dim=-1)


def test_perplexities_are_those_of_plain_transformers(models):
    found = compare(*models, WINDOWS, lambda _tokens: None)
    assert found.tokens == sum(len(window) - 1 for window in WINDOWS)
    assert found.source_perplexity == pytest.approx(plain_perplexity(models[0], WINDOWS), rel=1e-6)
    assert found.quantized_perplexity == pytest.approx(plain_perplexity(models[1], WINDOWS), rel=1e-6)
    assert found.source_perplexity != found.quantized_perplexity


def test_kl_and_agreement_equal_the_definitions_in_float64(models):
    found = compare(*models, WINDOWS, lambda _tokens: None)
    source, other = (distributions(model, WINDOWS) for model in models)
    kl = (source.exp() * (source - other)).sum(dim=1).mean().item()
    agreement = (source.argmax(dim=1) == other.argmax(dim=1)).double().mean().item()
    assert found.mean_kl_nats == pytest.approx(kl, rel=1e-4)
    assert found.mean_kl_nats > 0
    assert found.top1_agreement == agreement
    assert 0 < agreement < 1


def test_a_base_beside_itself_loses_nothing(models):
    found = compare(models[0], models[0], WINDOWS, lambda _tokens: None)
    assert (found.mean_kl_nats, found.top1_agreement) == (0.0, 1.0)
    assert found.source_perplexity == found.quantized_perplexity


def test_chunking_positions_changes_nothing(models, monkeypatch):
    whole = compare(*models, WINDOWS, lambda _tokens: None)
    monkeypatch.setattr(measure, "CHUNK_POSITIONS", 7)
    chunked = compare(*models, WINDOWS, lambda _tokens: None)
    assert chunked.mean_kl_nats == pytest.approx(whole.mean_kl_nats, rel=1e-9)
    assert chunked.source_perplexity == pytest.approx(whole.source_perplexity, rel=1e-12)
    assert chunked.top1_agreement == whole.top1_agreement


def test_progress_counts_the_predicted_tokens(models):
    seen: list[int] = []
    compare(*models, WINDOWS, seen.append)
    assert seen == [199, 200, 256]


@pytest.mark.parametrize(("broken", "field"), [(0, "base"), (1, "weight_format")])
def test_values_that_are_not_finite_are_refused(tmp_path, broken, field):
    pair = [load_plain(save_tiny_base(tmp_path / name)) for name in ("a", "b")]
    with torch.no_grad():
        pair[broken].model.norm.weight.fill_(float("nan"))
    with pytest.raises(InvalidField, match=f"{field}: .*NaN"):
        compare(*pair, WINDOWS, lambda _tokens: None)


def report(source: float, quantized: float) -> QuantizeReport:
    return QuantizeReport(
        source_bytes=2,
        quantized_bytes=1,
        source_perplexity=source,
        quantized_perplexity=quantized,
        mean_kl_nats=0.0,
        top1_agreement=1.0,
        evaluated_tokens=1,
        quantized_modules=1,
    )


@pytest.mark.parametrize(
    ("source", "quantized", "allowed", "expected"),
    [
        (10.0, 10.5, 0.06, True),
        (10.0, 10.5, 0.04, False),
        (8.0, 10.0, 0.25, True),
        (8.0, 10.0, None, True),
        (10.0, 9.0, 0.0, True),
        (10.0, 10.0, 0.0, True),
        (10.0, 10.01, 0.0, False),
    ],
)
def test_the_gate_compares_the_relative_rise(source, quantized, allowed, expected):
    assert passes(report(source, quantized), allowed) is expected


def test_the_rise_is_relative():
    assert relative_rise(report(8.0, 10.0)) == 0.25
