"""What `finetuned predict --task` answers where no text is generated: vectors, labels, tags."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias, cast

import typer

from finetuned import Client, Image
from finetuned.cli.output import json_text, to_json
from finetuned.errors import InvalidField
from finetuned.values.replies import Answers

EncodeTask: TypeAlias = Literal["classify", "tag", "embed"]
INPUTS_A_CALL = 64
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def read_image(path: Path) -> Image:
    """An image file as an input.

    Raises:
        typer.BadParameter: its name does not say which type it is.
    """
    media_type = _MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise typer.BadParameter(f"{path.name}: expected {', '.join(_MEDIA_TYPES)}", param_hint="--image")
    return Image(path.read_bytes(), media_type)


def read_texts(path: Path) -> Iterator[str]:
    """The texts of JSON lines with "text".

    Raises:
        typer.BadParameter: a line holds none.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                found: object = json.loads(line)
            except ValueError:
                found = None
            text = cast("dict[str, Any]", found).get("text") if isinstance(found, dict) else None
            if not isinstance(text, str):
                raise typer.BadParameter(f'line {number} holds no {{"text": "..."}}', param_hint="--file")
            yield text


def write_answers(
    client: Client, task: EncodeTask, inputs: Sequence[str | Image], adapter: str | None, lines: TextIO
) -> None:
    """One JSON line for each input, in their order."""
    for start in range(0, len(inputs), INPUTS_A_CALL):
        answers = _ask(client, task, inputs[start : start + INPUTS_A_CALL], adapter)
        lines.writelines(
            json_text({**to_json(answer), "served_by": answers.served_by.label}) + "\n"
            for answer in answers.items
        )
        lines.flush()


def _ask(
    client: Client, task: EncodeTask, inputs: Sequence[str | Image], adapter: str | None
) -> Answers[Any]:
    if task == "embed":
        return client.embed(inputs, adapter=adapter, plain_base=adapter is None)
    if adapter is None:
        raise InvalidField.one(
            "model", f"is the plain base, which has no labels; name an --adapter to {task} with"
        )
    if task == "classify":
        return client.classify(inputs, adapter=adapter)
    return client.tag_tokens([item for item in inputs if isinstance(item, str)], adapter=adapter)
