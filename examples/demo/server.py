"""A real server in a process of its own, on loopback, on free ports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetuned import Client
from finetuned.errors import FinetunedError

START_SECONDS = 180.0
"""The first start converts the packaged base; later ones take a few seconds."""
STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where the server listens."""

    endpoint: str
    metrics_url: str
    log: Path
    pid: int


@contextlib.contextmanager
def running_server(data_dir: Path, *flags: str, patience: float = 1.0) -> Iterator[RunningServer]:
    """Start the server, wait until it serves, and stop it cleanly at the end of the block.

    Args:
        data_dir: everything it keeps, and its log.
        flags: more of `finetuned serve`, for example "--threads", "2".
        patience: how many times longer than usual it may take to start and to stop, on a busy machine.

    Raises:
        RuntimeError: it did not start, or did not stop cleanly; its log says why.
    """
    api, health, metrics = (_free_port() for _ in range(3))
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "server.log"
    command = [sys.executable, "-m", "finetuned_service", "serve", "--data-dir", str(data_dir)]
    command += ["--listen-address", f"127.0.0.1:{api}", "--health-address", f"127.0.0.1:{health}"]
    command += ["--metrics-address", f"127.0.0.1:{metrics}", *flags]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=dict(os.environ))
    try:
        endpoint = f"127.0.0.1:{api}"
        _wait_until_ready(process, endpoint, log, START_SECONDS * patience)
        yield RunningServer(endpoint, f"http://127.0.0.1:{metrics}/metrics", log, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=STOP_SECONDS * patience)
    if code != 0:
        raise RuntimeError(f"the server did not stop cleanly: exit code {code}; see {log}")


def _wait_until_ready(
    process: subprocess.Popen[bytes], endpoint: str, log: Path, start_seconds: float
) -> None:
    deadline = time.monotonic() + start_seconds
    with Client(endpoint) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with code {process.returncode}; see {log}")
            with contextlib.suppress(FinetunedError):
                client.within(2.0).server_info()
                return
            time.sleep(0.2)
    raise RuntimeError(f"the server is not ready after {start_seconds:.0f} s; see {log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
