"""The README's commands exist, its Python runs against the fake server, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from finetuned.testing import FakeServer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def command_lines() -> list[list[str]]:
    """Commands of all shell blocks, without their comments."""
    lines = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_make_targets_exist() -> None:
    asked = {words[1] for words in command_lines() if words[0] == "make"}
    assert {"demo", "test", "serve"} <= asked
    assert asked <= MAKE_TARGETS


def test_finetuned_commands_and_options_exist() -> None:
    from finetuned.cli.app import app

    checked = 0
    for words in command_lines():
        if Path(words[0]).name != "finetuned":
            continue
        command: Any = typer.main.get_command(app)
        rest = words[1:]
        # Only groups have commands; which click typer is built on is its own affair.
        while (commands := getattr(command, "commands", {})) and rest and not rest[0].startswith("-"):
            assert rest[0] in commands, f"finetuned has no command {' '.join(words[1:])}"
            command = commands[rest.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        if not command.context_settings.get("ignore_unknown_options"):
            assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, words
        checked += 1
    assert checked > 3


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    monkeypatch.chdir(tmp_path)
    with FakeServer() as server:
        monkeypatch.setenv("FINETUNED_ENDPOINT", server.endpoint)
        exec(compile(block, "README.md", "exec"), {})


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert targets
    for target in targets:
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
