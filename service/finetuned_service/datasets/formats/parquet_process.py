"""Reads Parquet in a process of its own, with a bound on its memory: what a file makes of pyarrow stays there.

A small file can ask for gigabytes, and a damaged one can end the process that reads it. Records come as pickles on the
standard output of `python -m finetuned_service.datasets.formats.parquet_process`.
"""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from finetuned_service.datasets.formats.parquet import read_parquet
from finetuned_service.datasets.formats.record import Record, Records
from finetuned_service.datasets.limits import MIB, DataLimits
from finetuned_service.errors import InvalidData, Unavailable

_BEGUN = True
"""What the reader says before its first record."""
_OF_OTHERS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM})
"""Signals that no file sends; SIGKILL is the kernel's, for the memory of the whole machine."""
_MODULE = "finetuned_service.datasets.formats.parquet_process"
_MEMORY_BYTES = 2048 * MIB
_MEMORY_OF_A_BYTE = 8
"""And for each byte of the file: pyarrow holds a column of a group of rows, its pages and its dictionary, more than once."""


def read_parquet_apart(source: Path, limits: DataLimits, columns: Mapping[str, str]) -> Records:
    """`read_parquet` in a process of its own.

    Raises:
        InvalidData: as `read_parquet`, or the file ends its reader: it is damaged, or takes too much memory.
        Unavailable: the reader could not begin, or somebody else ended it.
    """
    with subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Threads that its libraries start, one for each core of a large machine, would take the room of the file.
        env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        process_group=0,  # Ctrl-C is the server's, which lets what it reads end
    ) as process:
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        begun = False
        try:
            with suppress(BrokenPipeError), process.stdin as asked:
                most_bytes = _MEMORY_BYTES + _MEMORY_OF_A_BYTE * source.stat().st_size
                pickle.dump((most_bytes, source, limits, dict(columns)), asked)
            begun = pickle.load(process.stdout) is _BEGUN  # noqa: S301 - from our own process
            while isinstance(found := pickle.load(process.stdout), Record):  # noqa: S301 - from our own process
                yield found
        except (EOFError, pickle.UnpicklingError) as error:
            code = process.wait()
            if not begun or -code in _OF_OTHERS:
                raise Unavailable(
                    f"the process that reads Parquet ended (exit code {code}) and not by the file; try again",
                    retry_after_seconds=5.0,
                ) from error
            raise InvalidData(
                f"the file ended its reader (exit code {code}): it is damaged, or takes too much memory; write it again, "
                "with fewer or shorter values in a row"
            ) from error
        finally:
            process.kill()
    if isinstance(found, InvalidData):
        raise found
    if found is not None:
        raise RuntimeError(found)  # a fault of ours, with its traceback


def main() -> None:
    """Read what standard input asks for."""
    most_bytes, source, limits, columns = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own process
    _bound(most_bytes)
    pickle.dump(_BEGUN, sys.stdout.buffer)
    sys.stdout.buffer.flush()
    end: object = None
    try:
        for record in read_parquet(source, limits, columns):
            pickle.dump(record, sys.stdout.buffer)
    except InvalidData as error:
        end = error
    except Exception:  # noqa: BLE001 - told to who started this process
        end = traceback.format_exc()
    pickle.dump(end, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _bound(most_bytes: int) -> None:
    """Of this process: so many addresses more than its libraries have, the first to end where the machine has too little
    memory, no dump.
    """
    # Before the bound: what they take for themselves is not the file's.
    for name in ("numpy", "pyarrow.compute", "pyarrow.parquet"):
        importlib.import_module(name)
    import pyarrow as pa  # noqa: PLC0415 - the process that serves does not need it

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    held_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hardest = resource.getrlimit(resource.RLIMIT_AS)
    allowed = held_bytes + most_bytes
    allowed = allowed if hardest == resource.RLIM_INFINITY else min(allowed, hardest)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
