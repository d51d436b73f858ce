"""`finetuned jobs`: list, get, watch, events, report, tensorboard, rerun, pause, resume, cancel, delete; and how commands that start jobs follow them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from finetuned import Client, EvaluationFinished, Job, JobEvent, JobKind, JobState
from finetuned._names import short
from finetuned.cli.exit_codes import ExitCode
from finetuned.cli.output import cell, err, metrics, print_json, print_table
from finetuned.cli.progress import JobDisplay
from finetuned.cli.report import say_next, show_job
from finetuned.cli.session import AsJson, Detach, Priority, connect

app = typer.Typer(help="Jobs: TrainJobs and Quantize runs.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The job's name.")]
NO_REPORT: Final = (
    "a report needs jinja2 and matplotlib. Install them with: pip install 'finetuned-service[report]'"
)


def follow(client: Client, job: Job, *, as_json: bool, detach: bool) -> None:
    """Watch a job that was just started, unless told to let it go.

    Raises:
        JobFailed: it ended without a result.
    """
    if detach or not job.name:
        if as_json:
            print_json(job)
        else:
            show_job(job)
            if job.name:
                err().print(f"[dim]Next: finetuned jobs watch {short(job.name)}[/dim]")
    else:
        watch_job(client, job.name, as_json=as_json)


def watch_job(client: Client, name: str, *, as_json: bool) -> None:
    """Show a job until it is over, then its result; as JSON lines `{"event"}` and a last `{"job"}`."""
    try:
        if as_json:
            job = client.jobs.wait(name, on_event=_print_event)
            print_json({"job": job}, line=True)
        else:
            with JobDisplay() as display:
                job = client.jobs.wait(name, on_event=display.job(short(name)))
            show_job(job)
    except KeyboardInterrupt:
        err().print(f"the job goes on; see `finetuned jobs watch {short(name)}`, or `jobs cancel`")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    job.check()
    if not as_json:
        say_next(job)


def _print_event(event: JobEvent) -> None:
    print_json({"event": event}, line=True)


@app.command("list")
def list_all(
    context: typer.Context,
    *,
    state: Annotated[
        list[JobState] | None,
        typer.Option(case_sensitive=False, help="Only these states.", show_default="all"),
    ] = None,
    kind: Annotated[
        Literal["TRAIN", "QUANTIZE"] | None,
        typer.Option(case_sensitive=False, help="Only this kind.", show_default="all"),
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Only TrainJobs for this adapter.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs, newest first."""
    with connect(context) as client:
        chosen = JobKind(kind) if kind else JobKind.UNKNOWN
        found = list(client.jobs.list(states=state or (), kind=chosen, adapter=adapter))
    if as_json:
        print_json(found)
        return
    print_table(
        "Jobs",
        ["name", "kind", "state", "makes", "step", "created"],
        [
            [short(job.name), job.kind.lower(), job.state.lower(), _makes(job), _step(job), job.create_time]
            for job in found
        ],
        empty="No jobs yet. Next: finetuned train --dataset NAME --adapter NAME",
    )


def _makes(job: Job) -> str:
    if job.train is not None:
        return short(job.train_result.version if job.train_result else job.train.adapter)
    return job.quantize.output_base_id if job.quantize else ""


def _step(job: Job) -> str:
    return f"{job.progress.step}/{job.progress.total_steps}" if job.progress else ""


@app.command()
def get(context: typer.Context, name: Name, *, as_json: AsJson = False) -> None:
    """Show one job."""
    with connect(context) as client:
        job = client.jobs.get(name)
    if as_json:
        print_json(job)
    else:
        show_job(job)


@app.command()
def watch(context: typer.Context, name: Name, *, as_json: AsJson = False) -> None:
    """Watch a job until it is over, or waits for `jobs resume`; exits with 6 if it did not succeed."""
    with connect(context) as client:
        watch_job(client, name, as_json=as_json)


@app.command()
def events(context: typer.Context, name: Name, *, as_json: AsJson = False) -> None:
    """Show what has happened to a job so far; as JSON lines with --json."""
    with connect(context) as client:
        found = list(client.jobs.events(name))
    if as_json:
        for event in found:
            print_json(event, line=True)
        return
    rows = [[event.number, event.time, type(event.body).__name__, _words(event)] for event in found]
    print_table(f"Events of {short(name)}", ["number", "time", "kind", ""], rows)


def _words(event: JobEvent) -> str:
    body = event.body
    if body is None:
        return ""
    words = [
        f"{field} {cell(value)}"
        for field in body.__dataclass_fields__
        if isinstance(value := getattr(body, field), (str, int, float)) and value not in {0, "", "UNKNOWN"}
    ]
    if isinstance(body, EvaluationFinished):
        words.append(metrics(body.metrics))
    return ", ".join(words)


@app.command()
def report(
    context: typer.Context,
    name: Name,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write.", show_default="JOB.html")
    ] = None,
) -> None:
    """Write the report of a job: one HTML page with curves, figures, answers, data, cost and lineage."""
    if any(importlib.util.find_spec(needed) is None for needed in ("jinja2", "matplotlib")):
        err().print(NO_REPORT, markup=False, soft_wrap=True)
        raise typer.Exit(ExitCode.OTHER)
    from finetuned.cli.job_report import html_report  # noqa: PLC0415 - an extra that other commands do without

    with connect(context) as client:
        job = client.jobs.get(name)
        page = html_report(job, client.jobs.events(name))
    path = output or Path(f"{short(job.name).rpartition('/')[2]}.html")
    path.write_text(page, encoding="utf-8")
    print(path)


@app.command()
def tensorboard(
    context: typer.Context,
    name: Name,
    *,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Where the job gets a directory; several jobs may be in one."),
    ] = Path("tensorboard"),
) -> None:
    """Download the figures of a TrainJob for TensorBoard; again, to see what has come since."""
    with connect(context) as client:
        logs = client.jobs.tensorboard(name, output)
    print(logs.directory)
    err().print(f"Next: tensorboard --logdir {output}", style="dim", markup=False)


@app.command()
def rerun(
    context: typer.Context,
    name: Name,
    *,
    base: Annotated[
        str | None, typer.Option(help="The base to train on.", show_default="the server's")
    ] = None,
    display_name: Annotated[str, typer.Option("--name", help="Your own name for the job.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check.")] = False,
    pause_after_estimate: Annotated[
        bool,
        typer.Option(
            "--pause-after-estimate", help="Measure what it will take, then wait for `jobs resume`."
        ),
    ] = False,
    priority: Priority = "NORMAL",
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Run a TrainJob again from its own record, for example on another base."""
    with connect(context) as client:
        job = client.jobs.rerun(
            name,
            base=base,
            display_name=display_name,
            validate_only=dry_run,
            pause_after_estimate=pause_after_estimate,
            priority=priority,
        )
        follow(client, job, as_json=as_json, detach=detach)


@app.command()
def pause(context: typer.Context, name: Name, *, as_json: AsJson = False) -> None:
    """Have a job write a checkpoint and stop, until it is resumed."""
    with connect(context) as client:
        _tell_state(client.jobs.pause(name), as_json=as_json)


@app.command()
def resume(context: typer.Context, name: Name, *, as_json: AsJson = False) -> None:
    """Let a paused job go on from its checkpoint."""
    with connect(context) as client:
        _tell_state(client.jobs.resume(name), as_json=as_json)


@app.command()
def cancel(context: typer.Context, name: Name, *, as_json: AsJson = False) -> None:
    """Stop a job."""
    with connect(context) as client:
        _tell_state(client.jobs.cancel(name), as_json=as_json)


@app.command()
def delete(context: typer.Context, name: Name) -> None:
    """Remove a finished job with its events and files."""
    with connect(context) as client:
        client.jobs.delete(name)
    err().print(f"{short(name)} is deleted")


def _tell_state(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        err().print(f"{short(job.name)} is {job.state.lower()}")
