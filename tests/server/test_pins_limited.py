"""Pins of tenants with keys: one pins no more than its share, and others are served meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from finetuned.errors import QuotaExceeded
from served_oracle import ask
from server.credentials import GuardedServer, guarded
from server.test_adapters_served import imported


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    """Room for two adapters of rank 90, but a user's share is one."""
    with guarded(tmp_path_factory.mktemp("pins"), adapter_device_bytes=1 << 20) as found:
        yield found


def test_a_user_pins_its_share_and_an_admin_what_there_is_room_for(
    server: GuardedServer, tmp_path: Path
) -> None:
    with (
        server.client("acme") as acme,
        server.client("beta") as beta,
        server.client("admin", "acme") as admin,
    ):
        for seed, name in enumerate(("first", "second")):
            imported(acme, server.server, tmp_path / name, name, seed=seed, rank=90)
        imported(beta, server.server, tmp_path / "beta", "small", seed=3, rank=4)
        acme.adapters.load("first", pin=True)
        with pytest.raises(QuotaExceeded, match="max_tenant_pin_share"):
            acme.adapters.load("second", pin=True)
        assert not acme.adapters.version("second").residency[0].pinned
        assert ask(beta, "small").served_by.modules == 14
        assert ask(acme, "second").served_by.modules == 14
        assert admin.adapters.load("second", pin=True).residency[0].pinned
        admin.adapters.unload("second")
