"""What our engine says of the rows to be scored, with an adapter as it would be served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from finetuned_service.adapters.files import stored_head
from finetuned_service.adapters.head import Head, Problem
from finetuned_service.datasets.rows import read_rows, rows_of
from finetuned_service.engine.choose import load_model
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import AdapterHandle, Encode, Sampling, Submit
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.jobs.specs import Baseline, TrainSpec
from finetuned_service.text.supervision import EncodedRow, encode_preference, encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Preference
from finetuned_service.training.adapter import adapter_handle
from finetuned_service.training.embeddings.pairs import read_embedding_data
from finetuned_service.training.encoded import encoded
from finetuned_service.training.heads.evaluate import Outputs, answered
from finetuned_service.training.heads.examples import read_head_data
from finetuned_service.training.questions import encode_prompt, questions
from finetuned_service.vocabulary import Objective, Task

from benchmarks.quality.order import Order

ANSWER_TOKENS = 64
ADAPTER_BYTES = 2 * 2**30


def predictions_of(order: Order, spec: TrainSpec, adapter: Path) -> dict[str, Any]:
    """As `scores.py` takes them."""
    base = Path(order.base)
    handle = adapter_handle(adapter, base)
    match spec.task:
        case Task.TEXT_GENERATION:
            return _written(order, spec, handle)
        case Task.FEATURE_EXTRACTION:
            return _vectors(order, spec, handle)
        case _:
            head = stored_head(adapter)
            if head is None:
                raise ValueError("the adapter has no head")
            heldout = read_head_data(spec, base, Path(order.train), Path(order.test)).heldout
            return _told(head, answered(base, handle, heldout, head, order.threads))


def _told(head: Head, outputs: Outputs) -> dict[str, Any]:
    """Of each row the number, all labels that are likelier than not, or the likeliest, of each of its words."""
    match head.problem:
        case Problem.REGRESSION:
            return {"numbers": [float(rows[0, 0]) for rows in outputs]}
        case Problem.MULTI_LABEL:
            named = (zip(head.labels, rows[0] > 0, strict=True) for rows in outputs)
            return {"labels": [[label for label, on in row if on] for row in named]}
        case Problem.SINGLE_LABEL:
            return {"labels": [[head.labels[i] for i in rows.argmax(1)] for rows in outputs]}


def _vectors(order: Order, spec: TrainSpec, handle: AdapterHandle) -> dict[str, Any]:
    base = Path(order.base)
    data = read_embedding_data(spec, base, Path(order.train), Path(order.test))
    texts = dict.fromkeys(tokens for row in data.heldout for tokens in row.all_texts)
    requests = [
        Submit(number, tokens, handle, Sampling(1), encode=Encode(data.pooling))
        for number, tokens in enumerate(texts)
    ]
    found = encoded(base, requests, order.threads)
    vectors = {tokens: found[number][0] for number, tokens in enumerate(texts)}
    sides = {
        "anchors": [vectors[row.anchor] for row in data.heldout],
        "candidates": [vectors[row.positive] for row in data.heldout],
    }
    if data.heldout[0].score is None:
        return {"vectors": {side: [vector.tolist() for vector in found] for side, found in sides.items()}}
    both = zip(sides["anchors"], sides["candidates"], strict=True)
    return {"numbers": [float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in both]}


def _written(order: Order, spec: TrainSpec, handle: AdapterHandle) -> dict[str, Any]:
    """Log-probabilities of the rows' own answers; of pairs, less those of the plain base. Answers where asked for."""
    base, test = Path(order.base), Path(order.test)
    tokenizer = BaseTokenizer.load(base)
    config = EngineConfig(
        order.base,
        threads=order.threads,
        device_budget_bytes=ADAPTER_BYTES,
        host_budget_bytes=ADAPTER_BYTES,
    )
    with OfflineEngine(load_model(base), config) as engine:
        if spec.objective is Objective.DPO:
            pairs = [encode_preference(tokenizer, row) for row in rows_of(test, Preference)]
            both = [row for pair in pairs for row in pair]
            after, before = _log_probabilities(engine, both, handle), _log_probabilities(engine, both, None)
            gains = [late - early for late, early in zip(after, before, strict=True)]
            return {"log_probabilities": [list(pair) for pair in zip(gains[::2], gains[1::2], strict=True)]}
        rows = list(read_rows(test))
        encoded_rows = [encode_row(tokenizer, row) for row in rows]
        found: dict[str, Any] = {
            "log_probabilities": _log_probabilities(engine, encoded_rows, handle),
            "supervised_tokens": [row.supervised_tokens for row in encoded_rows],
        }
        if order.generates:
            prompts = [
                encode_prompt(tokenizer, question, Baseline()) for question in questions(rows, len(rows))
            ]
            requests = [
                Submit(number, tuple(prompt), handle, Sampling(ANSWER_TOKENS))
                for number, prompt in enumerate(prompts)
            ]
            found["answers"] = [tokenizer.decode(reply.token_ids) for reply in engine.generate(requests)]
        return found


def _log_probabilities(
    engine: OfflineEngine, rows: Sequence[EncodedRow], handle: AdapterHandle | None
) -> list[float]:
    """Of the supervised tokens of each row, summed, in nats."""
    sums: list[float] = []
    for row in rows:
        places = [place for place, flag in enumerate(row.supervised) if flag]
        (found,) = engine.score([row.token_ids], handle, [places[0]])
        sums.append(float(found[[place - places[0] for place in places]].double().sum()))
    return sums
