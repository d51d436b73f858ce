"""What a process writes on standard error: its own lines and those of libraries, in one form."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from finetuned_service.telemetry.logs import configure, logger
configure(sys.argv[1], "info")
logger("rpc").warning("own", count=3)
logging.getLogger("some.library").error("theirs %d", 7)
try:
    raise ValueError("lost")
except ValueError:
    logging.getLogger("some.library").exception("failed")
    logging.getLogger("grpc._cython.cygrpc").exception("ExecuteBatchError raised in core by servicer method [/a/B]")
    logging.getLogger("grpc._cython.cygrpc").exception("Unexpected [ValueError] raised by servicer method [/a/B]")
logging.getLogger("some.library").info("not shown")
"""


def written(log_format: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, log_format], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_every_line_is_json_where_that_is_asked_for() -> None:
    lines = [json.loads(line) for line in written("json")]
    assert [(line["level"], line["event"].partition(" [")[0]) for line in lines] == [
        ("warning", "own"),
        ("error", "theirs 7"),
        ("error", "failed"),
        ("info", "ExecuteBatchError raised in core by servicer method"),
        ("error", "Unexpected"),
    ]
    assert lines[0]["room"] == "rpc"
    assert lines[1]["logger"] == "some.library"
    assert "ValueError: lost" in lines[2]["exception"]
    assert "exception" not in lines[3], "a caller that hung up is no error of the server's"
    assert "ValueError: lost" in lines[4]["exception"]
    assert all(line["timestamp"].endswith("Z") for line in lines)


@pytest.mark.parametrize("said", ["own", "theirs 7", "failed", "ValueError: lost"])
def test_people_read_the_same(said: str) -> None:
    assert any(said in line for line in written("console"))
