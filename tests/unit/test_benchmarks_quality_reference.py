"""The quality benchmark's references where they are no library's: preferences, and bases that are packed."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_oracle import pack, unpacked_model
from tiny_bases import make_tiny_base
from tiny_models import random_prompt
from torch import Tensor
from training_tasks import make_base

# benchmarks/ is run from the repository's root, not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.quality.encoded import encoded_file
from benchmarks.quality.reference.batches import Row
from benchmarks.quality.reference.model import GENERATION, load
from benchmarks.quality.reference.packed import rest
from benchmarks.quality.reference.preferences import SIDES, Preferring, asked_before
from benchmarks.quality.rows import RowFiles

WIDE = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 128}
"""So that bitsandbytes would repack it."""


def rows_of_pairs(base: Path) -> list[Row]:
    files = RowFiles(base / "train.jsonl", base / "test.jsonl")
    for file in (files.train, files.test):
        file.write_text(
            '{"prompt": "a", "chosen": "bc", "rejected": "d"}\n'
            '{"prompt": "efg", "chosen": "h", "rejected": "ij"}\n'
        )
    found: list[Row] = json.loads(encoded_file(files, base).read_text())["train"]
    return found


def nats(model: Any, side: Row) -> Tensor:
    """Of the supervised ids of one row, one at a time."""
    ids = torch.tensor(side["ids"])
    told = model(ids[None]).logits[0].double().log_softmax(1)
    places = [place for place, label in enumerate(side["labels"]) if label >= 0]
    return torch.stack([told[place - 1, ids[place]] for place in places]).sum()


def test_the_reference_of_preferences_is_dpo(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    model = load(base, GENERATION)
    rows = asked_before(model, rows_of_pairs(base))
    preferring = Preferring(model, 0.5)
    assert preferring.loss(rows).item() == pytest.approx(math.log(2))
    before = [[nats(model, row[side]).item() for side in SIDES] for row in rows]
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(3.0)
    gains = [
        [nats(model, row[side]).item() - early for side, early in zip(SIDES, both, strict=True)]
        for row, both in zip(rows, before, strict=True)
    ]
    margins = [0.5 * (chosen - rejected) for chosen, rejected in gains]
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    assert abs(expected - math.log(2)) > 0.01
    assert preferring.loss(rows).item() == pytest.approx(expected, rel=1e-4)
    found = preferring.predictions(rows)["log_probabilities"]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(gains), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weight_format", ["NF4", "INT8"])
def test_the_reference_of_a_packed_base_computes_with_what_it_stands_for(
    weight_format: str, tmp_path: Path
) -> None:
    source = make_tiny_base(tmp_path / "source", dtype=torch.float32, **WIDE)
    packed = pack(source, tmp_path / "packed", weight_format)
    model = load(packed, GENERATION)
    ids = torch.tensor([random_prompt(1, 14)])
    expected = unpacked_model(source, packed)(ids).logits
    assert (expected - load(source, GENERATION)(ids).logits).abs().max() > 1e-3
    for _ in range(2):  # bitsandbytes would write over its weights in the first
        torch.testing.assert_close(model(ids).logits.double(), expected, rtol=1e-4, atol=1e-5)
        rest(model.train())
