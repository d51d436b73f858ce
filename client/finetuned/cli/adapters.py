"""`finetuned adapters`: what there is, files in and out, where the weights are; aliases in `aliases.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from finetuned import Adapter, AdapterVersion, Residency
from finetuned._names import short
from finetuned.cli import aliases
from finetuned.cli.output import err, metrics, print_facts, print_json, print_table, size
from finetuned.cli.session import AsJson, Yes, connect

app = typer.Typer(help="Adapters: named, versioned task weights, and their aliases.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The adapter's name.")]
Like = Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME@VERSION.")]


@app.command("list")
def list_all(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the adapters."""
    with connect(context) as client:
        found = list(client.adapters.list())
    if as_json:
        print_json(found)
        return
    rows = [
        [short(one.name), one.version_count, short(one.latest_version), _aliases(one), one.state.lower()]
        for one in found
    ]
    print_table(
        "Adapters",
        ["name", "versions", "latest", "aliases", "default is"],
        rows,
        empty="No adapters yet. Next: finetuned train --dataset NAME --adapter NAME",
    )
    for one in found:
        if one.incompatible_reason:
            err().print(f"[dim]{short(one.name)} cannot be served: {escape(one.incompatible_reason)}[/dim]")


def _aliases(adapter: Adapter) -> str:
    return ", ".join(
        f"{alias.name.rpartition('/')[2]} -> {short(alias.version)}" for alias in adapter.aliases
    )


@app.command()
def versions(context: typer.Context, name: Name, *, as_json: AsJson = False) -> None:
    """List the versions of an adapter, newest first."""
    with connect(context) as client:
        found = list(client.adapters.versions(name))
        bases = {} if as_json else {base.digest: short(base.name) for base in client.bases.list()}
    if as_json:
        print_json(found)
        return
    print_table(
        f"Versions of {short(name)}",
        ["name", "base", "state", "method", "rank", "figures", "size", "where", "created", "kept until"],
        [
            [
                short(one.name),
                bases.get(one.base_digest, one.base_digest[:19]),
                one.state.lower(),
                one.method,
                one.rank,
                metrics(one.metrics),
                size(one.size_bytes),
                _where(one),
                one.create_time,
                one.expire_time,
            ]
            for one in found
        ],
    )


def _where(version: AdapterVersion) -> str:
    found = {f"{item.residency.lower()}{', pinned' if item.pinned else ''}" for item in version.residency}
    return "; ".join(sorted(found))


@app.command()
def get(context: typer.Context, name: Like, *, as_json: AsJson = False) -> None:
    """Show the version that a name means."""
    with connect(context) as client:
        _show(client.adapters.version(name), as_json=as_json)


def _show(version: AdapterVersion, *, as_json: bool) -> None:
    if as_json:
        print_json(version)
        return
    print_facts(
        short(version.name),
        {
            "method": version.method,
            "task": version.task,
            "rank": version.rank or None,
            "figures": metrics(version.metrics),
            "parameters": version.parameters,
            "modules": version.modules,
            "size": size(version.size_bytes),
            "digest": version.digest,
            "base": version.base_digest if version.base_verified else "not verified",
            "served here": "yes" if version.compatible else f"no: {version.incompatible_reason}",
            "where": _where(version),
            "job": short(version.lineage.job),
            "dataset": short(version.lineage.dataset),
            "source": version.lineage.source,
            "created": version.create_time,
            "kept until": version.expire_time,
        },
    )


@app.command("import")
def import_directory(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Files in PEFT's layout.")],
    name: Name,
    *,
    expected_base_digest: Annotated[
        str | None, typer.Option(help="The base it was trained on.", show_default="what manifest.json says")
    ] = None,
    accept_unverified_base: Annotated[
        bool, typer.Option("--accept-unverified-base", help="Take it although its base is not known.")
    ] = False,
    source: Annotated[str, typer.Option(help="Where it came from, for the record.")] = "",
    as_json: AsJson = False,
) -> None:
    """Store files in PEFT's layout as the next version of an adapter."""
    with connect(context) as client:
        version = client.adapters.import_directory(
            directory,
            name,
            expected_base_digest=expected_base_digest,
            accept_unverified_base=accept_unverified_base,
            source=source,
        )
    _show(version, as_json=as_json)


@app.command()
def export(
    context: typer.Context,
    name: Like,
    directory: Annotated[Path, typer.Argument(file_okay=False, help="A new or empty directory.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Write a version's files in PEFT's layout."""
    with connect(context) as client:
        exported = client.adapters.export(name, directory)
    if as_json:
        print_json(exported)
    else:
        err().print(f"wrote {', '.join(exported.files)} of {short(exported.version)} to {exported.directory}")


@app.command()
def load(
    context: typer.Context,
    name: Like,
    *,
    residency: Annotated[
        Literal["HOST", "DEVICE"], typer.Option(case_sensitive=False, help="How near to the next request.")
    ] = "DEVICE",
    pin: Annotated[bool, typer.Option("--pin", help="Keep the weights until unload.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a version's weights to memory before the first request needs them."""
    with connect(context) as client:
        _show(client.adapters.load(name, residency=Residency(residency), pin=pin), as_json=as_json)


@app.command()
def unload(
    context: typer.Context,
    name: Like,
    *,
    residency: Annotated[
        Literal["STORED", "HOST"],
        typer.Option(case_sensitive=False, help="Where the weights stay; HOST frees the device only."),
    ] = "STORED",
    as_json: AsJson = False,
) -> None:
    """Remove a version's pin, and free its memory when no request needs it."""
    with connect(context) as client:
        _show(client.adapters.unload(name, residency=Residency(residency)), as_json=as_json)


@app.command()
def residency(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the versions that are in the server's memory."""
    with connect(context) as client:
        found = list(client.adapters.resident())
    if as_json:
        print_json(found)
        return
    print_table(
        "In memory",
        ["name", "replica", "where", "pinned", "running", "memory"],
        [
            [
                short(one.name),
                place.replica,
                place.residency.lower(),
                "yes" if place.pinned else "",
                place.running_requests,
                size(place.resident_bytes),
            ]
            for one in found
            for place in one.residency
        ],
        empty="No adapter is in memory. Next: finetuned adapters load NAME",
    )


@app.command()
def delete(context: typer.Context, name: Like, *, yes: Yes = False) -> None:
    """Delete a version (NAME@VERSION), or an adapter with all versions and aliases (NAME)."""
    whole = "@" not in name and "/versions/" not in name
    if not yes:
        what = "the adapter with all its versions" if whole else "the version"
        typer.confirm(f"Delete {what} {name}?", abort=True, err=True)
    with connect(context) as client:
        if whole:
            client.adapters.delete(name)
        else:
            client.adapters.delete_version(name)
    err().print(f"deleted {name}")


app.command("aliases")(aliases.list_all)
app.command("set-alias")(aliases.set_alias)
app.command("rollback")(aliases.rollback)
app.command("delete-alias")(aliases.delete_alias)
