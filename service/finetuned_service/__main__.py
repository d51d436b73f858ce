"""Entry point of the service: `finetuned serve`, `worker`, `health`, `base`, `gc`, `backup`, `restore` and
`keys` end here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_settings import SettingsError

from finetuned_service.errors import FinetunedError
from finetuned_service.settings import Settings

if TYPE_CHECKING:
    import typer

EXIT_REFUSED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `serve [flags]` or another command of the service; returns the exit code.

    What cannot start says in one message what was found, what is allowed and the remedy.
    """
    command, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["serve"]
    try:
        match command:
            case "serve":
                from finetuned_service.app import serve  # noqa: PLC0415 - `--help` answers at once

                return asyncio.run(serve(Settings.from_arguments(rest)))
            case "worker":
                from finetuned_service.worker import WorkerSettings, work  # noqa: PLC0415 - as above

                return asyncio.run(work(WorkerSettings.from_arguments(rest)))
            case "health":
                from finetuned_service.rpc.probe import ProbeSettings, probe  # noqa: PLC0415 - as above

                print(said := probe(ProbeSettings.from_arguments(rest)))
                return 0 if said == "SERVING" else EXIT_REFUSED
            case "base":
                from finetuned_service.bases import cli  # noqa: PLC0415 - not needed to serve

                return _run(cli.app, rest)
            case "gc" | "backup" | "restore":
                from finetuned_service.retention import cli  # noqa: PLC0415 - not needed to serve

                return _run(cli.app, [command, *rest])
            case "keys":
                from finetuned_service.tenancy import cli  # noqa: PLC0415 - as above

                return _run(cli.app, rest)
            case _:
                known = "serve, worker, health, base, gc, backup, restore, keys"
                print(f"unknown command {command!r}; available: {known}", file=sys.stderr)
                return EXIT_REFUSED
    except FinetunedError as error:
        print(f"finetuned: {error.message}", file=sys.stderr)
    except (ValidationError, SettingsError) as error:
        print(f"finetuned: settings are not usable: {_explained(error)}", file=sys.stderr)
    return EXIT_REFUSED


def _run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command of several; returns its exit code. Flags not understood are said as typer does, with 2."""
    try:
        app(list(arguments), prog_name=app.info.name)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_REFUSED
    return 0


def _explained(error: ValidationError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, e['loc']))} is {e['input']!r}: {e['msg'].lower()}" for e in error.errors()
    )


if __name__ == "__main__":
    sys.exit(main())
