"""The products of the native path, alone: random shapes, in each way that they can be compiled here."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from finetuned_service.engine.native.build import library_path
from native_builds import BUILDS

SOURCE = Path(__file__).resolve().parents[1] / "native" / "products.cpp"


@pytest.mark.parametrize("build", BUILDS)
# Where nothing is inlined a compiler once left most of the tiles' shape unwritten.
@pytest.mark.parametrize("flags", [(), ("-fno-inline",)], ids=["inlined", "not-inlined"])
def test_a_row_is_computed_alone_as_in_company(build, flags, tmp_path):
    library = ctypes.CDLL(
        str(library_path(str(tmp_path), source=SOURCE, extra_flags=(*BUILDS[build], *flags)))
    )
    assert library.wrong_products(0, 2000) == 0
