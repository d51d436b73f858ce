"""What is shared between prompts, what never is, and that no room is lost."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from finetuned_service.engine.allocator import Range, RangeAllocator
from finetuned_service.engine.prefix_cache import MAX_ENTRIES, PrefixCache

BLOCK = 4
KEY, OTHERS = ("acme", "sha256:a"), [("acme", "sha256:b"), ("acme", ""), ("globex", "sha256:a")]


@pytest.fixture
def kv():
    return RangeAllocator(64, BLOCK)


@pytest.fixture
def cache(kv):
    return PrefixCache(kv, BLOCK)


def keep(cache, kv, tokens, key=KEY, limit=None):
    taken = kv.allocate(limit or len(tokens))
    cache.keep(key, tokens, taken)
    return taken


@dataclass
class Running:
    tokens: list[int]
    computed_tokens: int
    kv: Range | None
    cache_key: tuple[str, str] = KEY


def test_whole_blocks_of_the_longest_beginning_are_found(cache, kv):
    short = keep(cache, kv, [1, 2, 3, 4, 9, 9, 9, 9])
    long = keep(cache, kv, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert cache.find(KEY, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]) == (Range(long.start, 8), 8)
    assert cache.find(KEY, [1, 2, 3, 4, 9, 9, 9, 9, 1]) == (Range(short.start, 8), 8)
    assert cache.find(KEY, [1, 2, 3, 7, 5, 6, 7, 8]) is None


def test_a_token_is_left_to_compute(cache, kv):
    keep(cache, kv, list(range(8)))
    assert cache.find(KEY, list(range(8)))[1] == 4
    assert cache.find(KEY, list(range(4))) is None


@pytest.mark.parametrize("other", OTHERS)
def test_nothing_is_shared_with_another_tenant_or_other_weights(cache, kv, other):
    keep(cache, kv, list(range(8)))
    running = [Running(list(range(12)), 12, Range(16, 12))]
    assert cache.find(other, list(range(12)), running) is None


def test_what_runs_shares_what_it_has_computed_so_far(cache):
    half_done = Running(list(range(20)), 9, Range(16, 20))
    assert cache.find(KEY, list(range(20)), [half_done]) == (half_done.kv, 8)
    assert cache.find(KEY, list(range(20)), [Running(list(range(20)), 0, Range(16, 20))]) is None


def test_only_what_was_computed_is_kept(cache, kv):
    keep(cache, kv, list(range(9)), limit=40)
    assert (kv.used, cache.used) == (8, 8)
    keep(cache, kv, [1, 2])
    assert (kv.used, cache.used) == (8, 8)


def test_one_beginning_is_kept_once(cache, kv):
    keep(cache, kv, list(range(8)))
    keep(cache, kv, list(range(6)))
    assert cache.used == 8
    keep(cache, kv, list(range(12)))
    assert (kv.used, cache.used) == (12, 12)


def test_the_least_recently_used_makes_room(cache, kv):
    first = keep(cache, kv, [1] * 32)
    keep(cache, kv, [2] * 32)
    assert cache.find(KEY, [1] * 33) is not None
    assert cache.make_room(20)
    assert cache.find(KEY, [2] * 33) is None
    assert cache.find(KEY, [1] * 33) == (first, 32)
    taken = kv.allocate(32)
    assert taken is not None
    assert not cache.make_room(36)
    assert cache.used == 0


def test_as_many_are_kept_as_was_asked_for(kv):
    cache = PrefixCache(kv, BLOCK, 2)
    for first in range(5):
        cache.keep(KEY, [first] * BLOCK, kv.allocate(BLOCK))
    assert cache.used == kv.used == 2 * BLOCK
    assert cache.find(KEY, [2] * BLOCK + [1]) is None
    assert cache.find(KEY, [3] * BLOCK + [1]) is not None


def test_the_number_of_entries_is_bounded():
    kv = RangeAllocator(BLOCK * (MAX_ENTRIES + 50), BLOCK)
    cache = PrefixCache(kv, BLOCK)
    for i in range(MAX_ENTRIES + 20):
        keep(cache, kv, [i] * BLOCK)
    assert cache.used == MAX_ENTRIES * BLOCK


def test_whatever_comes_nothing_leaks_and_what_is_found_is_right(kv):
    """Each block of the arena remembers under which key and after which tokens it was written."""
    draw = random.Random(7)
    cache = PrefixCache(kv, BLOCK)
    written: dict[int, tuple[tuple[str, str], tuple[int, ...]]] = {}
    for _ in range(3000):
        key = draw.choice([KEY, *OTHERS])
        tokens = [draw.randrange(2) for _ in range(draw.randrange(1, 24))]
        found = cache.find(key, tokens)
        if found is not None:
            source, length = found
            assert 0 < length < len(tokens)
            for block in range(0, length, BLOCK):
                assert written[source.start + block] == (key, tuple(tokens[: block + BLOCK]))
        if not cache.make_room(len(tokens)):
            continue
        taken = kv.allocate(len(tokens))
        for block in range(0, len(tokens) // BLOCK * BLOCK, BLOCK):
            written[taken.start + block] = (key, tuple(tokens[: block + BLOCK]))
        if draw.random() < 0.2:
            kv.free(taken)
        else:
            cache.keep(key, tokens, taken)
        assert kv.used == cache.used
    assert cache.make_room(64)
    assert kv.used == 0
