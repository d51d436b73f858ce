"""`finetuned predict`: one prompt, or a file of them."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from finetuned import Client, Image, Prompt, TextPair
from finetuned.cli.encode import EncodeTask, read_image, read_texts, write_answers
from finetuned.cli.exit_codes import ExitCode
from finetuned.cli.generation import (
    Adapter,
    FrequencyPenalty,
    JsonSchema,
    LogitBias,
    MaxTokens,
    MinTokens,
    PlainBase,
    PresencePenalty,
    Regex,
    RepetitionPenalty,
    Samples,
    Sampling,
    Seed,
    Stop,
    System,
    Temperature,
    TopK,
    TopP,
    check_model,
    read_biases,
    read_schema,
)
from finetuned.cli.output import err, json_text, print_json
from finetuned.cli.rows import Row, prompt_of, read_rows
from finetuned.cli.session import AsJson, connect
from finetuned.errors import FinetunedError


def predict(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="The prompt.", show_default=False)] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            exists=True,
            dir_okay=False,
            show_default=False,
            help='JSON lines with "prompt" or "messages"; "adapter" and "completion" if wanted.',
        ),
    ] = None,
    task: Annotated[
        EncodeTask | None,
        typer.Option(help="Labels, tags or vectors of texts and images instead of text.", show_default=False),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, help="An image to ask about (repeatable).", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, help="For the lines.", show_default="standard output"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Rows of the file in one call.")] = 32,
    adapter: Adapter = None,
    plain_base: PlainBase = False,
    system: System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Go on with the prompt as it stands, without the chat template.")
    ] = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    samples: Samples = None,
    min_tokens: MinTokens = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    logit_bias: LogitBias = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt as it streams, or all rows of a file as JSON lines.

    A row with a "completion" is scored: its line says whether the answer equals it, and the share of
    right answers is told at the end. Exits with 1 if a row was refused. With --task, rows have a "text", and each
    line is what that input was answered with.
    """
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        n=samples,
        min_tokens=min_tokens,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=read_biases(logit_bias),
        json_schema=read_schema(json_schema),
        regex=regex,
    )
    if task is not None:
        check_model(adapter, plain_base=plain_base)
        given: list[str | Image | TextPair] = [read_image(path) for path in image or ()]
        given += [prompt] if prompt is not None else []
        given += read_texts(file) if file is not None else []
        if not given:
            raise typer.BadParameter("expected one of them", param_hint="PROMPT, --file, --image")
        with connect(context) as client, _target(output) as lines:
            write_answers(client, task, given, adapter, lines)
        return
    if image:
        raise typer.BadParameter("is for --task classify and embed", param_hint="--image")
    if file is not None and prompt is None:
        rows = list(read_rows(file, system, adapter, sampling, plain_base=plain_base, raw=raw))
        with connect(context) as client, _target(output) as lines:
            _answer_rows(client, rows, lines, batch)
    elif prompt is not None and file is None:
        check_model(adapter, plain_base=plain_base)
        with connect(context) as client:
            _answer(
                client, prompt_of({"prompt": prompt}, system, raw=raw), adapter, sampling, as_json=as_json
            )
    else:
        raise typer.BadParameter("expected one of them", param_hint="PROMPT, --file")


def _answer(
    client: Client, prompt: Prompt, adapter: str | None, sampling: Sampling, *, as_json: bool
) -> None:
    with client.stream(prompt, adapter=adapter, plain_base=adapter is None, **sampling) as stream:
        for delta in stream:
            if not as_json and sampling["n"] in (None, 1):
                print(delta.text, end="", flush=True)
        reply = stream.finish()
    if as_json:
        print_json(reply)
        return
    print("\n\n".join(sample.text for sample in reply.samples) if len(reply.samples) > 1 else "", flush=True)
    err().print(f"[dim]{escape(reply.served_by.label)}, {reply.usage.completion_tokens} tokens[/dim]")


@contextmanager
def _target(output: Path | None) -> Generator[TextIO]:
    if output is None:
        yield sys.stdout
    else:
        with output.open("w", encoding="utf-8") as file:
            yield file


def _answer_rows(client: Client, rows: Sequence[Row], lines: TextIO, batch: int) -> None:
    refused = right = 0
    columns = TextColumn("rows"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=err(), disable=lines.isatty() or not err().is_terminal) as bar:
        task = bar.add_task("rows", total=len(rows))
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            for row, answer in zip(some, client.generate_many([row.request for row in some]), strict=True):
                lines.write(json_text(row.result(answer)) + "\n")
                refused += isinstance(answer, FinetunedError)
                right += row.is_correct(answer)
            lines.flush()
            bar.advance(task, len(some))
    scored = sum(row.expected is not None for row in rows)
    if scored:
        err().print(f"{right} of {scored} right ({right / scored:.1%})")
    if refused:
        err().print(f"[red]{refused} of {len(rows)} rows were refused; their lines say why[/red]")
        raise typer.Exit(ExitCode.OTHER)
