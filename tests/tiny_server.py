"""The real server on a tiny random base, in this process but for its engine and its jobs.

Everything between a client and the weights is the code that production runs; only the base is small.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuned_service.app import Server
from finetuned_service.bases.convert import import_directory
from finetuned_service.settings import Settings
from metrics_page import scrape
from on_device import DEVICE
from tiny_models import save_tiny_base
from tiny_tokenizers import byte_level, write_tokenizer

TINY = "tiny"
LOOPBACK = "127.0.0.1:0"


def make_data_directory(directory: Path, *, seed: int = 0, **base: Any) -> Path:
    """A data directory with the tiny base in it; returns the base's directory."""
    source = directory / "source"
    save_tiny_base(source, seed=seed, vocab_size=byte_level().get_vocab_size(), **base)
    write_tokenizer(source)
    import_directory(source, directory / "data" / "bases" / TINY)
    return directory / "data" / "bases" / TINY


@dataclass(frozen=True, slots=True)
class TinyServer:
    """A running server and where it listens."""

    server: Server
    loop: asyncio.AbstractEventLoop
    data_directory: Path

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def base_directory(self) -> Path:
        return self.data_directory / "bases" / TINY

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.server.metrics_port}/metrics"

    def until_swept(self) -> None:
        """Return after the sweep that follows the start: until then it may take what a test has just put there."""
        end = time.monotonic() + 60
        while "\nfinetuned_last_sweep_timestamp_seconds 0.0\n" in scrape(self.metrics_url):
            assert time.monotonic() < end, "the server does not sweep"
            time.sleep(0.05)


@contextmanager
def running(data_directory: Path, **overrides: Any) -> Iterator[TinyServer]:
    """Serve `data_directory` on free ports of the loopback until the block ends, then stop cleanly."""
    settings = Settings(
        **{
            "data_dir": data_directory,
            "base": TINY,
            "device": DEVICE,
            "listen_address": LOOPBACK,
            "health_address": LOOPBACK,
            "metrics_address": LOOPBACK,
            "replica": "test",
            "threads": 1,
            "job_threads": 1,
            "kv_cache_tokens": 2048,
            "max_running_sequences": 4,
            "max_queued_sequences": 4,
            "max_prefill_tokens": 64,
            "shutdown_grace_seconds": 20.0,
            **overrides,
        }
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tiny-server")
    thread.start()

    def wait_for(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=120)

    data_directory.mkdir(parents=True, exist_ok=True)  # as `serve` does before it builds
    try:
        server = wait_for(Server.build(settings))
        wait_for(server.start())
        try:
            yield TinyServer(server, loop, data_directory)
        finally:
            wait_for(server.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
