"""What all tests share: no network, and the real packaged base, converted once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports huggingface_hub, which reads it once: a test that asks a hub must fail.
os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples at each run, and no deadline: how long one takes depends on who else uses the machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def smollm2_directory(request: pytest.FixtureRequest) -> Path:
    """The real SmolLM2-135M-Instruct in bfloat16, as the service stores it; read-only.

    Converted from its Python package by the first run that needs it and kept for later runs, in
    $FINETUNED_TEST_CACHE if that is set, else beside pytest's own cache.
    """
    from finetuned_service.bases.convert import convert_packaged

    configured = os.environ.get("FINETUNED_TEST_CACHE")
    if configured:
        cache = Path(configured)
    else:
        assert request.config.cache is not None
        cache = request.config.cache.mkdir("finetuned")
    directory = cache / "bases" / "smollm2-135m-instruct"
    convert_packaged("smollm2-135m-instruct", directory)
    return directory
