"""The options of commands that ask for text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypedDict

import typer

Adapter = Annotated[
    str | None, typer.Option("--adapter", "-a", help="NAME, NAME@ALIAS or NAME@VERSION.", show_default=False)
]
PlainBase = Annotated[bool, typer.Option("--plain-base", help="Ask the base without any adapter.")]
System = Annotated[str | None, typer.Option(help="The system message.", show_default=False)]
MaxTokens = Annotated[int | None, typer.Option(help="Longest reply; 256.", show_default=False)]
Temperature = Annotated[float | None, typer.Option(help="0 (greedy) to 10; 0.", show_default=False)]
TopK = Annotated[int | None, typer.Option(help="Only the k most likely tokens.", show_default=False)]
TopP = Annotated[float | None, typer.Option(help="Only the most likely tokens up to p.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Fixes the random choices.", show_default=False)]
Stop = Annotated[list[str] | None, typer.Option(help="Ends the reply (repeatable).", show_default=False)]


Samples = Annotated[
    int | None, typer.Option("--samples", "-n", help="Replies, 1 to 16; 1.", show_default=False)
]
MinTokens = Annotated[int | None, typer.Option(help="Shortest reply; 0.", show_default=False)]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(help="Above 0 to 10, against tokens of prompt and reply; 1.", show_default=False),
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="-2 to 2, against tokens of the reply; 0.", show_default=False)
]
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="-2 to 2, the more often they came; 0.", show_default=False)
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(metavar="ID=BIAS", help="Added to a token's logit (repeatable).", show_default=False),
]
JsonSchema = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="File: the reply is JSON of it.", show_default=False),
]
Regex = Annotated[str | None, typer.Option(help="The reply matches it.", show_default=False)]


class Sampling(TypedDict):
    """What of `GenerateRequest` the options set."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    stop: tuple[str, ...]
    n: int | None
    min_tokens: int | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    json_schema: str | None
    regex: str | None


def read_biases(options: list[str] | None) -> Mapping[int, float] | None:
    """Raises typer.BadParameter unless all are ID=BIAS, each id once."""
    biases: dict[int, float] = {}
    for option in options or ():
        token_id, _, bias = option.partition("=")
        try:
            if int(token_id) in biases:
                raise typer.BadParameter(f"{token_id} is there twice", param_hint="--logit-bias")
            biases[int(token_id)] = float(bias)
        except ValueError as error:
            raise typer.BadParameter(
                f"{option!r} is not of the form ID=BIAS, for example 42=-100", param_hint="--logit-bias"
            ) from error
    return biases or None


def read_schema(path: Path | None) -> str | None:
    return None if path is None else path.read_text(encoding="utf-8")


def check_model(adapter: str | None, *, plain_base: bool) -> None:
    """Raises typer.BadParameter unless exactly one is given."""
    if (adapter is not None) == plain_base:
        found = "both are given" if plain_base else "neither is given"
        raise typer.BadParameter(
            f"{found}; one of them says who answers", param_hint="--adapter, --plain-base"
        )
