"""Threads of the native decoder that the system does not give: refused with what would help, by a process that lives on."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from finetuned_service.engine.config import EngineConfig
from finetuned_service.errors import StartRefused
from tiny_models import save_tiny_base

STARVED = """
import resource, sys
from pathlib import Path
from finetuned_service.engine.native.library import Library

library = Library(Path(sys.argv[1]))
allowed = resource.getrlimit(resource.RLIMIT_AS)
pages = int(Path("/proc/self/statm").read_text().split()[0])
# Room for the stacks of some threads, and not of all.
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64 * 2**20, allowed[1]))
print(library.decoder_new(200))
resource.setrlimit(resource.RLIMIT_AS, allowed)
decoder = library.decoder_new(3)
print(bool(decoder), len(list(Path("/proc/self/task").iterdir())))
library.decoder_free(decoder)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("threads"), dtype=torch.bfloat16, head_dim=16)


def test_too_few_threads_are_told_and_those_that_came_have_ended(library_file):
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(library_file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["None", "True 3"]


def test_the_refusal_says_what_would_help(model, monkeypatch):
    monkeypatch.setattr(model.library, "decoder_new", lambda _threads: None)
    with pytest.raises(StartRefused, match=r"its 5 threads.*set threads lower, or allow .*ulimit -u"):
        model.open(EngineConfig("", threads=5))
