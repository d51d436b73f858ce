"""The commands of `finetuned adapters` that read and move aliases."""

from __future__ import annotations

from typing import Annotated

import typer

from finetuned import Alias
from finetuned._names import short
from finetuned.cli.output import err, print_json, print_table
from finetuned.cli.session import AsJson, Yes, connect

Name = Annotated[str, typer.Argument(help="NAME@ALIAS; NAME alone means NAME@default.")]
Etag = Annotated[str, typer.Option(help="Move it only if it is still as it was when this was read.")]


def list_all(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    *,
    as_json: AsJson = False,
) -> None:
    """List the aliases of an adapter."""
    with connect(context) as client:
        found = list(client.adapters.aliases(name))
    if as_json:
        print_json(found)
        return
    print_table(
        f"Aliases of {short(name)}",
        ["name", "version", "before", "etag", "moved"],
        [
            [
                short(one.name),
                short(one.version),
                short(one.previous_version) if one.previous_version else None,
                one.etag,
                one.update_time,
            ]
            for one in found
        ],
    )


def set_alias(
    context: typer.Context,
    name: Name,
    version: Annotated[str, typer.Argument(help="A number, or NAME@VERSION.")],
    *,
    etag: Etag = "",
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version, atomically; it is made if it does not exist."""
    with connect(context) as client:
        _tell(client.adapters.set_alias(name, version, etag=etag), as_json=as_json)


def rollback(context: typer.Context, name: Name, *, etag: Etag = "", as_json: AsJson = False) -> None:
    """Point an alias at the version that it pointed to before."""
    with connect(context) as client:
        _tell(client.adapters.rollback(name, etag=etag), as_json=as_json)


def delete_alias(context: typer.Context, name: Name, *, yes: Yes = False) -> None:
    """Delete an alias; `default` stays as long as its adapter."""
    if not yes:
        typer.confirm(f"Delete the alias {name}?", abort=True, err=True)
    with connect(context) as client:
        client.adapters.delete_alias(name)
    err().print(f"deleted {name}")


def _tell(alias: Alias, *, as_json: bool) -> None:
    if as_json:
        print_json(alias)
        return
    before = f", was {short(alias.previous_version)}" if alias.previous_version else ""
    err().print(f"{short(alias.name)} -> {short(alias.version)}{before}")
