"""`make demo`: train, hot-swap and quantize on a real model.

Starts the real server in another process and talks to it through the public client alone. What an
earlier run left in the data directory is used again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from finetuned import Client
from rich.console import Console

from examples.demo.jobs import EXAMPLES, Example, train, upload
from examples.demo.server import running_server
from examples.demo.show import (
    show_answers,
    show_metrics,
    show_mixed,
    show_promotion,
    show_quantized,
    show_scores,
)

OPS, REDACT = "ops_cli", "redact"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="the server's data directory")
    console = Console()
    tour(parser.parse_args().data_dir, console)


def tour(data_dir: Path, console: Console) -> None:
    """The seven steps."""
    began = time.monotonic()
    console.rule("Starting the server (the first start converts the packaged base once)")
    with running_server(data_dir) as server, Client(server.endpoint) as client:
        info = client.server_info()
        console.print(f"  {info.base.name} {info.base.digest[:19]}… on {info.device}, pid {server.pid}")
        ops, redact = Example.load(OPS), Example.load(REDACT)

        console.rule(
            "1. Two datasets: held-out rows share neither templates nor vocabulary with training rows"
        )
        for example in (ops, redact):
            for part in ("train", "heldout"):
                path = EXAMPLES / example.directory / f"{part}.jsonl"
                upload(client, path, f"{example.adapter}-{part}", console)

        console.rule("2. Two TrainJobs (LoRA) beside the running server")
        trained = [train(client, example, f"{example.adapter}-train", console) for example in (ops, redact)]
        show_scores(trained, console)

        console.rule("3. One held-out input three ways, and where the adapter fails")
        for example, job in zip((ops, redact), trained, strict=True):
            show_answers(client, example, job, console)

        console.rule("4. Both adapters and the plain base at the same time, in one batch")
        show_mixed(client, ops, redact, console)

        console.rule("5. Version 2 of one adapter, promoted while requests run")
        show_promotion(client, ops, console)

        console.rule("6. The base quantized")
        show_quantized(client, console)

        console.rule("7. What /metrics says about all this")
        show_metrics(server, console)
        console.rule("Stopping the server")
    console.print(f"  stopped cleanly after {time.monotonic() - began:.0f} s; log: {server.log}")
    console.print("  next: make serve, then in another terminal: .venv/bin/finetuned --help")


if __name__ == "__main__":
    main()
