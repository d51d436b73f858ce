"""Places in batch and queue: none for more than there are, some always for who comes new."""

from __future__ import annotations

import pytest
from finetuned_service.engine.queue_places import QueuePlaces
from finetuned_service.errors import QueueFull
from hypothesis import given
from hypothesis import strategies as st


def places_of(places, tenant):
    """How many more a tenant gets."""
    for taken in range(1000):
        try:
            places.take(tenant)
        except QueueFull:
            return taken
    raise AssertionError("no end")


def test_one_that_is_alone_gets_its_share_and_others_still_find_room():
    places = QueuePlaces(running=32, queued=256, share=0.75)
    assert places_of(places, "flood") == 216
    for i in range(3):
        assert places_of(places, f"another-{i}") >= 1


def test_the_batch_is_filled_by_one_alone_even_without_a_queue():
    places = QueuePlaces(running=4, queued=0, share=0.75)
    assert places_of(places, "a") == 4


def test_a_share_of_one_is_no_limit_of_its_own():
    places = QueuePlaces(running=2, queued=3, share=1.0)
    assert places_of(places, "a") == 5
    with pytest.raises(QueueFull, match="the most this server takes"):
        places.take("b")


def test_the_refusal_says_whose_share_it_is_and_leaves_others_theirs():
    places = QueuePlaces(running=2, queued=4, share=0.75)
    places_of(places, "a")
    with pytest.raises(QueueFull, match="for other tenants") as refusal:
        places.take("a")
    assert refusal.value.metadata == {"limit": "6", "subject": "tenants/a", "used": "5"}
    places.take("b")
    places.give_back("a")
    places.give_back("a")
    places.take("b")


@given(moves=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=80))
def test_what_is_given_back_can_be_taken_again(moves):
    places, taken = QueuePlaces(running=3, queued=9, share=0.75), []
    for tenant, takes in moves:
        if takes:
            try:
                places.take(tenant)
            except QueueFull:
                assert len(taken) >= 3
            else:
                taken.append(tenant)
        elif tenant in taken:
            taken.remove(tenant)
            places.give_back(tenant)
        assert len(taken) <= 12
        if len(taken) == 12:
            assert len(set(taken)) > 1, "one tenant has all"
    for tenant in taken:
        places.give_back(tenant)
    assert places_of(places, "new") == 9
