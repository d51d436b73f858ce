"""Pages: every item once, and tokens that were never handed out are refused."""

from __future__ import annotations

import base64

import pytest
from finetuned_service.errors import InvalidField
from finetuned_service.storage.pages import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_BYTES,
    MAX_PAGE_SIZE,
    Page,
    PageRequest,
    page_of,
    page_that_fits,
)
from hypothesis import given
from hypothesis import strategies as st


def token(key: str, mark: str = "") -> str:
    return base64.urlsafe_b64encode(f"{mark}.{key}".encode()).decode()


@pytest.mark.parametrize(("asked", "given"), [(0, DEFAULT_PAGE_SIZE), (1, 1), (MAX_PAGE_SIZE, MAX_PAGE_SIZE)])
def test_sizes(asked, given):
    assert PageRequest.parse(asked, "") == PageRequest(given, "")


@pytest.mark.parametrize("size", [-1, MAX_PAGE_SIZE + 1])
def test_a_size_out_of_range_names_the_limits(size):
    with pytest.raises(InvalidField) as refusal:
        PageRequest.parse(size, "")
    assert refusal.value.message == f"page_size: is {size}; allowed: 0 (meaning 50) to 1000"


@pytest.mark.parametrize(
    "garbage",
    [
        "!!!!",
        "a",
        "YWJj",
        "é",
        " ",
        token("UPPER"),
        token("a b"),
        token("\0"),
        token("\n"),
        token("é"),
        token(""),
    ],
)
def test_tokens_that_were_never_handed_out_are_refused(garbage):
    with pytest.raises(InvalidField) as refusal:
        PageRequest.parse(1, garbage)
    assert [violation.field for violation in refusal.value.violations] == ["page_token"]


@given(st.text(max_size=30))
def test_any_token_is_parsed_or_refused(text):
    try:
        request = PageRequest.parse(1, text)
    except InvalidField:
        return
    assert text == (token(request.after) if request.after else "")


def test_a_token_is_of_no_use_to_another_list():
    ours, other = (PageRequest.parse(1, "", listed) for listed in (b"jobs of acme", b"jobs of other"))
    handed_out = page_of([("a", 1), ("b", 2)], ours).next_token
    assert PageRequest.parse(1, handed_out, b"jobs of acme") == PageRequest(1, "a", ours.mark)
    assert ours.mark != other.mark
    for listed in (b"jobs of other", b""):
        with pytest.raises(InvalidField, match="good for the call, the parent and the filters"):
            PageRequest.parse(1, handed_out, listed)


@pytest.mark.parametrize("key", ["x", "1x", "9" * 19, "tenants/acme"])
def test_a_key_that_is_no_number_is_refused_where_numbers_are_listed(key):
    request = PageRequest.parse(1, token(key))
    with pytest.raises(InvalidField):
        request.after_number(default=0)


def test_numbers_fit_a_database_integer():
    assert PageRequest.parse(1, token("9" * 18)).after_number(default=0) < 2**63
    assert PageRequest(1, "").after_number(default=7) == 7


@given(st.sets(st.integers(0, 999), max_size=30), st.integers(1, 10))
def test_following_the_tokens_gives_every_item_once(numbers, size):
    ids = sorted(f"id-{number:03}" for number in numbers)
    seen: list[str] = []
    request = PageRequest.parse(size, "")
    while True:
        rest = [(i, i) for i in ids if i > request.after]
        page = page_of(rest[: size + 1], request)
        seen += page.items
        if not page.next_token:
            break
        assert len(page.items) == size
        request = PageRequest.parse(size, page.next_token)
    assert seen == ids


def test_a_page_ends_where_its_bytes_do_and_reads_no_further():
    half = MAX_PAGE_BYTES // 2
    read: list[str] = []

    def items(sizes: dict[str, int]):
        for key, size_bytes in sizes.items():
            read.append(key)
            yield key, size_bytes

    def page(asked: PageRequest, **sizes: int) -> Page[int]:
        return page_that_fits(items(sizes), asked, lambda size_bytes: size_bytes)

    asked = PageRequest.parse(3, "", b"a list")
    assert page(asked, a=half, b=half, c=1, d=1) == Page((half, half), asked.token_after("b"))
    assert read == ["a", "b", "c"]
    # One that is larger than a page has one of its own.
    assert page(asked, a=3 * half, b=1) == Page((3 * half,), asked.token_after("a"))
    assert page(asked, a=half, b=half) == Page((half, half))
    assert page(asked, a=1, b=1, c=1, d=4 * half) == Page((1, 1, 1), asked.token_after("c"))
    assert page(asked, a=1, b=1, c=1) == Page((1, 1, 1))
    assert page(asked) == Page(())
