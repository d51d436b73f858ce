"""`finetuned gc`, `backup` and `restore`: a data directory, on the machine of the server."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table
from sqlalchemy.engine import make_url

from finetuned_service.errors import StartRefused
from finetuned_service.retention.backup import backup_directory
from finetuned_service.retention.backup_files import BackupManifest, Report
from finetuned_service.retention.collect import Collector
from finetuned_service.retention.garbage import Garbage, Kind
from finetuned_service.retention.policy import retention_of
from finetuned_service.retention.restore import restore_directory
from finetuned_service.settings import Settings
from finetuned_service.storage.database import Database
from finetuned_service.storage.directory import holding

app = typer.Typer(
    name="finetuned",
    help="What leaves a data directory, and copies of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
DataDir = Annotated[
    Path | None,
    typer.Option(help="Data directory of the server.", show_default="as the server's settings say"),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
Days = Annotated[float | None, typer.Option(show_default="as the server's settings say")]


@app.command()
def gc(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; change nothing.")] = False,
    data_dir: DataDir = None,
    job_retention_days: Days = None,
    job_event_retention_days: Days = None,
    version_retention_days: Days = None,
    upload_retention_days: Days = None,
    as_json: AsJson = False,
) -> None:
    """Remove what has expired and files that nothing names, with the server stopped.

    A running server does this by itself (`sweep_interval_seconds`); `--dry-run` also looks beside it.
    """
    settings = Settings.under(
        data_dir=data_dir,
        job_retention_days=job_retention_days,
        job_event_retention_days=job_event_retention_days,
        version_retention_days=version_retention_days,
        upload_retention_days=upload_retention_days,
    )
    _database_file(settings)
    remedy = "it sweeps by itself. Stop it to collect now, or look with --dry-run"
    with nullcontext() if dry_run else holding(settings.data_dir, remedy):
        database = Database(settings.resolved_database_url, upgrade=False)
        collector = Collector(database, settings.data_dir, retention_of(settings))
        found = collector.find()
        gone = found if dry_run else list(collector.collect(found))
        database.close()
    _show_garbage(gone, dry_run=dry_run, as_json=as_json)


@app.command()
def backup(
    destination: Annotated[Path, typer.Argument(help="A directory that does not exist, or is empty.")],
    *,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy the data directory, consistently, also while its server runs; what was copied is verified.

    Uploads in progress and the work of unfinished jobs are left out: after a restore clients upload again,
    and such jobs begin again.
    """
    settings = Settings.under(data_dir=data_dir)
    with _progress() as report:
        made = backup_directory(_database_file(settings), settings.data_dir, destination, report)
    _show_backup("backup", destination, made, as_json=as_json)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A directory that `finetuned backup` has made.")],
    *,
    data_dir: Annotated[Path, typer.Option(help="The new data directory: absent, or empty.")],
    as_json: AsJson = False,
) -> None:
    """Make a new data directory from a backup; what was copied is verified."""
    with _progress() as report:
        made = restore_directory(source, data_dir, report)
    _show_backup("restored", data_dir, made, as_json=as_json)


def _database_file(settings: Settings) -> Path:
    url = make_url(settings.resolved_database_url)
    if url.get_backend_name() != "sqlite":
        raise StartRefused(
            f"database_url names {url.get_backend_name()}; this command knows SQLite only. Use the tools of "
            "that database"
        )
    path = Path(url.database or "")
    if not path.is_file():
        raise StartRefused(f"there is no store at {path}; name the server's directory with --data-dir")
    return path


def _show_garbage(found: Sequence[Garbage], *, dry_run: bool, as_json: bool) -> None:
    total = sum(item.size_bytes for item in found)
    if as_json:
        items = [{"kind": i.kind.value, "name": i.name, "size_bytes": i.size_bytes} for i in found]
        typer.echo(json.dumps({"dry_run": dry_run, "count": len(found), "size_bytes": total, "items": items}))
        return
    table = Table("what", "count", "bytes", title="Would go" if dry_run else "Gone", title_justify="left")
    for kind in Kind:
        own = [item for item in found if item.kind is kind]
        if own:
            table.add_row(kind.value, str(len(own)), f"{sum(item.size_bytes for item in own):,}")
    table.add_row("all", str(len(found)), f"{total:,}")
    Console().print(table)
    if found:
        typer.echo("The names: --json", err=True)


def _show_backup(done: str, where: Path, made: BackupManifest, *, as_json: bool) -> None:
    facts = {"directory": str(where.resolve()), "size_bytes": made.size_bytes, **made.counts}
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        counted = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in made.counts.items())
        typer.echo(f"{done} {where}: {made.size_bytes:,} bytes; {counted}; every digest compared")


@contextmanager
def _progress() -> Generator[Report]:
    """A bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def report(what: str, done_bytes: int, total_bytes: int) -> None:
            bar.update(task, description=what, completed=done_bytes, total=total_bytes)

        yield report
