"""Packed attention against the plain formula in float64, for rows of every kind in one step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from finetuned_service.engine import attention_rows
from finetuned_service.engine.attention import packed_attention
from finetuned_service.engine.attention_rows import GATHERED_TOKENS, PADDING_TOKENS, RowSpan, plan_rows
from finetuned_service.engine.kv_cache import KvArena
from finetuned_service.errors import Unimplemented

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8
MODULE = SimpleNamespace(layer_idx=1)


def make_arena(capacity_tokens):
    """Full of what other sequences left behind: large, so that a leak shows."""
    arena = KvArena(
        layers=2,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        capacity_tokens=capacity_tokens,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    generator = torch.Generator().manual_seed(9)
    for tensor in (*arena._keys, *arena._values):
        tensor.normal_(0.0, 30.0, generator=generator)
    return arena


class Step:
    """Random queries, keys and values for spans of (rows, live tokens), laid out with gaps between."""

    def __init__(self, shapes, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.spans, self.history, rows, kv = [], [], 0, 5
        for count, live in shapes:
            self.spans.append(RowSpan(rows, count, kv, live))
            rows, kv = rows + count, kv + live + 7
            self.history.append(torch.randn(2, KV_HEADS, live, HEAD_DIM, generator=generator))
        self.query = torch.randn(1, HEADS, rows, HEAD_DIM, generator=generator)
        self.arena = make_arena(kv)

    def run(self, scaling=None):
        slots, keys, values = [], [], []
        for span, history in zip(self.spans, self.history, strict=True):
            earlier = span.live_tokens - span.rows
            self.arena._keys[1][:, span.kv_start : span.kv_start + earlier] = history[0, :, :earlier]
            self.arena._values[1][:, span.kv_start : span.kv_start + earlier] = history[1, :, :earlier]
            keys.append(history[0, :, earlier:])
            values.append(history[1, :, earlier:])
            slots.extend(range(span.kv_start + earlier, span.kv_end))
        plan = plan_rows(self.spans, self.arena, torch.tensor(slots), torch.float32)
        output, weights = packed_attention(
            MODULE,
            self.query,
            torch.cat(keys, 1)[None],
            torch.cat(values, 1)[None],
            None,
            packed_rows=plan,
            scaling=scaling,
        )
        assert weights is None
        return output[0]

    def oracle(self, scaling=HEAD_DIM**-0.5):
        rows = []
        for span, history in zip(self.spans, self.history, strict=True):
            keys, values = history.double().repeat_interleave(HEADS // KV_HEADS, dim=1)
            query = self.query[0, :, span.start : span.end].double()
            scores = query @ keys.transpose(1, 2) * scaling
            earlier = span.live_tokens - span.rows
            seen = torch.ones(span.rows, span.live_tokens, dtype=torch.bool).tril(earlier)
            rows.append((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values).transpose(0, 1))
        return torch.cat(rows)


EDGES = (1, PADDING_TOKENS - 1, PADDING_TOKENS, PADDING_TOKENS + 1, GATHERED_TOKENS, GATHERED_TOKENS + 1, 700)
SHAPES = {
    "single rows of all lengths": [(1, live) for live in EDGES],
    "a prompt from its beginning": [(9, 9)],
    "a later chunk": [(9, 40)],
    "a later chunk beyond the gathered length": [(33, GATHERED_TOKENS + 60)],
    "all kinds at once": [(1, 3), (1, 90), (1, 600), (5, 5), (1, 35), (7, 19), (1, 1), (2, 2)],
}


@pytest.mark.parametrize("kind", SHAPES)
def test_rows_see_exactly_their_own_past(kind):
    step = Step(SHAPES[kind])
    torch.testing.assert_close(step.run().double(), step.oracle(), atol=1e-5, rtol=1e-5)


PROMPTS = [
    (1, 90),
    (9, 9),
    (1, 3),
    (16, 16),
    (5, 5),
    (10, 10),
    (7, 19),
    (2, 2),
    (40, 40),
    (13, 13),
    (300, 300),
]


def test_prompts_side_by_side_see_exactly_their_own_past(monkeypatch):
    monkeypatch.setitem(attention_rows.GROUPED_PROMPT_TOKENS, "cpu", 100)
    step = Step(PROMPTS)
    torch.testing.assert_close(step.run().double(), step.oracle(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step.run(0.11).double(), step.oracle(0.11), atol=1e-5, rtol=1e-5)
    plan = plan_rows(step.spans, step.arena, torch.zeros(1, dtype=torch.int64), torch.float32)
    assert [(group.count, len(group.rows), len(group.padded_rows)) for group in plan.prompts] == [(4, 48, 64)]
    assert [masked.span.rows for masked in plan.spans] == [5, 7, 2, 40, 300]


def test_prompts_are_filled_up_to_few_shapes_and_cut_where_they_are_many(monkeypatch):
    monkeypatch.setitem(attention_rows.GROUPED_PROMPT_TOKENS, "cpu", 100)
    monkeypatch.setattr(attention_rows, "MAX_GROUPED_ROWS", 64)
    step = Step([(length, length) for length in (9, 11, 10, 33, 16, 12, 64, 13, 11, 10, 9, 12, 3)])
    torch.testing.assert_close(step.run().double(), step.oracle(), atol=1e-5, rtol=1e-5)
    plan = plan_rows(step.spans, step.arena, torch.zeros(1, dtype=torch.int64), torch.float32)
    assert [(group.count, len(group.rows)) for group in plan.prompts] == [(4, 46), (4, 46), (2, 21)]
    assert [masked.span.rows for masked in plan.spans] == [33, 64, 3]


def test_what_is_not_a_number_stays_in_its_own_prompt(monkeypatch):
    monkeypatch.setitem(attention_rows.GROUPED_PROMPT_TOKENS, "cpu", 100)
    step = Step([(9, 9), (13, 13), (16, 16)])
    step.history[1][:] = float("nan")
    output, expected = step.run(), step.oracle()
    others = [*range(9), *range(22, 38)]
    torch.testing.assert_close(output[others].double(), expected[others], atol=1e-5, rtol=1e-5)
    assert output[9:22].isnan().all()


def test_the_scaling_of_the_model_is_used():
    step = Step(SHAPES["all kinds at once"])
    torch.testing.assert_close(step.run(0.11).double(), step.oracle(0.11), atol=1e-5, rtol=1e-5)


def test_a_decoding_row_is_bitwise_the_same_whoever_is_beside_it():
    alone = Step([(1, 77)])
    among = Step([(1, 77), (1, 70), (1, 95), (1, 12), (9, 30)])
    among.history[0] = alone.history[0]
    among.query[:, :, :1] = alone.query
    assert torch.equal(alone.run()[0], among.run()[0])


def test_what_is_not_a_number_stays_in_its_own_sequence():
    step = Step([(1, 20), (1, 20), (4, 12)])
    step.history[1][:] = float("nan")
    output = step.run()
    expected = step.oracle()
    for row in (0, 2, 3, 4, 5):
        torch.testing.assert_close(output[row].double(), expected[row], atol=1e-5, rtol=1e-5)
    assert output[1].isnan().all()


@pytest.mark.parametrize("feature", ["sliding_window", "softcap", "s_aux", "position_bias"])
def test_features_that_are_not_computed_are_refused(feature):
    step = Step([(1, 1)])
    nothing = torch.zeros(1, 1, 1, 1)
    with pytest.raises(Unimplemented, match=feature):
        packed_attention(
            MODULE, step.query, nothing, nothing, None, packed_rows=None, **{feature: torch.ones(1)}
        )
