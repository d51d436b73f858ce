"""Commands of the service itself (`serve`, `worker`, `health`, `base`, `gc`, `backup`, `restore`, `keys`), passed on as they are."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TypedDict

import typer

from finetuned.cli.exit_codes import ExitCode
from finetuned.cli.output import err

MISSING = """This needs the service, and only the client is installed. Install it with

    pip install 'finetuned-service[service]'

A server that runs elsewhere is used with FINETUNED_ENDPOINT=host:port; `finetuned info` tells about it."""
NEEDED = ("finetuned_service", "torch", "sqlalchemy", "structlog", "transformers")
"""The service itself comes with every install; what it stands on, with the extra only."""


class _PassAll(TypedDict):
    context_settings: dict[str, bool]
    add_help_option: bool


PASS_ALL: _PassAll = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}


def serve(context: typer.Context) -> None:
    """Run the server here; `finetuned serve --help` explains each setting."""
    _delegate("serve", context)


def worker(context: typer.Context) -> None:
    """Run jobs beside a server that runs none itself; `finetuned worker --help` explains each setting."""
    _delegate("worker", context)


def health(context: typer.Context) -> None:
    """Ask the health port of a server or worker; exit code 0 means that it serves."""
    _delegate("health", context)


def base(context: typer.Context) -> None:
    """Add a base model to a data directory of this machine, or list what is there."""
    _delegate("base", context)


def gc(context: typer.Context) -> None:
    """Remove what has expired and files that nothing names from a data directory of this machine."""
    _delegate("gc", context)


def backup(context: typer.Context) -> None:
    """Copy a data directory of this machine, consistently, also while its server runs."""
    _delegate("backup", context)


def restore(context: typer.Context) -> None:
    """Make a new data directory from a backup."""
    _delegate("restore", context)


def keys(context: typer.Context) -> None:
    """Make, list, rotate and revoke the API keys of a server on this machine."""
    _delegate("keys", context)


def _delegate(command: str, context: typer.Context) -> None:
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        err().print(MISSING, markup=False)
        raise typer.Exit(ExitCode.OTHER)
    service = importlib.import_module("finetuned_service.__main__")
    raise typer.Exit(service.main([command, *context.args]))
