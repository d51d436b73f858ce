"""What every command is given: the connection, and the options that many commands share."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Final, Literal, final

import typer

from finetuned import Client

JSON_KEY: Final = "finetuned.json"


def _remember(context: typer.Context, value: bool) -> bool:  # noqa: FBT001 - the signature of a callback
    """An error has to be told in the same form, when the command is over."""
    context.meta[JSON_KEY] = value
    return value


AsJson = Annotated[
    bool,
    typer.Option(
        "--json", callback=_remember, help="Machine output: one JSON document, or JSON lines for streams."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Priority = Annotated[
    Literal["LOW", "NORMAL", "HIGH"],
    typer.Option("--priority", case_sensitive=False, help="How soon it is taken; HIGH is for admins."),
]
Detach = Annotated[bool, typer.Option("--detach", help="Return when the job is accepted; do not watch it.")]


@final
@dataclass(frozen=True, slots=True)
class Session:
    """The options that stand before the command."""

    endpoint: str | None
    tenant: str | None


@contextmanager
def connect(context: typer.Context) -> Generator[Client]:
    """The client of a command; options that were not given come from FINETUNED_*."""
    session = context.find_object(Session) or Session(None, None)
    with Client(session.endpoint, tenant=session.tenant) as client:
        yield client
