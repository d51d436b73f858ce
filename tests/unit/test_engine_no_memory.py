"""What the engine says when the system gives it no memory, descriptors or threads for an adapter."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
import torch
from finetuned_service import digests
from finetuned_service.engine import lazy_pages
from finetuned_service.engine.adapter_files import AdapterReader
from finetuned_service.engine.lazy_pages import ReadyBlocks
from finetuned_service.engine.model import EngineModel
from finetuned_service.errors import FinetunedError, ResourceExhausted, Unavailable
from tiny_models import TinyAdapter, save_tiny_adapter, save_tiny_base

NO_MEMORY = r"gets no memory from the system for adapter sha256:.*lower adapter_host_bytes.*ulimit -v"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyAdapter:
    return save_tiny_adapter(tmp_path_factory.mktemp("adapter"), base, seed=1, rank=4)


@pytest.fixture(scope="module")
def reader(base: Path) -> AdapterReader:
    model = EngineModel.load(base)
    return AdapterReader(model.sites, model.geometry, model.dtype, model.linear_weight)


REFUSALS = [
    (OSError(errno.ENOMEM, "Cannot allocate memory"), ResourceExhausted, NO_MEMORY),
    (MemoryError(), ResourceExhausted, NO_MEMORY),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ResourceExhausted, NO_MEMORY),
    (RuntimeError("can't start new thread"), ResourceExhausted, NO_MEMORY),
    (
        torch.OutOfMemoryError("CUDA out of memory"),
        ResourceExhausted,
        r"the GPU has no memory left for adapter sha256:.*lower adapter_device_bytes",
    ),
    (
        OSError(errno.EMFILE, "Too many open files"),
        ResourceExhausted,
        r"no file descriptors \(ulimit -n\) left",
    ),
    (OSError(errno.EIO, "Input/output error"), Unavailable, r"cannot be read now; try again"),
]


@pytest.mark.parametrize(("found", "refusal", "message"), REFUSALS)
def test_reading_an_adapter_names_what_was_lacking_and_the_remedy(
    reader: AdapterReader,
    adapter: TinyAdapter,
    monkeypatch: pytest.MonkeyPatch,
    found: Exception,
    refusal: type[FinetunedError],
    message: str,
) -> None:
    def lacking(*_: object, **__: object) -> object:
        raise found

    with monkeypatch.context() as patch:
        patch.setattr(digests.mmap, "mmap", lacking)
        with pytest.raises(refusal, match=message):
            reader.read(adapter.handle)
    with pytest.raises(refusal, match=message), reader.open(adapter.handle):
        raise found  # by whoever makes something of the files
    assert reader.read(adapter.handle).modules > 0


def test_a_fault_of_ours_stays_one(reader: AdapterReader, adapter: TinyAdapter) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), reader.open(adapter.handle):
        raise RuntimeError("shapes differ")


def test_a_block_is_given_though_the_next_one_cannot_be_made_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object, **__: object) -> object:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(lazy_pages.threading.Thread, "start", no_thread)
        assert ReadyBlocks().take(4096).shape == (4096,)

    given = [lazy_pages.huge_page_bytes(4096)]

    def once(_size_bytes: int) -> object:
        if given:
            return given.pop()
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(lazy_pages, "huge_page_bytes", once)
    blocks = ReadyBlocks()
    assert blocks.take(4096).shape == (4096,)
    for thread in threading.enumerate():
        if thread.name == "pages":
            thread.join()
    with pytest.raises(OSError, match="Cannot allocate"):
        blocks.take(4096)
