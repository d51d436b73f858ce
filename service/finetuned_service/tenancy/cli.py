"""`finetuned keys`: the API keys of a server, on its machine or in a file for a Kubernetes Secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from finetuned_service.errors import AlreadyExists, InvalidField, NotFound
from finetuned_service.names import check_id
from finetuned_service.settings import Settings
from finetuned_service.tenancy.caller import Role
from finetuned_service.tenancy.keys import MAX_KEYS, ApiKey, ApiKeys, new_key
from finetuned_service.tenancy.keys_file import KEYS_FILE, edit_keys, read_keys

app = typer.Typer(
    name="finetuned keys",
    help="API keys: each belongs to a tenant and has a role. Only hashes are kept; a key is shown once. A "
    "running server follows the file from the next call on; one that was started without a keys file takes "
    "it at its next start.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
DataDir = Annotated[
    Path | None,
    typer.Option(help="Data directory of the server.", show_default="as the server's settings say"),
]
File = Annotated[
    Path | None,
    typer.Option(
        help="File of the keys.",
        show_default=f"as the server's settings say: {KEYS_FILE} in the data directory",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document.")]
Days = Annotated[
    float | None, typer.Option(min=0.01, max=36_500, help="When the key expires; without it, never.")
]
KeyId = Annotated[str, typer.Argument(help="The part between the underscores; `list` shows it.")]
Tenant = Annotated[str, typer.Argument(help="Name of the tenant.")]


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose key it is.")],
    role: Annotated[
        Role, typer.Option(help="user: what is the tenant's; admin: any tenant, and what is shared.")
    ] = Role.USER,
    expires_in_days: Days = None,
    note: Annotated[str, typer.Option(help="Who uses it, at most 200 characters.")] = "",
    data_dir: DataDir = None,
    keys_file: File = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag
) -> None:
    """Make a key and show it, this once."""
    check_id(tenant, "tenant")
    if len(note) > 200:
        raise InvalidField.one("note", f"has {len(note)} characters; allowed: 200")
    now = datetime.now(UTC)
    text, key = new_key(tenant, role, now=now, expire_time=_after(now, expires_in_days), note=note)
    edit_keys(_path(data_dir, keys_file), lambda keys: _with(keys, key))
    _show(text, key, as_json=as_json)


@app.command("list")
def list_keys(
    data_dir: DataDir = None,
    keys_file: File = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag
) -> None:
    """Show the keys, without what would let anybody in."""
    keys = read_keys(_path(data_dir, keys_file))
    rows = [(key, _state(keys, key)) for key in keys.keys]
    if as_json:
        shown = [{**key.model_dump(mode="json", exclude={"sha256"}), "state": state} for key, state in rows]
        typer.echo(json.dumps(shown))
        return
    table = Table("key", "tenant", "role", "state", "created", "expires", "note")
    for key, state in rows:
        created, expires = (_day(time) for time in (key.create_time, key.expire_time))
        table.add_row(key.id, key.tenant, key.role, state, created, expires, key.note)
    Console().print(table)


@app.command()
def revoke(key_id: KeyId, data_dir: DataDir = None, keys_file: File = None) -> None:
    """Remove a key: its next call is refused; calls that run go on to their end."""
    edit_keys(_path(data_dir, keys_file), lambda keys: _without(keys, _found(keys, key_id)))
    typer.echo(f"revoked {key_id}", err=True)


@app.command()
def rotate(
    key_id: KeyId,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=8760, help="How long the old key works beside the new one.")
    ] = 24.0,
    expires_in_days: Days = None,
    data_dir: DataDir = None,
    keys_file: File = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag
) -> None:
    """Make a key like another, show it, and let the other expire."""
    now = datetime.now(UTC)
    made: list[tuple[str, ApiKey]] = []

    def change(keys: ApiKeys) -> ApiKeys:
        old = _found(keys, key_id)
        made.append(
            new_key(old.tenant, old.role, now=now, expire_time=_after(now, expires_in_days), note=old.note)
        )
        overlap = now + timedelta(hours=overlap_hours)
        end = overlap if old.expire_time is None else min(old.expire_time, overlap)
        left = _without(keys, old)
        return _with(_with(left, old.model_copy(update={"expire_time": end})), made[0][1])

    edit_keys(_path(data_dir, keys_file), change)
    typer.echo(f"{key_id} expires in {overlap_hours:g} hours at the latest", err=True)
    _show(*made[0], as_json=as_json)


@app.command("delete-tenant")
def delete_tenant(tenant: Tenant, data_dir: DataDir = None, keys_file: File = None) -> None:
    """Refuse all keys of a tenant, also ones made later by mistake; what it stored stays until it is deleted."""
    check_id(tenant, "tenant")
    now = datetime.now(UTC)
    _edit_tenants(_path(data_dir, keys_file), lambda deleted: {tenant: now, **deleted})
    typer.echo(f"deleted {tenant}; an admin's key still reaches what it stored", err=True)


@app.command("restore-tenant")
def restore_tenant(tenant: Tenant, data_dir: DataDir = None, keys_file: File = None) -> None:
    """Accept a deleted tenant's keys again."""

    def change(deleted: dict[str, datetime]) -> dict[str, datetime]:
        if tenant not in deleted:
            raise NotFound(f"the tenant {tenant!r} is not deleted; nothing was changed")
        return {name: time for name, time in deleted.items() if name != tenant}

    _edit_tenants(_path(data_dir, keys_file), change)
    typer.echo(f"restored {tenant}", err=True)


def _edit_tenants(path: Path, change: Callable[[dict[str, datetime]], dict[str, datetime]]) -> None:
    edit_keys(
        path,
        lambda keys: ApiKeys(keys=keys.keys, deleted_tenants=change(dict(keys.deleted_tenants))),
    )


def _path(data_dir: Path | None, keys_file: Path | None) -> Path:
    settings = Settings.under(data_dir=data_dir, keys_file=keys_file)
    if settings.keys_file is None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    return settings.keys_file or settings.data_dir / KEYS_FILE


def _with(keys: ApiKeys, key: ApiKey) -> ApiKeys:
    if key.tenant in keys.deleted_tenants:
        raise AlreadyExists(
            f"the tenant {key.tenant!r} was deleted, and what it stored may still be there; choose another name, "
            f"or run 'finetuned keys restore-tenant {key.tenant}'"
        )
    if len(keys.keys) >= MAX_KEYS:
        raise InvalidField.one("keys", f"are {MAX_KEYS}, the most allowed; revoke those that are not used")
    # Validated anew: an id that is there already, by a chance of 2⁻⁴⁰, is refused instead of written.
    return ApiKeys(keys=(*keys.keys, key), deleted_tenants=keys.deleted_tenants)


def _without(keys: ApiKeys, key: ApiKey) -> ApiKeys:
    return ApiKeys(keys=tuple(k for k in keys.keys if k != key), deleted_tenants=keys.deleted_tenants)


def _found(keys: ApiKeys, key_id: str) -> ApiKey:
    key = keys.find(key_id)
    if key is None:
        raise NotFound(f"there is no key {key_id!r}; 'finetuned keys list' shows those that are there")
    return key


def _after(now: datetime, days: float | None) -> datetime | None:
    return None if days is None else now + timedelta(days=days)


def _state(keys: ApiKeys, key: ApiKey) -> str:
    if key.tenant in keys.deleted_tenants:
        return "tenant deleted"
    return "expired" if key.expired(datetime.now(UTC)) else "active"


def _day(time: datetime | None) -> str:
    return "never" if time is None else time.strftime("%Y-%m-%d %H:%M")


def _show(text: str, key: ApiKey, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"key": text, **key.model_dump(mode="json", exclude={"sha256"})}))
        return
    typer.echo(text)
    typer.echo(
        f"This is the key of {key.tenant} ({key.role}), shown once; clients take it as FINETUNED_API_KEY.",
        err=True,
    )
