"""`finetuned base list` and `add`, from the command line down to the data directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetuned.cli.app import app
from finetuned_service.__main__ import main
from finetuned_service.bases.manifest import compute_digest
from finetuned_service.bases.packaged import PACKAGED_BASES
from tiny_models import save_tiny_base
from tiny_tokenizers import write_tokenizer
from typer.testing import CliRunner, Result

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`finetuned base …` on the data directory `data` of an empty directory."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("FINETUNED_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, expected: int = 0) -> Result:
        result = CliRunner().invoke(app, ["base", *arguments])
        assert result.exit_code == expected, result.output
        return result

    return invoke


@pytest.fixture
def source(run: Run) -> Path:
    """A directory with a model as transformers saves it."""
    write_tokenizer(Path("My_Model"))
    return save_tiny_base(Path("My_Model"))


def listed(run: Run) -> list[dict[str, Any]]:
    return json.loads(run("list", "--json").stdout)


def rows(result: Result) -> list[list[str]]:
    """The cells of a table, without its head."""
    lines = [line for line in result.stdout.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_packaged_bases_are_listed_with_the_command_that_adds_them(run: Run) -> None:
    result = run("list")
    assert rows(result) == [
        [name, "", "", "", "", f"packaged: finetuned base add {name} ({packaged.requirement})"]
        for name, packaged in PACKAGED_BASES.items()
    ]
    assert listed(run) == []
    assert list(Path().iterdir()) == []


def test_an_added_directory_is_listed(run: Run, source: Path) -> None:
    added = run("add", str(source))
    stored = Path("data/bases/my-model")
    digest = compute_digest(stored)
    assert added.stdout == f"bases/my-model {digest}\n"
    assert "100%" in added.stderr
    (found,) = listed(run)
    assert found == json.loads((stored / "base.json").read_text())
    assert (found["name"], found["digest"], found["weight_format"]) == ("bases/my-model", digest, "FP32")
    first, *packaged = rows(run("list"))
    megabytes = f"{found['weight_bytes'] / 1e6:,.0f} MB"
    assert first == [
        "bases/my-model",
        "FP32",
        f"{found['parameters']:,}",
        megabytes,
        digest[:19],
        found["source"],
    ]
    assert [row[0] for row in packaged] == list(PACKAGED_BASES)


def test_a_base_may_have_a_name_and_must_have_the_digest_that_is_asked_for(run: Run, source: Path) -> None:
    added = json.loads(run("add", str(source), "--name", "mine", "--json").stdout)
    assert [base["name"] for base in listed(run)] == [added["name"]] == ["bases/mine"]
    digest = added["digest"]
    again = run("add", str(source), "--name", "mine", "--digest", digest)
    assert again.stdout == f"bases/mine {digest}\n"
    other = "sha256:" + "0" * 64
    refused = run("add", str(source), "--name", "mine", "--digest", other, expected=1)
    assert f"bases/mine exists with the digest {digest}; expected {other}" in refused.stderr
    assert run("add", str(source), "--name", "other", "--digest", other, expected=1).stdout == ""
    assert [base["name"] for base in listed(run)] == ["bases/mine"]


def test_a_packaged_base_that_is_there_is_no_longer_offered(run: Run, source: Path) -> None:
    name = next(iter(PACKAGED_BASES))
    run("add", str(source), "--name", name)
    named = [row[0] for row in rows(run("list"))]
    assert named == [f"bases/{name}", *(other for other in PACKAGED_BASES if other != name)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("nowhere",),
            "source: 'nowhere' does not exist; expected a directory with config.json and safetensors",
        ),
        (("empty",), "source: it has no model*.safetensors; on a machine where you trust them"),
        (("smollm2",), "source: 'smollm2' does not exist; expected a directory"),
        (("packaged:smollm2",), "no packaged base is called 'smollm2'; packaged: all-minilm-l6-v2"),
        (("empty", "--name", "Not a name"), "name"),
        (("empty", "--digest", "sha256:12"), "digest: is 'sha256:12'; expected 'sha256:' and 64 digits"),
    ],
)
def test_what_cannot_be_added_is_told_and_leaves_no_base(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    Path("empty").mkdir()
    refused = run("add", *arguments, expected=1)
    assert said in refused.stderr
    assert "finetuned: " in refused.stderr
    assert refused.stdout == ""
    assert listed(run) == []


def test_a_wrong_option_is_a_mistake_in_the_command(run: Run) -> None:
    assert "--bogus" in run("list", "--bogus", expected=2).output


@pytest.mark.parametrize("command", ["base list", "keys list", "gc"])
def test_the_service_itself_tells_a_wrong_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--bogus"]) == 2
    told = capsys.readouterr().err
    assert "--bogus" in told
    assert f"finetuned {command}" in told
