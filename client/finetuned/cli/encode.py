"""What `finetuned predict --task` answers where no text is generated: vectors, labels, tags."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias, cast

import typer

from finetuned import Client, Image, TextPair
from finetuned.cli.output import json_text, to_json
from finetuned.errors import InvalidField
from finetuned.values.replies import Answers

EncodeTask: TypeAlias = Literal["classify", "tag", "embed"]
INPUTS_A_CALL = 64
_MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
}


def read_image(path: Path) -> Image:
    """An image file as an input.

    Raises:
        typer.BadParameter: its name does not say which type it is.
    """
    media_type = _MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise typer.BadParameter(f"{path.name}: expected {', '.join(_MEDIA_TYPES)}", param_hint="--image")
    return Image(path.read_bytes(), media_type)


def read_texts(path: Path) -> Iterator[str | TextPair]:
    """The texts of JSON lines with "text", or "text" and "text_pair".

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
            row = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
            text, pair = row.get("text"), row.get("text_pair")
            if not isinstance(text, str) or not isinstance(pair, str | None):
                raise typer.BadParameter(f'line {number} holds no {{"text": "..."}}', param_hint="--file")
            yield text if pair is None else TextPair(text, pair)


def write_answers(
    client: Client,
    task: EncodeTask,
    inputs: Sequence[str | Image | TextPair],
    adapter: str | None,
    lines: TextIO,
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
    client: Client, task: EncodeTask, inputs: Sequence[str | Image | TextPair], adapter: str | None
) -> Answers[Any]:
    single = [item for item in inputs if not isinstance(item, TextPair)]
    if task != "classify" and len(single) < len(inputs):
        raise InvalidField.one("inputs", f"has pairs of texts; only classify takes them, not {task}")
    if task == "embed":
        return client.embed(single, adapter=adapter, plain_base=adapter is None)
    if adapter is None:
        raise InvalidField.one(
            "model", f"is the plain base, which has no labels; name an --adapter to {task} with"
        )
    if task == "classify":
        return client.classify(inputs, adapter=adapter)
    return client.tag_tokens([item for item in inputs if isinstance(item, str)], adapter=adapter)
