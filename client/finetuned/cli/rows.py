"""Rows of a file as requests, and their answers as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import typer

from finetuned import GenerateRequest, Message, Prompt, RawText, Reply, Role
from finetuned.cli.generation import Sampling, check_model
from finetuned.cli.output import error_json, to_json
from finetuned.errors import FinetunedError


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A line of the input: its number, what to ask, and the right answer if it is known."""

    number: int
    request: GenerateRequest
    expected: str | None

    def result(self, answer: Reply | FinetunedError) -> dict[str, Any]:
        """The line of the output."""
        if isinstance(answer, FinetunedError):
            return {"line": self.number, **error_json(answer)}
        line: dict[str, Any] = {
            "line": self.number,
            "text": answer.text,
            "served_by": to_json(answer.served_by),
            "finish_reason": answer.finish_reason.value,
            "usage": to_json(answer.usage),
        }
        if len(answer.samples) > 1:
            line["samples"] = [sample.text for sample in answer.samples]
        if self.expected is not None:
            line |= {"expected": self.expected, "correct": self.is_correct(answer)}
        return line

    def is_correct(self, answer: Reply | FinetunedError) -> bool:
        """Whether the answer equals the expected one, but for white space around it."""
        return isinstance(answer, Reply) and answer.text.strip() == (self.expected or "").strip()


def read_rows(
    path: Path, system: str | None, adapter: str | None, sampling: Sampling, *, plain_base: bool, raw: bool
) -> Iterator[Row]:
    """The rows of a file; a row's own "adapter" goes before the one given.

    Raises:
        typer.BadParameter: a line is no such row.
    """
    with path.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, start=1):
            if text.strip():
                yield _row(number, text, system, adapter, sampling, plain_base=plain_base, raw=raw)


def _row(
    number: int,
    text: str,
    system: str | None,
    adapter: str | None,
    sampling: Sampling,
    *,
    plain_base: bool,
    raw: bool,
) -> Row:
    try:
        found: object = json.loads(text)
    except ValueError:
        found = None
    fields = cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}
    whom, expected = fields.get("adapter", adapter), fields.get("completion")
    if ("prompt" in fields) == ("messages" in fields):
        raise typer.BadParameter(
            f'line {number} holds no {{"prompt": "..."}} and no {{"messages": [...]}}', param_hint="--file"
        )
    if "adapter" not in fields:  # a row's own null asks for the plain base
        check_model(whom, plain_base=plain_base)
    prompt = prompt_of(fields, system, raw=raw)
    request = GenerateRequest(prompt, adapter=whom, plain_base=whom is None, **sampling)
    return Row(number, request, str(expected) if expected is not None else None)


def prompt_of(fields: Mapping[str, Any], system: str | None, *, raw: bool) -> Prompt:
    """The conversation of a row, with the system message before it; or its prompt as it stands.

    Raises:
        typer.BadParameter: a conversation is asked for as it stands.
    """
    if raw and (system or "messages" in fields):
        raise typer.BadParameter(
            "takes a prompt alone, without turns or a system message", param_hint="--raw"
        )
    if raw:
        return RawText(str(fields["prompt"]))
    if "messages" in fields:
        turns = [Message(str(turn["role"]), str(turn["content"])) for turn in fields["messages"]]
    else:
        turns = [Message(Role.USER, str(fields["prompt"]))]
    return [Message(Role.SYSTEM, system), *turns] if system else turns
