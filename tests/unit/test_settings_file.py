"""Where settings come from: the same order for every command of the server's machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetuned_service.__main__ import main
from finetuned_service.bases.catalog import BaseCatalog

KEYS = ["keys", "create", "--tenant", "acme"]
BASES = ["base", "list", "--json"]
SERVE = ["serve", "--listen-address", "none"]
"""Would be refused for its address if the file were passed over."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a settings file."""
    for name in ("FINETUNED_CONFIG", "FINETUNED_DATA_DIR", "FINETUNED_KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetuned.toml").write_text('data_dir = "of-file"\n')
    return tmp_path


def looked_at(monkeypatch: pytest.MonkeyPatch, *options: str) -> list[str]:
    """The directories in which `keys` writes and `base` looks."""
    looked: list[str] = []

    def remembering(catalog: BaseCatalog, directory: Path) -> None:
        looked.append(str(directory))
        initialize(catalog, directory)

    initialize = BaseCatalog.__init__
    with monkeypatch.context() as patch:
        patch.setattr(BaseCatalog, "__init__", remembering)
        assert main([*BASES, *options]) == 0
    assert main([*KEYS, *options]) == 0
    return [*looked, *sorted(str(path.parent) for path in Path().rglob("keys.json"))]


def test_options_go_before_the_environment_and_that_before_the_file(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert looked_at(monkeypatch) == ["of-file", "of-file"]
    monkeypatch.setenv("FINETUNED_DATA_DIR", "of-environment")
    assert looked_at(monkeypatch) == ["of-environment", "of-environment", "of-file"]
    found = looked_at(monkeypatch, "--data-dir", "given")
    assert found == ["given", "given", "of-environment", "of-file"]


def test_a_base_is_added_whatever_else_the_settings_say(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the server does whose flags make them right: `serve --base my-base` with a source in the file."""
    (place / "finetuned.toml").write_text('base_source = "/somewhere"\nunknown = 1\n')
    assert main([*BASES, "--data-dir", "given"]) == 0
    assert main(["base", "add", "--data-dir", "given", "--name", "my-base", "--", str(place / "absent")]) != 0
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["FINETUNED_KEYS_FILE", "FINETUNED_CACHE_DIR", "FINETUNED_CONFIG"])
def test_an_empty_variable_is_none(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    assert main(KEYS) == 0
    assert (place / "of-file" / "keys.json").is_file()


def test_a_file_may_be_a_device(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNED_CONFIG", "/dev/null")
    assert main([*KEYS, "--data-dir", "given"]) == 0


def test_keys_lie_where_the_server_looks_for_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "finetuned.toml").write_text('keys_file = "of-file.json"\n')
    assert main(KEYS) == 0
    monkeypatch.setenv("FINETUNED_KEYS_FILE", "of-environment.json")
    assert main(KEYS) == 0
    assert main([*KEYS, "--keys-file", "given.json"]) == 0
    for name in ("of-file.json", "of-environment.json", "given.json"):
        assert len(json.loads((place / name).read_text())["keys"]) == 1
    assert not (place / "data").exists()


@pytest.mark.parametrize(
    "command", [SERVE, ["worker"], ["health"], ["gc"], ["backup", "copy"], KEYS, BASES], ids=str
)
@pytest.mark.parametrize(
    ("named", "content", "told"),
    [
        ("absent/finetuned.toml", None, "FINETUNED_CONFIG names 'absent/finetuned.toml', which is no file"),
        (".", None, "FINETUNED_CONFIG names '.', which is no file"),
        ("", "data_dir = of-file\n", "finetuned.toml cannot be read as TOML: Invalid value"),
        ("other.toml", "\xff", "other.toml cannot be read as TOML"),
    ],
    ids=["absent", "directory", "no-toml", "no-text"],
)
def test_a_file_that_is_missing_or_damaged_is_refused(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    named: str,
    content: str | None,
    told: str,
) -> None:
    monkeypatch.setenv("FINETUNED_CONFIG", named)
    if content is not None:
        (place / (named or "finetuned.toml")).write_bytes(content.encode("latin-1"))
    before = sorted(place.iterdir())
    assert main(command) == 1
    assert told in capsys.readouterr().err
    assert sorted(place.iterdir()) == before
