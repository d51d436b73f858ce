"""`finetuned quantize`: start a Quantize run and watch it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from finetuned.cli.jobs import follow
from finetuned.cli.session import AsJson, Detach, Priority, connect


def quantize(
    context: typer.Context,
    weight_format: Annotated[
        Literal["FP32", "FP16", "BF16", "INT8", "INT4", "NF4", "FP4"],
        typer.Argument(case_sensitive=False, help="The target; `finetuned info` lists them."),
    ],
    output: Annotated[str, typer.Argument(help="The new base's name.")],
    *,
    base: Annotated[str | None, typer.Option(help="The source.", show_default="the server's base")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Rows to measure on.", show_default="the built-in text")
    ] = None,
    max_quality_drop: Annotated[
        float | None, typer.Option(help="Fail if perplexity rises by more, for example 0.05.")
    ] = None,
    quantize_embeddings: Annotated[
        bool, typer.Option("--quantize-embeddings", help="The token embeddings too, for INT8.")
    ] = False,
    display_name: Annotated[str, typer.Option("--name", help="Your own name for the job.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check.")] = False,
    priority: Priority = "NORMAL",
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Compress a base into a new one, and show what that costs; the resident base is not touched."""
    with connect(context) as client:
        job = client.quantize(
            weight_format,
            output,
            base=base,
            dataset=dataset,
            max_quality_drop=max_quality_drop,
            quantize_embeddings=quantize_embeddings,
            display_name=display_name,
            validate_only=dry_run,
            priority=priority,
        )
        follow(client, job, as_json=as_json, detach=detach)
