"""`request_id`: one resource for a repeated call, a refusal for another body, 24 hours of memory."""

from __future__ import annotations

import pytest
from finetuned_service.errors import InvalidField, RequestIdReused
from finetuned_service.storage.idempotency import (
    KEPT_SECONDS,
    MAX_REQUEST_ID_CHARACTERS,
    RequestKey,
    deleted_since,
    recall,
    remember,
)
from finetuned_service.storage.schema import requests
from sqlalchemy import func, select

NOW = 1_000_000.0
NAME = "tenants/acme/jobs/train-1"


def key(request_id: str = "r1", body: bytes = b"body", tenant: str = "acme") -> RequestKey:
    return RequestKey.of(tenant, request_id, body)


@pytest.fixture
def remembered(database):
    with database.begin() as connection:
        remember(connection, key(), NAME, NOW)
    return database


@pytest.mark.parametrize(
    ("asked", "after_seconds", "expected"),
    [
        (key(), 0.0, NAME),
        (key(), KEPT_SECONDS, NAME),
        (key(), KEPT_SECONDS + 1.0, None),
        (key(request_id="r2"), 0.0, None),
        (key(tenant="other"), 0.0, None),
        (key(tenant="other", body=b"else"), 0.0, None),
        (key(body=b"else"), KEPT_SECONDS + 1.0, None),
        (key(request_id=""), 0.0, None),
    ],
)
def test_recall(remembered, asked, after_seconds, expected):
    with remembered.read() as connection:
        assert recall(connection, asked, NOW + after_seconds) == expected


def test_another_body_within_24_hours_is_refused(remembered):
    with remembered.read() as connection, pytest.raises(RequestIdReused, match="train-1"):
        recall(connection, key(body=b"else"), NOW + KEPT_SECONDS)


def test_an_id_that_has_expired_can_be_used_again(remembered):
    later = NOW + KEPT_SECONDS + 1.0
    with remembered.begin() as connection:
        remember(connection, key(body=b"else"), "tenants/acme/jobs/train-2", later)
        assert recall(connection, key(body=b"else"), later) == "tenants/acme/jobs/train-2"


def test_what_has_expired_is_removed(remembered):
    with remembered.begin() as connection:
        remember(connection, key(request_id="r2"), NAME, NOW + KEPT_SECONDS + 1.0)
        assert connection.scalar(select(func.count()).select_from(requests)) == 1


def test_an_empty_id_is_not_remembered(database):
    with database.begin() as connection:
        remember(connection, key(request_id=""), NAME, NOW)
        assert connection.scalar(select(func.count()).select_from(requests)) == 0


def test_a_long_id_names_the_limit():
    longest = "x" * MAX_REQUEST_ID_CHARACTERS
    assert RequestKey.of("acme", longest, b"").request_id == longest
    with pytest.raises(InvalidField, match="has 129 characters; allowed: 128"):
        RequestKey.of("acme", longest + "x", b"")


def test_a_repeated_request_of_something_deleted_says_so():
    refusal = deleted_since(NAME)
    assert (refusal.status, refusal.metadata) == ("NOT_FOUND", {"resource": NAME})
    assert "deleted since" in refusal.message
