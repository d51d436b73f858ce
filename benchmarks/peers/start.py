"""How each peer is started, with the settings that its own documentation recommends for speed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.machine import cores
from benchmarks.peers.process import Peer, running

HOME = Path("build/peers")
LOGS = Path("build/bench/logs")
GGUF = Path("build/bench/gguf")
NAMES = ("vllm", "peft", "llamacpp")
"""The other projects. `engine`, our own without gRPC, is started as they are but is always there."""

KV_CACHE_GIB = 1
"""As near as its whole GiB come to what ours reserves; it is more than any workload here fills."""


def installed(name: str) -> bool:
    """Whether `benchmarks/peers/build NAME` has come to its end."""
    return (HOME / name / "installed").exists()


def vllm(
    base: Path, *, sequences: int, context_tokens: int, max_loras: int = 0
) -> AbstractContextManager[Peer]:
    """`max_loras` as many as are asked for at once, which favours it; 0 starts it without LoRA."""
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{cores() - 1}",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_NO_USAGE_STATS": "1",
        # Its cache of whole compiled models cannot be read back in 0.32 and is made again at each start.
        "VLLM_USE_AOT_COMPILE": "0",
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(map(str, _preloads())),
    }
    settings = {
        "base": str(base.resolve()),
        "sequences": sequences,
        "context_tokens": context_tokens,
        "max_loras": max_loras,
    }
    return _worker("vllm", settings, environment)


def peft(base: Path) -> AbstractContextManager[Peer]:
    return _worker("peft", {"base": str(base.resolve()), "threads": cores()}, {"HF_HUB_OFFLINE": "1"})


def llamacpp(
    base: Path, *, sequences: int, context_tokens: int, adapters: Sequence[Path] = ()
) -> AbstractContextManager[Peer]:
    """Without `adapters` it serves the base; with them, each request must name one."""
    settings = {
        "base": str(base.resolve()),
        "adapters": [str(adapter) for adapter in adapters],
        "threads": cores(),
        "sequences": sequences,
        "context_tokens": context_tokens,
        "cache": str(GGUF),
    }
    return _worker("llamacpp", settings, {})


def engine(base: Path, *, sequences: int) -> AbstractContextManager[Peer]:
    """Our own engine, called without gRPC and in the process that asks."""
    settings = {"base": str(base.resolve()), "threads": cores(), "sequences": sequences}
    return _worker("engine", settings, {"HF_HUB_OFFLINE": "1"})


def _worker(
    name: str, settings: Mapping[str, object], environment: Mapping[str, str]
) -> AbstractContextManager[Peer]:
    python = sys.executable if name == "engine" else str(HOME / name / "bin/python")
    command = [python, "-m", f"benchmarks.peers.{name}_worker"]
    return running(name, command, settings, environment, LOGS / f"{name}.log")


def _preloads() -> list[Path]:
    """The allocator and the OpenMP that vLLM's documentation wants preloaded, where they are."""
    found = sorted((HOME / "vllm/lib").glob("libiomp5.so"))
    found += sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))
    return [path.resolve() for path in found]
