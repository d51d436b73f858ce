"""`finetuned usage`: what the tenant uses of what it may have and do."""

from __future__ import annotations

import typer

from finetuned import LimitUse
from finetuned.cli.output import print_json, print_table, size
from finetuned.cli.session import AsJson, connect


def usage(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Show what you use of what you may have and do."""
    with connect(context) as client:
        found = client.usage()
    if as_json:
        print_json(found)
        return
    rows = [
        [item.limit, _amount(item, item.used), _amount(item, item.allowed), _share(item)]
        for item in found.limits
    ]
    print_table(found.name, ["limit", "used", "allowed", "share"], rows)


def _amount(item: LimitUse, amount: int) -> str:
    if item.unit == "bytes":
        return size(amount)
    return f"{amount} {item.unit}{' on this replica' if item.per_replica else ''}"


def _share(item: LimitUse) -> str:
    return f"{item.used / item.allowed:.0%}" if item.allowed else ""
