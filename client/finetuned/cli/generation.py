"""The options of commands that ask for text."""

from __future__ import annotations

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


class Sampling(TypedDict):
    """What of `GenerateRequest` the options set."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    stop: tuple[str, ...]


def check_model(adapter: str | None, *, plain_base: bool) -> None:
    """Raises typer.BadParameter unless exactly one is given."""
    if (adapter is not None) == plain_base:
        found = "both are given" if plain_base else "neither is given"
        raise typer.BadParameter(
            f"{found}; one of them says who answers", param_hint="--adapter, --plain-base"
        )
