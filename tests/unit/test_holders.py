"""Equal weights of two tenants: one in the engine, told apart."""

from __future__ import annotations

import pytest
from finetuned_service.engine.messages import AdapterResidency, Residency
from finetuned_service.serving.holders import Claim, Holders, Pinned

IN_ENGINE = [
    AdapterResidency("other", Residency.HOST, pinned=False, running_sequences=0, resident_bytes=1, modules=1),
    AdapterResidency("same", Residency.DEVICE, pinned=True, running_sequences=3, resident_bytes=9, modules=2),
]


def test_only_who_brought_weights_into_memory_sees_them_there() -> None:
    holders = Holders()
    holders.used("same", "acme")
    assert holders.seen_by("beta", "same", IN_ENGINE) is None
    seen = holders.seen_by("acme", "same", IN_ENGINE)
    assert seen is not None
    assert (seen.residency, seen.resident_bytes) == (Residency.DEVICE, 9)
    assert holders.seen_by("acme", "same", IN_ENGINE[:1]) is None
    holders.leave("same", "acme")
    assert holders.seen_by("acme", "same", IN_ENGINE) is None


def claim(holders: Holders, tenant: str, tier: Residency, digest: str = "same") -> Claim:
    return holders.claim(digest, tenant, Pinned(digest, tenant, tier, 1))


def pin(holders: Holders, tenant: str, tier: Residency, digest: str = "same") -> None:
    """A call that the engine does at once."""
    holders.grant(claim(holders, tenant, tier, digest))


def test_each_sees_its_own_pins_and_sequences() -> None:
    holders = Holders()
    holders.used("same", "beta")
    pin(holders, "acme", Residency.HOST)
    with holders.running("same", "acme", 2), holders.running("same", "acme", 1):
        told = [holders.seen_by(tenant, "same", IN_ENGINE) for tenant in ("acme", "beta")]
    assert [(seen.pinned, seen.running_sequences) for seen in told if seen] == [(True, 3), (False, 0)]
    after = holders.seen_by("acme", "same", IN_ENGINE)
    assert after is not None
    assert after.running_sequences == 0


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Residency.STORED, (Residency.HOST, True)),
        (Residency.HOST, (Residency.HOST, True)),
        (Residency.DEVICE, (Residency.DEVICE, True)),
    ],
)
def test_a_pin_holds_against_other_tenants(wanted: Residency, expected: tuple[Residency, bool]) -> None:
    holders = Holders()
    pin(holders, "acme", Residency.HOST)
    holders.leave("same", "beta")
    assert holders.at_least("same", wanted) == expected
    holders.unpin("same", "acme")
    assert holders.at_least("same", wanted) == (wanted, False)


def test_a_pin_that_the_engine_does_not_have_is_not_told() -> None:
    """One that was started anew may not have found room for it yet."""
    holders = Holders()
    pin(holders, "acme", Residency.DEVICE, "other")
    seen = holders.seen_by("acme", "other", IN_ENGINE)
    assert seen is not None
    assert (seen.residency, seen.pinned) == (Residency.HOST, False)


def test_pins_that_a_new_engine_refuses_for_good_are_none_but_calls_go_on() -> None:
    holders = Holders()
    pin(holders, "acme", Residency.DEVICE)
    asked = claim(holders, "beta", Residency.HOST)
    holders.lose_pins("same")
    assert [pinned.tenant for pinned in holders.all_pinned()] == ["beta"]
    holders.grant(asked)
    assert holders.pinned("same") is Residency.HOST


def test_what_is_gone_from_the_store_is_held_by_nobody() -> None:
    holders = Holders()
    pin(holders, "acme", Residency.DEVICE)
    holders.forget("same")
    assert holders.seen_by("acme", "same", IN_ENGINE) is None
    assert holders.pinned("same") is Residency.STORED


HOST, DEVICE, STORED = Residency.HOST, Residency.DEVICE, Residency.STORED


@pytest.mark.parametrize("refused_first", [True, False])
def test_a_refused_call_takes_away_no_pin_that_another_call_made_meanwhile(refused_first: bool) -> None:
    holders = Holders()
    refused, granted = claim(holders, "acme", DEVICE), claim(holders, "acme", HOST)
    ends = [lambda: holders.refuse(refused), lambda: holders.grant(granted)]
    for end in ends if refused_first else ends[::-1]:
        end()
    assert holders.pinned("same") is HOST
    holders.unpin("same", "acme")
    assert holders.pinned("same") is STORED


def test_the_last_of_several_calls_says_where_the_weights_are_kept() -> None:
    holders = Holders()
    pin(holders, "acme", HOST)
    first, last = claim(holders, "acme", DEVICE), claim(holders, "acme", HOST)
    assert holders.pinned("same") is HOST
    holders.grant(last)
    holders.grant(first)
    assert holders.pinned("same") is HOST
    holders.refuse(claim(holders, "acme", DEVICE))
    assert holders.pinned("same") is HOST


def test_a_call_that_is_answered_after_an_unload_pins_nothing() -> None:
    holders = Holders()
    kept, left = claim(holders, "acme", DEVICE), claim(holders, "beta", DEVICE)
    holders.unpin("same", "acme")
    holders.leave("same", "beta")
    for late in (kept, left):
        holders.grant(late)
    assert holders.pinned("same") is STORED
    assert holders.seen_by("acme", "same", IN_ENGINE) is not None
    assert holders.seen_by("beta", "same", IN_ENGINE) is None
