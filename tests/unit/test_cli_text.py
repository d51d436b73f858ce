"""`finetuned chat` and `finetuned predict` against the fake server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from both_clients import open_client, write_rows
from finetuned.cli.app import app
from finetuned.cli.exit_codes import ExitCode
from finetuned.testing import FakeServer
from typer.testing import CliRunner, Result

Run = Callable[..., Result]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    """With an adapter "mine"."""
    with FakeServer() as running, open_client("sync", running.endpoint, tenant="default") as client:
        client.datasets.upload(write_rows(tmp_path / "rows.jsonl"))
        client.jobs.wait(client.train(dataset="rows", adapter="mine").name).check()
        yield running


@pytest.fixture
def run(server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("FINETUNED_ENDPOINT", server.endpoint)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, expected: int = 0, typed: str | None = None) -> Result:
        result = CliRunner().invoke(app, list(arguments), input=typed)
        assert result.exit_code == expected, result.output
        return result

    return invoke


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_predict_streams_a_reply(run: Run) -> None:
    result = run("predict", "hello you", "--adapter", "mine")
    assert result.stdout == "[mine@1] hello you\n"
    assert "mine@1, 3 tokens" in result.stderr


def test_predict_as_json(run: Run, server: FakeServer) -> None:
    result = run(
        *[
            "predict",
            "hello",
            "--plain-base",
            "--json",
            "--system",
            "Be.",
            "--max-tokens",
            "5",
            "--temperature",
            "0.5",
            "--top-k",
            "3",
        ],
        *["--top-p", "0.9", "--seed", "1", "--stop", "x", "--stop", "y"],
    )
    reply = json.loads(result.stdout)
    assert reply["text"] == "hello"
    assert reply["served_by"]["base"] == "bases/fake"
    [[request]] = server.requests("ServeAdapter")
    assert [turn.parts[0].text for turn in request.inputs[0].conversation.messages] == ["Be.", "hello"]
    sent = request.generate
    assert (sent.max_tokens, sent.temperature, sent.top_k, sent.top_p, sent.seed) == (5, 0.5, 3, 0.9, 1)
    assert list(sent.stop) == ["x", "y"]


def test_predict_needs_to_know_what_and_whom(run: Run) -> None:
    assert "PROMPT, --file" in run("predict", "--plain-base", expected=ExitCode.USAGE).stderr
    assert "neither is given" in run("predict", "x", expected=ExitCode.USAGE).stderr
    result = run("predict", "x", "-a", "mine", "--plain-base", expected=ExitCode.USAGE)
    assert "both are given" in result.stderr
    run("predict", "x", "-a", "none", expected=ExitCode.NOT_FOUND)


def test_predict_a_file_in_batches_and_score_it(run: Run, server: FakeServer) -> None:
    rows = [
        {"prompt": "a", "completion": "[mine@1] a "},
        {"prompt": "b", "completion": "wrong"},
        {"messages": [{"role": "user", "content": "c"}]},
        {"prompt": "d", "adapter": "mine@1"},
        {"prompt": "e", "adapter": None},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    result = run("predict", "-f", "in.jsonl", "-a", "mine", "--batch", "2")
    answers = lines(result.stdout)
    assert [item["line"] for item in answers] == [1, 2, 3, 4, 5]
    assert [item["text"] for item in answers] == ["[mine@1] a", "[mine@1] b", "[mine@1] c", "[mine@1] d", "e"]
    assert [item.get("correct") for item in answers] == [True, False, None, None, None]
    assert "1 of 2 right (50.0%)" in result.stderr
    assert server.calls("BatchServeAdapter") == 3


def test_predict_a_file_into_a_file(run: Run) -> None:
    Path("in.jsonl").write_text('{"prompt": "a"}\n')
    result = run("predict", "-f", "in.jsonl", "--plain-base", "-o", "out.jsonl")
    assert result.stdout == ""
    assert lines(Path("out.jsonl").read_text())[0]["text"] == "a"


def test_predict_tells_which_rows_were_refused(run: Run) -> None:
    Path("in.jsonl").write_text('{"prompt": "a", "adapter": "none"}\n{"prompt": "b"}\n')
    result = run("predict", "-f", "in.jsonl", "-a", "mine", expected=ExitCode.OTHER)
    refused, answered = lines(result.stdout)
    assert refused["error"]["reason"] == "RESOURCE_NOT_FOUND"
    assert answered["text"] == "[mine@1] b"
    assert "1 of 2 rows were refused" in result.stderr


@pytest.mark.parametrize("row", ["[1]", "not json", '{"text": "a"}', '{"prompt": "a", "messages": []}'])
def test_predict_a_file_of_something_else(run: Run, server: FakeServer, row: str) -> None:
    Path("in.jsonl").write_text(f'{{"prompt": "a"}}\n{row}\n')
    assert "line 2" in run("predict", "-f", "in.jsonl", "-a", "mine", expected=ExitCode.USAGE).stderr
    assert server.calls("BatchServeAdapter") == 0


def test_predict_a_file_without_a_model(run: Run) -> None:
    Path("in.jsonl").write_text('{"prompt": "a"}\n')
    run("predict", "-f", "in.jsonl", expected=ExitCode.USAGE)
    run("predict", "-f", "in.jsonl", "-a", "mine", "--plain-base", expected=ExitCode.USAGE)


def test_chat_keeps_the_conversation(run: Run, server: FakeServer) -> None:
    typed = "hello\n\nagain\n/base\nplain\n/reset\n/adapter mine@1\nnew\n/what\n/quit\nnever\n"
    result = run("chat", "-a", "mine", "--system", "Be brief.", typed=typed)
    assert result.stdout.splitlines() == ["[mine@1] hello", "[mine@1] again", "plain", "[mine@1] new"]
    assert "mine@1, 2 tokens" in result.stderr
    assert "/adapter NAME" in result.stderr  # for /what
    sent = [messages[0].inputs[0].conversation.messages for messages in server.requests("ServeAdapter")]
    assert [len(turns) for turns in sent] == [2, 4, 6, 2]
    assert [turn.parts[0].text for turn in sent[1]] == ["Be brief.", "hello", "[mine@1] hello", "again"]


def test_chat_as_json_lines(run: Run) -> None:
    replies = lines(run("chat", "--plain-base", "--json", typed="a\nb\n").stdout)
    assert [item["text"] for item in replies] == ["a", "b"]


def test_chat_without_a_terminal_ends_with_the_first_refusal(run: Run) -> None:
    result = run("chat", "-a", "none", typed="a\nb\n", expected=ExitCode.NOT_FOUND)
    assert "tenants/default/adapters/none" in result.stderr
    run("chat", expected=ExitCode.USAGE)
