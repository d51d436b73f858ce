"""Resource names: what parses prints back, and nothing else parses."""

from __future__ import annotations

import re

import pytest
from finetuned_service.errors import InvalidField
from finetuned_service.names import AdapterSelector, BaseName, ResourceName, check_id, parse_tenant
from hypothesis import given
from hypothesis import strategies as st

IDS = st.from_regex(re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"), fullmatch=True)
COLLECTIONS = st.sampled_from(["jobs", "datasets", "uploads", "adapters"])
LONGEST = "a" * 63

BAD_IDS = (
    "", "-", "-a", "a-", "A", "a_b", "a.b", "a/b", "ä", "a b", " a", "a\n", "a" * 64, "..", "a\x00", "%61",
)  # fmt: skip


@given(name=IDS)
def test_legal_ids_pass(name: str) -> None:
    assert name == check_id(name, "id")


@pytest.mark.parametrize("name", BAD_IDS)
def test_illegal_ids_are_refused_by_field(name: str) -> None:
    with pytest.raises(InvalidField) as caught:
        check_id(name, "start.dataset_id")
    (violation,) = caught.value.violations
    assert violation.field == "start.dataset_id"
    assert violation.description == (
        f"is {name!r}; allowed: a-z, 0-9 and '-', 1 to 63 characters, first and last not '-'"
    )


@given(text=st.text(max_size=70))
def test_ids_are_exactly_the_rule(text: str) -> None:
    legal = (
        1 <= len(text) <= 63
        and set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        and not text.startswith("-")
        and not text.endswith("-")
    )
    try:
        check_id(text, "id")
        accepted = True
    except InvalidField:
        accepted = False
    assert legal == accepted


@given(tenant=IDS)
def test_tenants(tenant: str) -> None:
    assert tenant == parse_tenant(f"tenants/{tenant}")


@given(tenant=IDS, collection=COLLECTIONS, resource=IDS)
def test_resource_names_round_trip(tenant: str, collection: str, resource: str) -> None:
    name = f"tenants/{tenant}/{collection}/{resource}"
    parsed = ResourceName.parse(name, collection)
    assert parsed == ResourceName(tenant, collection, resource)
    assert name == str(parsed)


@given(tenant=IDS, adapter=IDS, version=st.integers(1, 999_999_999), alias=IDS)
def test_adapter_selectors_round_trip(tenant: str, adapter: str, version: int, alias: str) -> None:
    plain = f"tenants/{tenant}/adapters/{adapter}"
    expected = {
        plain: AdapterSelector(tenant, adapter),
        f"{plain}/versions/{version}": AdapterSelector(tenant, adapter, version=version),
        f"{plain}/aliases/{alias}": AdapterSelector(tenant, adapter, alias=alias),
    }
    for name, selector in expected.items():
        assert selector == AdapterSelector.parse(name)
        assert name == str(selector)
        assert plain == selector.adapter_name


@given(base=IDS, tenant=st.none() | IDS)
def test_base_names_round_trip(base: str, tenant: str | None) -> None:
    name = BaseName(base, tenant)
    assert name == BaseName.parse(str(name))
    assert str(name) == (f"tenants/{tenant}/bases/{base}" if tenant else f"bases/{base}")


@pytest.mark.parametrize("bad", BAD_IDS)
def test_a_bad_part_spoils_any_name(bad: str) -> None:
    for parse in (
        lambda: parse_tenant(f"tenants/{bad}"),
        lambda: ResourceName.parse(f"tenants/{bad}/jobs/a", "jobs"),
        lambda: ResourceName.parse(f"tenants/a/jobs/{bad}", "jobs"),
        lambda: AdapterSelector.parse(f"tenants/{bad}/adapters/a"),
        lambda: AdapterSelector.parse(f"tenants/a/adapters/{bad}"),
        lambda: AdapterSelector.parse(f"tenants/a/adapters/a/aliases/{bad}"),
        lambda: BaseName.parse(f"bases/{bad}"),
        lambda: BaseName.parse(f"tenants/{bad}/bases/a"),
    ):
        with pytest.raises(InvalidField):
            parse()


@pytest.mark.parametrize("version", ["0", "01", "-1", "+1", "1.0", "1000000000", "x", "", "\u0661"])
def test_versions_are_positive_plain_numbers(version: str) -> None:
    with pytest.raises(InvalidField):
        AdapterSelector.parse(f"tenants/a/adapters/b/versions/{version}")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "tenants",
        "tenants/",
        "/tenants/a/jobs/b",
        "tenants/a/jobs/b/",
        "tenants/a/jobs",
        "tenants/a/datasets/b",
        "Tenants/a/jobs/b",
        "tenants/a/jobs/b/c/d",
        "tenants/a//jobs/b",
    ],
)
def test_other_shapes_are_refused_in_words_that_help(name: str) -> None:
    with pytest.raises(InvalidField) as caught:
        ResourceName.parse(name, "jobs", "job")
    assert caught.value.message.startswith(
        f"job: is {name!r}; expected 'tenants/{{tenant}}/jobs/{{id}}', each part: "
    )


def test_the_longest_name_is_accepted() -> None:
    assert ResourceName.parse(f"tenants/{LONGEST}/jobs/{LONGEST}", "jobs").id == LONGEST
