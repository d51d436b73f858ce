"""`finetuned info`: what the server holds, can do and allows."""

from __future__ import annotations

import typer

from finetuned._names import short
from finetuned.cli.output import print_facts, print_json, size
from finetuned.cli.session import AsJson, connect


def info(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Show what the server holds, can do and allows."""
    with connect(context) as client:
        found = client.server_info()
    if as_json:
        print_json(found)
        return
    load = found.load
    print_facts(
        found.replica,
        {
            "service": found.service_version,
            "base": f"{short(found.base.name)} ({found.base.weight_format}, {size(found.base.weight_bytes)})",
            "digest": found.base.digest,
            "device": found.device,
            "computed": found.compute_path,
            "context": f"{found.limits.context_tokens} tokens",
            "methods": ", ".join(found.methods),
            "tasks": ", ".join(found.tasks),
            "quantize to": ", ".join(found.weight_formats),
            "adapters ready": load.adapters_on_device,
            "sequences": f"{load.running_sequences} running, {load.queued_sequences} waiting",
            "KV cache": f"{load.kv_tokens_used} of {load.kv_tokens_capacity} tokens",
            "memory": ", ".join(f"{item.use} {size(item.bytes)}" for item in found.memory),
        },
    )
