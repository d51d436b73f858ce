"""`finetuned dataset`: upload, import, list, get, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from finetuned import Dataset, DatasetFormat, RowKind, UploadProgress
from finetuned._names import short
from finetuned.cli.data_report import show_dataset_report
from finetuned.cli.output import err, print_facts, print_json, print_table, size
from finetuned.cli.session import AsJson, Yes, connect

app = typer.Typer(help="Datasets: validated, immutable examples.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The dataset's name.")]
Format = Annotated[
    Literal["JSONL", "CSV", "PARQUET", "CONLL", "IMAGE_FOLDER"] | None,
    typer.Option("--format", case_sensitive=False, help="The file's format.", show_default="from its name"),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="COLUMN=FIELD",
        help="Which column is which field, such as sentence=text; again for each. Others are left out.",
        show_default="all, under their own names",
    ),
]


def _show(dataset: Dataset, *, as_json: bool) -> None:
    if as_json:
        print_json(dataset)
        return
    print_facts(
        short(dataset.name),
        {
            "rows": dataset.rows,
            "kind": dataset.row_kind,
            "size": size(dataset.size_bytes),
            "source": dataset.source,
            "digest": dataset.digest,
            "created": dataset.create_time,
        },
    )
    if dataset.report is not None:
        show_dataset_report(dataset.report)


def _mapping(columns: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in columns or []:
        column, equals, field = item.rpartition("=")
        if not equals or not column or not field:
            raise typer.BadParameter(f"{item!r} is not COLUMN=FIELD, such as sentence=text")
        found[column] = field
    return found


@app.command()
def upload(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="JSON lines, CSV, Parquet, CoNLL (each also .gz), or a zip of images.",
        ),
    ],
    *,
    file_format: Format = None,
    columns: Columns = None,
    dataset_id: Annotated[
        str | None, typer.Option("--id", help="The dataset's name.", show_default="from the file's name")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file; it is validated, and refused with the lines at fault if rows are not usable."""
    mapping = _mapping(columns)
    shown = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with connect(context) as client, Progress(*shown, console=err(), disable=not err().is_terminal) as bar:
        task = bar.add_task(path.name, total=path.stat().st_size)

        def advance(progress: UploadProgress) -> None:
            bar.update(task, completed=progress.sent_bytes)

        dataset = client.datasets.upload(
            path,
            dataset_id,
            file_format=DatasetFormat(file_format or "UNKNOWN"),
            columns=mapping,
            progress=advance,
        )
    _show(dataset, as_json=as_json)
    if not as_json:
        err().print(f"[dim]Next: finetuned train --dataset {short(dataset.name)} --adapter NAME[/dim]")


@app.command("import")
def import_uri(
    context: typer.Context,
    uri: Annotated[str, typer.Argument(help="`file:///...` or `s3://...` under what the server allows.")],
    dataset_id: Name,
    *,
    file_format: Format = None,
    columns: Columns = None,
    as_json: AsJson = False,
) -> None:
    """Make a dataset from a file that the server can read."""
    with connect(context) as client:
        found = client.datasets.import_uri(
            uri, dataset_id, file_format=DatasetFormat(file_format or "UNKNOWN"), columns=_mapping(columns)
        )
    _show(found, as_json=as_json)


@app.command("list")
def list_all(
    context: typer.Context,
    *,
    kind: Annotated[
        Literal[
            "PROMPT_COMPLETION",
            "CHAT",
            "TEXT",
            "LABELLED_TEXT",
            "MULTI_LABEL_TEXT",
            "SCORED_TEXT",
            "LABELLED_TOKENS",
            "PAIR",
            "SCORED_PAIR",
            "PREFERENCE",
            "LABELLED_IMAGE",
        ]
        | None,
        typer.Option(case_sensitive=False, help="Only this kind of rows.", show_default="all"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the datasets."""
    with connect(context) as client:
        found = list(client.datasets.list(row_kind=RowKind(kind) if kind else RowKind.UNKNOWN))
    if as_json:
        print_json(found)
        return
    print_table(
        "Datasets",
        ["name", "rows", "kind", "size", "created"],
        [[short(one.name), one.rows, one.row_kind, size(one.size_bytes), one.create_time] for one in found],
        empty="No datasets yet. Next: finetuned dataset upload rows.jsonl",
    )


@app.command()
def get(context: typer.Context, name: Name, *, as_json: AsJson = False) -> None:
    """Show one dataset."""
    with connect(context) as client:
        _show(client.datasets.get(name), as_json=as_json)


@app.command()
def delete(context: typer.Context, name: Name, *, yes: Yes = False) -> None:
    """Delete a dataset that no unfinished job uses."""
    if not yes:
        typer.confirm(f"Delete the dataset {name}?", abort=True, err=True)
    with connect(context) as client:
        client.datasets.delete(name)
    err().print(f"deleted {name}")
