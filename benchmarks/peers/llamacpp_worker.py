"""llama.cpp's server, asked over HTTP on loopback without streaming, one slot for every sequence.

Settings: `base`, `adapters` (directories; loaded at start, because it cannot load later), `threads`,
`sequences`, `context_tokens`, `cache` (where converted files are kept).
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.peers.worker import Generate, Row, Settings, serve

HOME = Path(sys.prefix)
START_SECONDS = 120.0


def start(settings: Settings) -> Generate:
    base, cache = Path(settings["base"]), Path(settings["cache"])
    cache.mkdir(parents=True, exist_ok=True)
    model = _converted("convert_hf_to_gguf.py", base, cache / f"{base.name}.gguf")
    adapters = {
        directory: _converted(
            "convert_lora_to_gguf.py", Path(directory), cache / f"{Path(directory).name}.gguf", base
        )
        for directory in settings["adapters"]
    }
    port = _free_port()
    command = [str(HOME / "build/bin/llama-server"), "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--no-webui", "--offline"]
    command += ["--threads", str(settings["threads"]), "--parallel", str(settings["sequences"])]
    command += ["--ctx-size", str(settings["sequences"] * settings["context_tokens"])]
    if adapters:
        command += ["--lora-init-without-apply", "--lora", ",".join(map(str, adapters.values()))]
    server = subprocess.Popen(command, stdout=2)
    _wait_until_ready(server, port)
    numbers = {directory: number for number, directory in enumerate(adapters)}

    def one(row: Row, new_tokens: int) -> int:
        request: dict[str, Any] = {
            "prompt": row.token_ids,
            "n_predict": new_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "samplers": [],
            "cache_prompt": False,
        }
        if row.adapter is not None:
            request["lora"] = [{"id": numbers[row.adapter], "scale": 1.0}]
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/completion", json.dumps(request))
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return int(answer["tokens_predicted"])

    pool = ThreadPoolExecutor(settings["sequences"])

    def generate(rows: Sequence[Row], new_tokens: int) -> int:
        return sum(pool.map(lambda row: one(row, new_tokens), rows))

    return generate


def _converted(script: str, source: Path, target: Path, base: Path | None = None) -> Path:
    """What its own converter makes of safetensors, in bfloat16; kept."""
    if not target.exists():
        partial = target.with_suffix(".partial")
        command = [sys.executable, str(HOME / "source" / script), str(source), "--outtype", "bf16"]
        command += ["--outfile", str(partial)]
        if base is not None:
            command += ["--base", str(base)]
        subprocess.run(command, check=True, stdout=2)
        partial.rename(target)
    return target


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"llama-server ended with code {server.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise RuntimeError(f"llama-server is not ready after {START_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    serve(start)
