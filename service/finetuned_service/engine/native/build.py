"""Compiles the decoder for this machine once, and keeps the library for every later start.

The library is called through ctypes: no header of Python or torch takes part, so it compiles in seconds and
holds no lock of the interpreter while it computes. Torch-free.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import structlog

from finetuned_service.storage.files import sync_directory

_log = structlog.get_logger()

SOURCES = Path(__file__).parent / "source"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
PORTABLE = "-DFINETUNED_PORTABLE"
"""Compile without intrinsics: what processors without AVX512-BF16 run."""
WITHOUT_TILES = "-DFINETUNED_WITHOUT_TILES"
"""Compile without AMX: what processors that have AVX512-BF16 alone run."""
_TIMEOUT_SECONDS = 300.0


class CannotCompile(Exception):
    """There is no library for this machine, and why."""


def find_compiler() -> str | None:
    """The one that CXX names, else g++ or clang++."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def library_path(
    cache_directory: str = "", *, source: Path = SOURCES / "decoder.cpp", extra_flags: tuple[str, ...] = ()
) -> Path:
    """The compiled decoder, or another source: from the cache, else compiled now (some ten seconds).

    Args:
        cache_directory: made if it does not exist; empty is `finetuned` in the user's cache directory.
        source: what is compiled; it may include what lies beside it and beside the decoder.
        extra_flags: for the compiler, beside FLAGS.

    Raises:
        CannotCompile: without a compiler, or if it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CannotCompile("there is no C++ compiler (g++ or clang++, or the one that CXX names)")
    flags = FLAGS + extra_flags
    path = _made(cache_directory) / f"{source.stem}-{_key(compiler, flags, source)}.so"
    if not path.exists():
        _compile(compiler, flags, source, path)
    return path


def _made(cache_directory: str) -> Path:
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(cache_directory) if cache_directory else user / "finetuned"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CannotCompile(f"the cache directory {directory} cannot be made: {error.strerror}") from error
    return directory


def _key(compiler: str, flags: tuple[str, ...], source: Path) -> str:
    """Changes with the sources, the compiler, and the processor that `-march=native` means."""
    digest = hashlib.sha256()
    for path in sorted({*SOURCES.iterdir(), *source.parent.iterdir()}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout  # noqa: S603 - as chosen above
    for part in (version, repr(flags).encode(), platform.machine().encode(), _processor()):
        digest.update(part + b"\0")
    return digest.hexdigest()[:16]


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return b"\n".join(
        next((x for x in lines if x.startswith(k)), b"") for k in (b"flags", b"model", b"Features")
    )


def _compile(compiler: str, flags: tuple[str, ...], source: Path, path: Path) -> None:
    """Compile beside `path` and rename, so that it is never half there."""
    _log.info("engine_compiling", compiler=compiler, note="once for this machine; some ten seconds")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made = Path(work) / path.name
        command = [compiler, *flags, f"-I{SOURCES}", str(source), "-o", str(made)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)  # noqa: S603 - our own source
        except (OSError, subprocess.SubprocessError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise CannotCompile(f"{compiler} failed: {said[0] if said else error}") from error
        made.rename(path)
        sync_directory(path.parent)
    _log.info("engine_compiled", seconds=round(time.monotonic() - began, 1), library=path.name)
