"""Short names, full names, and ids made from file names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finetuned._names import Names, short, to_id
from finetuned.errors import InvalidField

NAMES = Names("a")
ADAPTER = "tenants/a/adapters/mine"


@pytest.mark.parametrize(
    ("expand", "given", "full"),
    [
        (NAMES.dataset, "rows", "tenants/a/datasets/rows"),
        (NAMES.dataset, "tenants/b/datasets/rows", "tenants/b/datasets/rows"),
        (NAMES.job, "j", "tenants/a/jobs/j"),
        (NAMES.upload, "u", "tenants/a/uploads/u"),
        (NAMES.base, "small", "bases/small"),
        (NAMES.base, "tenants/a/bases/small", "tenants/a/bases/small"),
        (NAMES.adapter, "mine", ADAPTER),
        (NAMES.adapter_like, "mine", ADAPTER),
        (NAMES.adapter_like, "mine@prod", f"{ADAPTER}/aliases/prod"),
        (NAMES.adapter_like, "mine@12", f"{ADAPTER}/versions/12"),
        (NAMES.adapter_like, f"{ADAPTER}/versions/3", f"{ADAPTER}/versions/3"),
        (NAMES.version, "mine@3", f"{ADAPTER}/versions/3"),
        (NAMES.alias, "mine", f"{ADAPTER}/aliases/default"),
        (NAMES.alias, "mine@prod", f"{ADAPTER}/aliases/prod"),
        (NAMES.alias, f"{ADAPTER}/aliases/prod", f"{ADAPTER}/aliases/prod"),
    ],
)
def test_names_are_completed(expand: Callable[[str], str], given: str, full: str) -> None:
    assert expand(given) == full


@pytest.mark.parametrize(
    ("expand", "given", "field"),
    [
        (NAMES.dataset, "", "dataset"),
        (NAMES.base, "", "base"),
        (NAMES.adapter, "mine@prod", "adapter"),
        (NAMES.adapter_like, "mine@", "adapter"),
        (NAMES.adapter_like, "@prod", "adapter"),
        (NAMES.version, "mine", "version"),
        (NAMES.version, "mine@prod", "version"),
        (NAMES.alias, "mine@3", "alias"),
    ],
)
def test_what_cannot_be_placed_is_refused(expand: Callable[[str], str], given: str, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        expand(given)
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        (ADAPTER, "mine"),
        (f"{ADAPTER}/versions/3", "mine@3"),
        (f"{ADAPTER}/aliases/prod", "mine@prod"),
        ("tenants/a/jobs/j", "j"),
        ("bases/small", "small"),
        ("", ""),
    ],
)
def test_short(full: str, expected: str) -> None:
    assert short(full) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("rows", "rows"), ("My Rows (2)", "my-rows-2"), ("--x--", "x"), ("a" * 70, "a" * 63), ("ü1", "1")],
)
def test_to_id(text: str, expected: str) -> None:
    assert to_id(text) == expected


def test_nothing_to_make_an_id_of() -> None:
    with pytest.raises(InvalidField, match="give one"):
        to_id("…")
