"""What a CUDA graph of a decoding step is captured from, computed without one: equal to the plain path's step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from finetuned_service.engine import lora_kernel
from finetuned_service.engine.adapter_files import AdapterReader
from finetuned_service.engine.adapter_memory import AdapterMemory
from finetuned_service.engine.allocator import Range
from finetuned_service.engine.batch import build_batch
from finetuned_service.engine.chunks import Chunk
from finetuned_service.engine.decode_graphs import DecodeGraphs
from finetuned_service.engine.decode_shapes import (
    KEYS,
    MAX_COVER,
    Decoding,
    Shape,
    covering,
    plan_ranks,
    rounded_up,
    usual_shapes,
)
from finetuned_service.engine.graph_lora import Hidden, kinds_with_equal_inputs
from finetuned_service.engine.lora_bank import LoraBanks, Placement
from finetuned_service.engine.messages import AdapterHandle, Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.place import AdapterPlace
from finetuned_service.engine.sequence import Sequence as TokenSequence
from finetuned_service.engine.sites import SiteKernel, SiteKind, SiteTable
from tiny_models import random_prompt, save_tiny_adapter, save_tiny_base

CAPACITY = 1025
"""One more than sequences use."""


class World:
    """A base with adapters in place, and sequences of which each has its last token to compute."""

    def __init__(self, root: Path) -> None:
        base = save_tiny_base(root / "base", max_position_embeddings=512)
        self.model = EngineModel.load(base)
        self.banks = LoraBanks(self.model.sites, 1 << 20, self.model.dtype, self.model.device)
        self.arena = self.model.make_arena(CAPACITY)
        self.memory = AdapterMemory(
            AdapterReader(self.model.sites, self.model.geometry, self.model.dtype, self.model.linear_weight),
            self.banks,
            1 << 20,
        )
        shapes = [
            {"rank": 4},
            {"rank": 16},
            {"rank": 1, "target_modules": ("q_proj",)},
            {"rank": 3, "rank_pattern": {"v_proj": 9}},
        ]
        self.places = [
            self._placed(save_tiny_adapter(root / str(i), base, seed=i, **shape).handle)
            for i, shape in enumerate(shapes)
        ]
        self.graphs = DecodeGraphs(self.banks, self.arena, self.model.decode, self.model.device)
        self._next_slot = 0

    def _placed(self, handle: AdapterHandle) -> AdapterPlace:
        weights = self.memory.read(handle)
        place = self.memory.place(weights)
        self.memory.fill(place, weights)
        return place

    def sequence(self, number: int, tokens: int, place: AdapterPlace | None) -> TokenSequence:
        """All but its last token are computed."""
        prompt = random_prompt(number, tokens)
        made = TokenSequence(Submit(number, prompt, None, Sampling(4)), tokens + 4, 0.0, list(prompt))
        made.kv = Range(self._next_slot, tokens)
        self._next_slot += tokens
        for rows in (tokens - 1,):
            self.step([Chunk(made, rows)], [place])
            made.computed_tokens += rows
        return made

    def step(self, chunks: Sequence[Chunk], places: Sequence[AdapterPlace | None]) -> torch.Tensor:
        place_of = dict(zip([chunk.sequence.request_id for chunk in chunks], places, strict=True))
        batch = build_batch(
            chunks,
            lambda sequence: place_of[sequence.request_id],
            self.arena,
            self.model.dtype,
            self.model.device,
        )
        logits = self.model.forward(batch, self.banks)
        order = [sequence.request_id for sequence in batch.chosen]
        kept = [chunk.sequence.request_id for chunk in chunks if chunk.sequence.request_id in order]
        return logits[[order.index(number) for number in kept]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("graphs"))


# Lengths around multiples of what keys are padded to; adapters mixed, repeated, absent; one row; ranks of a pattern.
@pytest.mark.parametrize(
    "rows",
    [
        [(5, None)],
        [(5, 0)],
        [(7, 1), (130, None), (33, 1), (2, 2)],
        [(20, 3), (21, 0), (127, 2), (128, 1), (129, None)],
    ],
)
def test_a_step_of_rounded_up_size_is_the_plain_step(
    world: World, rows: list[tuple[int, int | None]]
) -> None:
    world._next_slot = 0
    places = [None if adapter is None else world.places[adapter] for _, adapter in rows]
    sequences = [
        world.sequence(100 + i, tokens, place)
        for i, ((tokens, _), place) in enumerate(zip(rows, places, strict=True))
    ]
    chunks = [Chunk(sequence, 1) for sequence in sequences]
    expected = world.step(chunks, places)
    decoding = Decoding.of(chunks, [None if place is None else place.lora for place in places])
    shape = world.graphs.shape_of(decoding)
    assert shape is not None
    assert shape.rows >= len(rows)
    assert (shape.ranks == 0) == all(place is None for place in places)
    logits, greedy = world.graphs.compute(shape, decoding)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)
    assert greedy == expected.argmax(-1).tolist()
    # Whatever larger sizes it is rounded up to.
    larger, _ = world.graphs.compute(Shape(8, 512, 256), decoding)
    torch.testing.assert_close(larger, expected, atol=2e-5, rtol=2e-5)


def test_sites_that_read_the_same_share_a_product(world: World) -> None:
    names = {k: kind.name for k, kind in enumerate(world.banks.table.kinds)}
    groups = kinds_with_equal_inputs(world.banks.table, world.graphs._try)
    assert sorted(tuple(names[k] for k in kinds) for kinds in groups) == [
        ("down_proj",),
        ("gate_proj", "up_proj"),
        ("o_proj",),
        ("q_proj", "k_proj", "v_proj"),
    ]


def test_a_site_that_reads_something_else_shares_none() -> None:
    """Two of two layers read the same but in one of them: a product for both would be of other inputs there."""
    table = SiteTable(
        ("0.a", "0.b", "1.a", "1.b"), (SiteKind("a", 2, 2, (0, 2)), SiteKind("b", 2, 2, (1, 3)))
    )
    shared, first, second = (torch.zeros(1, 1, 2) for _ in range(3))

    def step(read: Sequence[torch.Tensor], kernels: Sequence[SiteKernel | None]) -> None:
        for inputs, kernel in zip(read, kernels, strict=True):
            assert kernel is not None
            kernel(torch.nn.Identity(), inputs)

    assert kinds_with_equal_inputs(table, partial(step, (shared, shared, first, second))) == ((0,), (1,))
    assert kinds_with_equal_inputs(table, partial(step, (shared, shared, first, first))) == ((0, 1),)


def test_a_shared_product_is_made_anew_for_a_reader_of_other_inputs() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    hidden = Hidden(a, torch.zeros(1, 2, dtype=torch.bool), 2)
    first, second = torch.tensor([[[3.0, 5.0]]]), torch.tensor([[[7.0, 11.0]]])
    assert hidden.read(first, 0).tolist() == [[3.0]]
    assert hidden.read(second, 1).tolist() == [[11.0]]
    assert hidden.read(first, 0).tolist() == [[3.0]]
    assert hidden.read(first, 1).tolist() == [[5.0]]


def test_a_row_that_is_not_finite_is_told_and_reaches_no_other(world: World) -> None:
    world._next_slot = 0
    places = [world.places[0], world.places[1]]
    sequences = [world.sequence(200 + i, 9, place) for i, place in enumerate(places)]
    chunks = [Chunk(sequence, 1) for sequence in sequences]
    decoding = Decoding.of(chunks, [place.lora for place in places])
    shape = world.graphs.shape_of(decoding)
    assert shape is not None
    expected, _ = world.graphs.compute(shape, decoding)
    kept = [bank.clone() for bank in world.banks.b]
    taken = places[1].lora.ranges
    try:
        for kind, rows in taken.items():
            world.banks.b[kind][:, rows.start : rows.end] = 1e38
        logits, greedy = world.graphs.compute(shape, decoding)
    finally:
        for bank, values in zip(world.banks.b, kept, strict=True):
            bank.copy_(values)
    assert greedy[1] is None
    assert greedy[0] == int(expected[0].argmax())
    assert torch.equal(logits[0], expected[0])


def test_adapters_are_read_once_and_each_row_knows_its_own() -> None:
    first, second = Placement({0: Range(10, 3)}, 0), Placement({0: Range(40, 2), 1: Range(7, 1)}, 0)
    plan = plan_ranks([second, None, first, second], 0)
    assert plan.bank_rows == (40, 41, 10, 11, 12)
    assert plan.firsts == (0, 0, 2, 0)
    assert plan.ranks == (2, 0, 3, 2)
    assert plan_ranks([first, None], 1).bank_rows == ()


@pytest.mark.parametrize(("size", "found"), [(1, 128), (128, 128), (129, 512), (KEYS[-1] + 1, None)])
def test_sizes_are_rounded_up_to_few(size: int, found: int | None) -> None:
    assert rounded_up(size, KEYS) == found


def test_what_is_captured_first_is_for_one_stream_for_some_and_for_all() -> None:
    shapes = usual_shapes(max_rows=32, max_keys=8192, capacity_ranks=400)
    assert shapes[:3] == [Shape(1, 512, 0), Shape(8, 512, 128), Shape(32, 512, 512)]
    assert len(set(shapes)) == len(shapes) == 30
    assert {shape.rows for shape in shapes} == {1, 4, 8, 16, 32}
    assert {shape.keys for shape in shapes} == {128, 512, 2048}
    # Of a small engine, and of one without room for adapters.
    assert usual_shapes(max_rows=1, max_keys=100, capacity_ranks=0) == [Shape(1, 128, 0)]


def test_a_step_is_computed_in_the_smallest_shape_that_has_all_of_it() -> None:
    captured = [Shape(1, 512, 0), Shape(8, 512, 128), Shape(32, 512, 512), Shape(8, 2048, 0)]
    for wanted, found in [
        (Shape(1, 128, 0), Shape(1, 512, 0)),
        (Shape(1, 512, 64), Shape(8, 512, 128)),
        (Shape(8, 128, 0), Shape(8, 512, 128)),
        (Shape(8, 2048, 0), Shape(8, 2048, 0)),
        (Shape(8, 2048, 64), None),
        (Shape(16, 128, 256), Shape(32, 512, 512)),
        (Shape(64, 128, 0), None),
    ]:
        assert covering(wanted, captured) == found
    # Not one that takes longer than computing it without a graph.
    assert covering(Shape(1, 128, 0), [Shape(1, 128 * MAX_COVER, 0)]) is not None
    assert covering(Shape(1, 128, 0), [Shape(4, 128 * MAX_COVER, 0)]) is None
    assert covering(Shape(1, 128, 0), [Shape(1, 128, 1024)]) is None
    assert covering(Shape(1, 128, 256), [Shape(1, 128, 1024)]) == Shape(1, 128, 1024)


def test_prompts_that_go_with_the_decoding_rows_are_as_each_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: one product for the rows of all adapters, those of the plain base between them left alone."""
    world._next_slot = 0
    places = [world.places[1], None, world.places[0], world.places[3], None, world.places[1]]
    lengths = [1, 1, 17, 5, 9, 33]
    sequences = []
    for number, (rows, place) in enumerate(zip(lengths, places, strict=True)):
        made = world.sequence(300 + number, 40, place)
        made.computed_tokens = 40 - rows
        sequences.append(made)
    chunks = [Chunk(sequence, rows) for sequence, rows in zip(sequences, lengths, strict=True)]
    expected = world.step(chunks, places)
    monkeypatch.setitem(lora_kernel.MAX_STACKED_RANKS, "cpu", 1024)
    world.model._kernels = None
    torch.testing.assert_close(world.step(chunks, places), expected, atol=2e-5, rtol=2e-5)
    monkeypatch.setitem(lora_kernel.MAX_STACKED_RANKS, "cpu", 8)  # too many: each by itself again
    world.model._kernels = None
    assert torch.equal(world.step(chunks, places), expected)
