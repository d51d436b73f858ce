"""What all tests share: no network, and the real packaged base, converted once."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from on_device import DEVICE

# Before anything imports huggingface_hub, which reads it once: a test that asks a hub must fail.
os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples at each run, and no deadline: how long one takes depends on who else uses the machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _bases_on_the_device() -> Iterator[None]:
    """On another device than the CPU, engine and trainer load every base there; oracles stay where they are."""
    if DEVICE == "cpu":
        yield
        return
    from finetuned_service.bases.device import resolve_device
    from finetuned_service.bases.load import load_base
    from finetuned_service.engine import model as decoders
    from finetuned_service.engine.encoders import model as encoders
    from finetuned_service.training import model as trained

    device = resolve_device(DEVICE)

    @functools.wraps(load_base)
    def load_there(*args: object, **options: object) -> object:
        return load_base(*args, **{**options, "device": device})

    with pytest.MonkeyPatch.context() as patched:
        for module in (decoders, encoders, trained):
            patched.setattr(module, "load_base", load_there)
        yield


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
