"""Shares of the memory for adapters: what one tenant may pin, and that others find room."""

from __future__ import annotations

import pytest
from finetuned_service.engine.messages import Residency
from finetuned_service.errors import QuotaExceeded
from finetuned_service.serving.holders import Pinned
from finetuned_service.serving.pin_shares import PinShares

HOST, DEVICE = Residency.HOST, Residency.DEVICE
SHARES = PinShares({DEVICE: 100, HOST: 1000}, 0.75)


def pinned(digest: str, tenant: str = "acme", size_bytes: int = 5, tier: Residency = DEVICE) -> Pinned:
    return Pinned(digest, tenant, tier, size_bytes)


def fill(shares: PinShares, tenant: str, held: list[Pinned]) -> int:
    """How many more the tenant gets."""
    for number in range(1000):
        try:
            shares.refuse_above(wanted := pinned(f"{tenant}-{number}", tenant), held)
        except QuotaExceeded:
            return number
        held.append(wanted)
    raise AssertionError("no end")


def test_one_that_is_alone_gets_its_share_and_others_still_find_room() -> None:
    held: list[Pinned] = []
    assert [fill(SHARES, tenant, held) for tenant in ("acme", "beta")] == [15, 3]
    assert sum(one.size_bytes for one in held) < 100


def test_a_share_of_one_is_no_limit() -> None:
    PinShares({DEVICE: 100}, 1.0).refuse_above(pinned("large", size_bytes=1000), [])


def test_each_tier_is_counted_for_itself() -> None:
    held = [pinned(f"h{number}", tier=HOST) for number in range(100)]
    SHARES.refuse_above(pinned("a"), held)


def test_what_is_pinned_already_may_be_pinned_again() -> None:
    held: list[Pinned] = []
    fill(SHARES, "acme", held)
    SHARES.refuse_above(held[0], held)


def test_a_pin_that_is_there_may_be_said_again_whatever_others_have_pinned_since() -> None:
    held = [pinned("mine", "acme", 60), pinned("theirs", "beta", 30)]
    SHARES.refuse_above(pinned("mine", "acme", 60), held)
    with pytest.raises(QuotaExceeded):
        SHARES.refuse_above(pinned("mine", "gamma", 60), held)


def test_content_that_several_have_pinned_takes_its_memory_once() -> None:
    held = [pinned("same", "acme", 30), pinned("same", "beta", 30)]
    SHARES.refuse_above(pinned("more", "acme", 45), held)
    with pytest.raises(QuotaExceeded):
        SHARES.refuse_above(pinned("more", "acme", 46), held)
    with pytest.raises(QuotaExceeded):
        SHARES.refuse_above(pinned("more", "gamma", 53), held)


def test_the_refusal_says_what_is_pinned_what_is_allowed_and_the_remedy() -> None:
    remedy = r"75.0 MB, the rest.*UnloadAdapter.*without a pin.*max_tenant_pin_share"
    shares = PinShares({DEVICE: 100_000_000}, 0.75)
    with pytest.raises(
        QuotaExceeded, match=rf"1 adapters of 70.0 MB in DEVICE.*takes 6.0 MB.*{remedy}"
    ) as refusal:
        shares.refuse_above(pinned("b", size_bytes=6_000_000), [pinned("a", size_bytes=70_000_000)])
    assert refusal.value.metadata == {
        "limit": "pinned_bytes",
        "subject": "tenants/acme",
        "used": "70000000",
        "allowed": "75000000",
    }
