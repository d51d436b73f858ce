"""A real server on a tiny base, once for all tests of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from finetuned import Client
from tiny_server import TinyServer, make_data_directory, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    directory = tmp_path_factory.mktemp("server")
    make_data_directory(directory)
    settings = {
        "import_roots": (directory / "imports",),
        "import_urls": ("s3://data/shared",),
        "max_unpacked_bytes": 2_000_000,
    }
    with running(directory / "data", **settings) as found:
        yield found


@pytest.fixture(scope="session")
def channel(server: TinyServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.endpoint) as found:
        yield found


@pytest.fixture
def client(server: TinyServer) -> Iterator[Client]:
    with Client(server.endpoint) as found:
        yield found


@pytest.fixture
def tmp_rows(tmp_path: Path) -> Path:
    """Twenty rows that can be trained on."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n} it is"}}\n' for n in range(20)))
    return path
