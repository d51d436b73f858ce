"""The native path, compiled once for all tests of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetuned_service.engine.native.build import PORTABLE, library_path
from finetuned_service.engine.native.library import Library
from finetuned_service.engine.native.model import NativeModel


@pytest.fixture(scope="session", params=["native", "portable"])
def library_file(request, tmp_path_factory) -> Path:
    """For this machine's own instructions, and for any machine's."""
    flags = (PORTABLE,) if request.param == "portable" else ()
    return library_path(str(tmp_path_factory.mktemp("cache")), extra_flags=flags)


@pytest.fixture(scope="session")
def library(library_file) -> Library:
    return Library(library_file)


@pytest.fixture(scope="module")
def model(base, library):
    """The test module's base on the native path; a module on another path has a `model` of its own."""
    return NativeModel.load(base, library)
