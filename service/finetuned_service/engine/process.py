"""The engine process: one thread computes, one reads commands; events go out once a step.

Apart from gRPC because compiled code holds the GIL for whole steps. Its life is tied to its parent's:
it dies when the socket closes, and with the parent even if it is stuck in a step.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
import transformers

from finetuned_service.bases.lender import Lender
from finetuned_service.bases.manifest import read_manifest
from finetuned_service.bases.shared_tensor import SharedTensor
from finetuned_service.engine.choose import load_model
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.loop import EngineLoop
from finetuned_service.engine.messages import Event, Ready, StartFailed
from finetuned_service.engine.runner import Model
from finetuned_service.engine.wire import encode, receive
from finetuned_service.errors import FinetunedError, Internal
from finetuned_service.telemetry import logs

_log = structlog.get_logger()

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15

_SWITCH_SECONDS = 0.0002
"""For so long a step waits for the interpreter's lock that a thread holds which loads an adapter. The interpreter's own
time, 5 ms, is a third of a step."""


def main(descriptor: int) -> int:
    """Serve the parent over the socket `descriptor` until it says Shutdown or is gone."""
    _become_engine()
    connection = socket.socket(fileno=descriptor)
    config: EngineConfig = receive(connection)
    logs.configure(config.log_format, config.log_level)
    torch.set_num_threads(config.threads)
    transformers.logging.disable_progress_bar()
    try:
        loop, ready = _start(config)
    except FinetunedError as error:
        _send(connection, [StartFailed(error.to_wire())])
        return 1
    except Exception:  # noqa: BLE001 - the parent must learn of whatever it was
        fault = Internal.opaque()
        _log.exception("engine_start_failed", **fault.metadata)
        _send(connection, [StartFailed(fault.to_wire())])
        return 1
    sys.setswitchinterval(_SWITCH_SECONDS)
    # What was loaded stays: a full collection over it would stop a step for a quarter of a second.
    gc.collect()
    gc.freeze()
    _send(connection, [ready])
    _log.info("engine_ready", base_digest=ready.base_digest, threads=config.threads, path=ready.path)
    threading.Thread(target=_read_commands, args=(connection, loop), name="commands", daemon=True).start()
    run(loop, lambda events: _send(connection, events))
    return 0


def run(loop: EngineLoop, send: Callable[[Sequence[Event]], None]) -> None:
    """Step until the loop is stopped, pausing where a job is to have its time; then end what is left."""
    while not loop.stopped:
        send(loop.step())
        loop.rest.take()
    send(loop.abandon())
    loop.close()


def _start(config: EngineConfig) -> tuple[EngineLoop, Ready]:
    directory = Path(config.base_directory)
    manifest = read_manifest(directory)
    model = load_model(
        directory, device=config.device, compute=config.compute, cache_directory=config.cache_directory
    )
    if config.verify_base and (found := model.fingerprint()) != manifest.digest:
        raise Internal(
            f"the weights of {manifest.name} have the digest {found}, its manifest says {manifest.digest}; "
            "restore the base's files, or delete the base and make it again"
        )
    shared = _shared(model)
    return EngineLoop(model, config), Ready(
        manifest.digest,
        model.context_tokens,
        model.device.type,
        model.path,
        shared,
        Lender.this_process() if shared else None,
    )


def _shared(model: Model) -> tuple[SharedTensor, ...]:
    try:
        return model.share()
    except RuntimeError as error:
        _log.warning("base_not_shared", reason=str(error), note="jobs on this GPU load copies of their own")
        return ()


def _read_commands(connection: socket.socket, loop: EngineLoop) -> None:
    try:
        while True:
            for command in receive(connection):
                loop.deliver(command)
    except EOFError:
        # Nobody is left to answer to. Nothing here needs cleaning up, and a step may be running.
        os._exit(0)


def _send(connection: socket.socket, events: Sequence[Event]) -> None:
    if events:
        try:
            connection.sendall(encode(tuple(events)))
        except ConnectionError:
            os._exit(0)


def _become_engine() -> None:
    """A name of its own, no end but by the parent, no life after it.

    Ctrl-C and a stop of the whole control group reach this process, too; running requests get their grace
    only if it waits for the parent's Shutdown.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, b"finetuned-eng", 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
