"""The fake server, and both clients connected to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from both_clients import open_client
from finetuned.testing import FakeServer


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, fake_server: FakeServer) -> Iterator[Any]:
    """`Client`, then `AsyncClient` behind the same interface."""
    with open_client(request.param, fake_server.endpoint) as opened:
        yield opened
