"""Our own engine without processes and gRPC: `OfflineEngine.generate` in the process that asks.

Settings: `base`, `threads`, `sequences`. Adapters are directories of a server's store.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from finetuned_service.engine.choose import load_model
from finetuned_service.engine.config import READY_KV_TOKENS, EngineConfig
from finetuned_service.engine.messages import AdapterHandle, Sampling, Submit
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.settings import Settings as ServerSettings

from benchmarks.peers.worker import Generate, Row, Settings, serve


def start(settings: Settings) -> Generate:
    torch.set_num_threads(settings["threads"])
    server = ServerSettings(threads=settings["threads"], max_running_sequences=settings["sequences"])
    config = EngineConfig(
        base_directory=settings["base"],
        threads=server.threads,
        max_running_sequences=server.max_running_sequences,
        max_queued_sequences=server.max_queued_sequences,
        max_prefill_tokens=server.max_prefill_tokens or 0,
        kv_capacity_tokens=server.kv_cache_tokens,
        ready_kv_tokens=READY_KV_TOKENS,
        device_budget_bytes=server.adapter_device_bytes,
        host_budget_bytes=server.adapter_host_bytes,
    )
    engine = OfflineEngine(load_model(Path(settings["base"])), config)
    numbers = itertools.count(1)

    def generate(rows: Sequence[Row], new_tokens: int) -> int:
        sampling = Sampling(max_new_tokens=new_tokens, ignore_eos=True)
        submits = [Submit(next(numbers), tuple(row.token_ids), _handle(row), sampling) for row in rows]
        completions = engine.generate(submits)
        for completion in completions:
            if completion.error is not None:
                raise completion.error
        return sum(len(completion.token_ids) for completion in completions)

    return generate


def _handle(row: Row) -> AdapterHandle | None:
    """The store names its directories by digest."""
    return None if row.adapter is None else AdapterHandle(f"sha256:{Path(row.adapter).name}", row.adapter)


if __name__ == "__main__":
    serve(start)
