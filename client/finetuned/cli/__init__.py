"""`finetuned` on the command line; `main` is its entry point."""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process."""
    from finetuned.cli.app import app  # noqa: PLC0415 - `import finetuned.cli.progress` needs no typer

    app()
