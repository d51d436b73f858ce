"""The command line as a whole: its commands, the options before them, and what becomes of errors."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape
from typer.core import TyperGroup

from finetuned.cli import (
    adapters,
    chat,
    dataset,
    info,
    jobs,
    metrics,
    predict,
    quantize,
    service,
    train,
    usage,
)
from finetuned.cli.exit_codes import MEANING, ExitCode, exit_code
from finetuned.cli.output import err, error_json, json_text
from finetuned.cli.session import JSON_KEY, Session
from finetuned.errors import FinetunedError, QuotaExceeded

EPILOG = "\n\n".join(
    [
        "[bold]Where to begin[/bold]",
        "1. finetuned serve   [dim](in a terminal of its own)[/dim]",
        '2. finetuned dataset upload rows.jsonl   [dim](lines of {"prompt": "...", "completion": "..."})[/dim]',
        "3. finetuned train --dataset rows --adapter mine",
        "4. finetuned chat --adapter mine   [dim](or --plain-base, to compare)[/dim]",
        "[bold]Exit codes:[/bold] "
        + "; ".join(f"{code.value} {meaning}" for code, meaning in MEANING.items()),
    ]
)
HINTS = {
    ExitCode.NOT_FOUND: "What exists: finetuned adapters list, dataset list, jobs list",
    ExitCode.UNAVAILABLE: "`finetuned serve` starts a server here; FINETUNED_ENDPOINT names one elsewhere",
    ExitCode.NOT_ALLOWED: "FINETUNED_API_KEY is where the key is read from",
}
QUOTA_HINT = "All limits, and what you use of them: finetuned usage"


class Commands(TyperGroup):
    """The group of all commands; turns refusals into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FinetunedError as error:
            _tell(error, as_json=bool(ctx.meta.get(JSON_KEY)))
            raise typer.Exit(exit_code(error)) from None
        except ValidationError as error:
            first = error.errors()[0]
            raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except (OSError, ValueError) as error:
            # A broken pipe is not ours to tell about: `finetuned jobs list | head` is no failure.
            if isinstance(error, BrokenPipeError):
                raise
            err().print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(ExitCode.OTHER) from None


def _tell(error: FinetunedError, *, as_json: bool) -> None:
    if as_json:
        err().print(json_text(error_json(error)), markup=False, soft_wrap=True)
        return
    lines = [f"[red]error:[/red] {escape(error.message)}"]
    lines += [
        f"  [bold]{escape(item.field)}[/bold]: {escape(item.description)}"
        for item in error.violations
        if item.description != error.message
    ]
    hint = QUOTA_HINT if isinstance(error, QuotaExceeded) else HINTS.get(exit_code(error))
    lines += [f"[dim]{hint}[/dim]"] if hint is not None else []
    for line in lines:
        err().print(line, soft_wrap=True)


app = typer.Typer(
    name="finetuned",
    cls=Commands,
    help="Fine-tuning as a service: train adapters on one frozen base model, quantize it, serve them all.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the signature of a callback
    if wanted:
        typer.echo(version("finetuned-service"))
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    *,
    endpoint: Annotated[
        str | None,
        typer.Option(envvar="FINETUNED_ENDPOINT", help="Server, `host:port`.", show_default="localhost:8433"),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(envvar="FINETUNED_TENANT", help="Whose resources.", show_default="default")
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep the connection's options for the command."""
    del show_version  # its callback has done all there is
    context.obj = Session(endpoint, tenant)


SERVER, WORK = "The server", "Your work"
app.command("serve", rich_help_panel=SERVER, **service.PASS_ALL)(service.serve)
app.command("worker", rich_help_panel=SERVER, **service.PASS_ALL)(service.worker)
app.command("health", rich_help_panel=SERVER, **service.PASS_ALL)(service.health)
app.command("base", rich_help_panel=SERVER, **service.PASS_ALL)(service.base)
app.command("gc", rich_help_panel=SERVER, **service.PASS_ALL)(service.gc)
app.command("backup", rich_help_panel=SERVER, **service.PASS_ALL)(service.backup)
app.command("restore", rich_help_panel=SERVER, **service.PASS_ALL)(service.restore)
app.command("keys", rich_help_panel=SERVER, **service.PASS_ALL)(service.keys)
app.command("info", rich_help_panel=SERVER)(info.info)
app.command("metrics", rich_help_panel=SERVER)(metrics.metrics)
app.add_typer(dataset.app, name="dataset", rich_help_panel=WORK)
app.command("train", rich_help_panel=WORK)(train.train)
app.add_typer(jobs.app, name="jobs", rich_help_panel=WORK)
app.add_typer(adapters.app, name="adapters", rich_help_panel=WORK)
app.command("chat", rich_help_panel=WORK)(chat.chat)
app.command("predict", rich_help_panel=WORK)(predict.predict)
app.command("quantize", rich_help_panel=WORK)(quantize.quantize)
app.command("usage", rich_help_panel=WORK)(usage.usage)
