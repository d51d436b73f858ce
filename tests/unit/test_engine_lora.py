"""LoRA's banks and kernels against the plain formula in float64."""

from __future__ import annotations

import pytest
import torch
from finetuned_service.engine.lora_bank import LoraBanks, LoraWeights
from finetuned_service.engine.lora_kernel import MAX_GAP_RANKS, LoraRows, build_kernels
from finetuned_service.engine.sites import SiteKind, SiteTable

TABLE = SiteTable(
    names=("l0.q", "l0.up", "l1.q", "l1.up"),
    kinds=(SiteKind("q", 12, 20, (0, 2)), SiteKind("up", 12, 32, (1, 3))),
)
OUT = {"q": 20, "up": 32}
CPU = torch.device("cpu")
RANK_BYTES = 2 * (12 + 20 + 12 + 32) * 4


def make_banks(ranks=256):
    return LoraBanks(TABLE, ranks * RANK_BYTES, torch.float32, CPU)


def make_weights(seed, rank, sites=TABLE.names, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        site: (
            torch.randn(rank, 12, generator=generator) * scale,
            torch.randn(rank, OUT[site[3:]], generator=generator) * scale,
        )
        for site in sites
    }
    kinds = {TABLE.locate()[site][0] for site in sites}
    return LoraWeights(pairs, dict.fromkeys(kinds, rank))


def put(banks, weights):
    assert banks.plan(weights.ranks, []) == []
    place = banks.place(weights.ranks)
    banks.fill(place, weights)
    return place


def expected_delta(weights, site, inputs):
    if weights is None or site not in weights.pairs:
        return torch.zeros(inputs.shape[0], OUT[site[3:]], dtype=torch.float64)
    a, b = (tensor.double() for tensor in weights.pairs[site])
    return inputs.double() @ a.T @ b


def check(banks, decoding, chunks, rows, seed=0):
    """Every site's outputs are those of the formula, `decoding` and `chunks` of (place, weights)."""
    kernels = build_kernels(
        banks,
        LoraRows(tuple(p for p, _ in decoding), tuple((start, end, p) for start, end, p, _ in chunks)),
    )
    generator = torch.Generator().manual_seed(seed)
    for index, site in enumerate(TABLE.names):
        inputs = torch.randn(rows, 12, generator=generator)
        before = torch.randn(rows, OUT[site[3:]], generator=generator)
        expected = before.double()
        for row, (_, weights) in enumerate(decoding):
            expected[row] += expected_delta(weights, site, inputs[row : row + 1])[0]
        for start, end, _, weights in chunks:
            expected[start:end] += expected_delta(weights, site, inputs[start:end])
        outputs = before.clone()
        if (kernel := kernels[index]) is not None:
            kernel(inputs, outputs)
        torch.testing.assert_close(outputs.double(), expected, atol=1e-4, rtol=1e-4)
        touched = [*range(len(decoding)), *(r for start, end, *_ in chunks for r in range(start, end))]
        for row in set(range(rows)) - set(touched):
            assert torch.equal(outputs[row], before[row])


@pytest.fixture
def banks():
    return make_banks()


def placed(banks, seed, rank, **shape):
    weights = make_weights(seed, rank, **shape)
    return put(banks, weights), weights


def test_rows_of_ragged_ranks_get_their_own_adapter(banks):
    first, second, third = (placed(banks, seed, rank) for seed, rank in ((1, 1), (2, 16), (3, 5)))
    check(banks, [first, first, second, third], [(5, 9, *second), (9, 12, *third)], rows=13)


def test_an_adapter_alone_needs_no_mask(banks):
    only = placed(banks, 1, 8)
    check(banks, [only] * 3, [], rows=5)


def test_sites_that_an_adapter_leaves_alone_stay(banks):
    some = placed(banks, 1, 4, sites=("l1.q",))
    other = placed(banks, 2, 4, sites=("l0.up",))
    check(banks, [some, other], [(2, 4, *some)], rows=4)


def test_no_kernel_where_nothing_acts(banks):
    place, _ = placed(banks, 1, 4, sites=("l0.up", "l1.up"))
    kernels = build_kernels(banks, LoraRows((place,), ()))
    assert [kernel is not None for kernel in kernels] == [False, True, False, True]


def test_ranks_that_differ_from_site_to_site(banks):
    weights = make_weights(1, 6)
    pairs = {**weights.pairs, "l1.q": tuple(t[:2] for t in weights.pairs["l1.q"])}
    for leftover in (banks.a[0], banks.b[0]):
        leftover.fill_(3e38)
    ragged = LoraWeights(pairs, weights.ranks)
    check(banks, [(put(banks, ragged), ragged)], [(1, 4, put(banks, ragged), ragged)], rows=4)


def test_adapters_far_apart_take_several_products(banks):
    near = placed(banks, 1, 4)
    filler = placed(banks, 2, MAX_GAP_RANKS + 1)
    far = placed(banks, 3, 4)
    check(banks, [near, far, near], [], rows=3)
    kernel = build_kernels(banks, LoraRows((near[0], far[0]), ()))[0]
    assert len(kernel._stacks) == 2
    kernel = build_kernels(banks, LoraRows((near[0], filler[0], far[0]), ()))[0]
    assert len(kernel._stacks) == 1


def test_what_was_evicted_leaves_no_trace(banks):
    gone, _ = placed(banks, 1, 16, scale=1e30)
    neighbour = placed(banks, 2, 4)
    banks.vacate(gone)
    small = placed(banks, 3, 4, sites=("l0.q", "l1.up"))
    assert small[0].ranges[0].start == 0
    check(banks, [small, neighbour], [(2, 3, *small)], rows=4)


def test_an_adapter_that_overflows_spoils_only_its_own_rows(banks):
    wild_place, wild = placed(banks, 1, 4, scale=5e37)
    good_place, good = placed(banks, 2, 4)
    kernel = build_kernels(banks, LoraRows((wild_place, good_place), ()))[0]
    inputs, outputs = torch.full((3, 12), 100.0), torch.zeros(3, 20)
    assert not (inputs @ wild.pairs["l0.q"][0].T).isfinite().any(), "all rows overflow in its ranks"
    kernel(inputs, outputs)
    assert not outputs[0].isfinite().all()
    expected = expected_delta(good, "l0.q", inputs[:1])[0]
    torch.testing.assert_close(outputs[1].double(), expected, atol=1e-2, rtol=1e-4)
    assert torch.equal(outputs[2], torch.zeros(20))


def test_plan_names_no_more_victims_than_needed_and_touches_nothing():
    banks = make_banks(ranks=12)
    places = [put(banks, make_weights(seed, 4)) for seed in range(3)]
    assert banks.plan({0: 4}, places) == places[:1]
    assert banks.plan({0: 5, 1: 1}, places) == places[:2]
    assert banks.plan({0: 13}, places) is None
    assert banks.plan({0: 4}, []) is None
    with pytest.raises(AssertionError):
        banks.place({0: 1})


def test_sizes_are_those_of_the_rows_taken():
    banks = make_banks(ranks=12)
    assert banks.capacity_ranks == 12
    assert put(banks, make_weights(1, 4)).size_bytes == 4 * RANK_BYTES
    assert put(banks, make_weights(2, 3, sites=("l0.q",))).size_bytes == 3 * 2 * (12 + 20) * 4
    assert make_weights(2, 3, sites=("l0.q",)).size_bytes == 3 * (12 + 20) * 4
