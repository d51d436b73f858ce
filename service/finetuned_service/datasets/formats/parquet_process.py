"""Reads Parquet in a process of its own, with a bound on its memory: what a file makes of pyarrow stays there.

A small file can ask for gigabytes, and a damaged one can end the process that reads it. Records come as pickles on the
standard output of `python -m finetuned_service.datasets.formats.parquet_process`.
"""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from finetuned_service.datasets.formats.parquet import read_parquet
from finetuned_service.datasets.formats.record import Record, Records
from finetuned_service.datasets.limits import MIB, DataLimits
from finetuned_service.errors import InvalidData

_MODULE = "finetuned_service.datasets.formats.parquet_process"
_MEMORY_BYTES = 2048 * MIB
_MEMORY_OF_A_BYTE = 8
"""And for each byte of the file: pyarrow holds a column of a group of rows, its pages and its dictionary, more than once."""


def read_parquet_apart(source: Path, limits: DataLimits, columns: Mapping[str, str]) -> Records:
    """`read_parquet` in a process of its own.

    Raises:
        InvalidData: as `read_parquet`, or the file ends its reader: it is damaged, or takes too much memory.
    """
    with subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        try:
            with suppress(BrokenPipeError), process.stdin as asked:
                most_bytes = _MEMORY_BYTES + _MEMORY_OF_A_BYTE * source.stat().st_size
                pickle.dump((most_bytes, source, limits, dict(columns)), asked)
            while isinstance(found := pickle.load(process.stdout), Record):  # noqa: S301 - from our own process
                yield found
        except (EOFError, pickle.UnpicklingError) as error:
            raise InvalidData(
                f"the file ended its reader (exit code {process.wait()}): it is damaged, or takes too much memory; write "
                "it again, with fewer or shorter values in a row"
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
    """Of this process: at most so many addresses, the first to end where the machine has too little memory, no dump."""
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
