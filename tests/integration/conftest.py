"""The native path, compiled once for all tests of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetuned_service.engine.native.build import library_path
from finetuned_service.engine.native.library import Library
from finetuned_service.engine.native.model import NativeModel
from native_builds import BUILDS


@pytest.fixture(scope="session", params=list(BUILDS))
def library_file(request, tmp_path_factory) -> Path:
    """In each way that it can be compiled here, and run."""
    path = library_path(str(tmp_path_factory.mktemp("cache")), extra_flags=BUILDS[request.param])
    if not Library(path).may_multiply:
        pytest.skip("the system does not let this process use the processor's matrix unit")
    return path


@pytest.fixture(scope="session")
def library(library_file) -> Library:
    return Library(library_file)


@pytest.fixture(scope="module")
def model(base, library):
    """The test module's base on the native path; a module on another path has a `model` of its own."""
    return NativeModel.load(base, library)
