"""What the tour prints: scores, answers, who served whom."""

from __future__ import annotations

import tempfile
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetuned import Client, GenerateRequest, Job, Message, PromoteIf, Reply
from rich.console import Console
from rich.table import Table

from examples.demo.jobs import EXAMPLES, Example, quantize, train, upload
from examples.demo.server import RunningServer

ANSWER_TOKENS = 64
STREAMS = 9
SHOWN_METRICS = (
    "finetuned_sequences_total",
    "finetuned_tokens_total",
    "finetuned_training_tokens_total",
    "finetuned_adapter_loads_total",
    "finetuned_memory_bytes",
    "finetuned_jobs{",
)


def show_scores(jobs: list[Job], console: Console) -> None:
    table = Table(
        "adapter", "figure (held-out rows)", "base, with instruction and 3 examples", "adapter, with neither"
    )
    for job in jobs:
        before = {metric.name: metric.value for metric in job.baseline_metrics}
        for metric in job.metrics:
            version = job.train_result.version.split("adapters/")[1] if job.train_result else ""
            table.add_row(
                version, metric.name, f"{before.get(metric.name, float('nan')):.3f}", f"{metric.value:.3f}"
            )
    console.print(table)


def show_answers(client: Client, example: Example, job: Job, console: Console) -> None:
    row = example.rows("heldout")[0]
    examples = [
        message
        for shown in example.baseline.examples
        for message in (Message("user", shown.prompt), Message("assistant", shown.completion))
    ]
    instructed = [Message("system", example.baseline.instruction), *examples, Message("user", row["prompt"])]
    plain = client.generate(row["prompt"], plain_base=True, max_tokens=ANSWER_TOKENS)
    prompted = client.generate(instructed, plain_base=True, max_tokens=ANSWER_TOKENS)
    adapted = client.generate(row["prompt"], adapter=example.adapter, max_tokens=ANSWER_TOKENS)
    table = Table("who", "prompt tokens", "answer", title=f"{row['prompt']}  →  {row['completion']}")
    for who, reply in (("base", plain), ("base with examples", prompted), (adapted.served_by.label, adapted)):
        table.add_row(who, str(reply.usage.prompt_tokens), _one_line(reply.text))
    console.print(table)
    saved = prompted.usage.prompt_tokens - adapted.usage.prompt_tokens
    console.print(f"  {saved} prompt tokens saved on every request")
    replies = client.generate_many(
        [
            GenerateRequest(r["prompt"], adapter=example.adapter, max_tokens=ANSWER_TOKENS)
            for r in example.rows("heldout")
        ]
    )
    right = sum(
        isinstance(reply, Reply) and reply.text.strip() == r["completion"].strip()
        for reply, r in zip(replies, example.rows("heldout"), strict=True)
    )
    console.print(f"  served now, the whole held-out set: {right} of {len(replies)} exactly right")
    failures = [sample for sample in job.samples if not sample.correct][:3]
    table = Table("request", "expected", "answered", title="three failures")
    for sample in failures:
        table.add_row(sample.prompt, sample.expected, _one_line(sample.answer))
    console.print(table)


def show_mixed(client: Client, ops: Example, redact: Example, console: Console) -> None:
    """Streams for two adapters and the plain base, all running before the first one ends."""
    prompts = [*ops.rows("heldout")[1:4], *redact.rows("heldout")[1:4], *ops.rows("heldout")[4:7]]
    models = [ops.adapter] * 3 + [redact.adapter] * 3 + [None] * 3
    together = threading.Barrier(STREAMS)

    def answer(index: int) -> Reply:
        prompt, adapter = prompts[index]["prompt"], models[index]
        together.wait()
        with client.stream(
            prompt, adapter=adapter, plain_base=adapter is None, max_tokens=ANSWER_TOKENS
        ) as stream:
            return stream.finish()

    began = time.monotonic()
    with ThreadPoolExecutor(STREAMS) as pool:
        pending = [pool.submit(answer, index) for index in range(STREAMS)]
        peak = 0
        while not all(future.done() for future in pending):
            peak = max(peak, client.server_info().load.running_sequences)
            time.sleep(0.05)
        replies = [future.result() for future in pending]
        table = Table("served by", "modules changed", "request", "answer")
        tokens = 0
        for row, reply in zip(prompts, replies, strict=True):
            tokens += reply.usage.completion_tokens
            by = reply.served_by
            table.add_row(by.label, str(by.modules), row["prompt"], _one_line(reply.text))
    console.print(table)
    seconds = time.monotonic() - began
    digests = client.server_info().resident_base_digest[:19]
    console.print(f"  {tokens} tokens in {seconds:.1f} s from the one resident base {digests}…")
    console.print(f"  as many as {peak} of the {STREAMS} sequences ran in the batch at once")


def show_promotion(client: Client, ops: Example, console: Console) -> None:
    """Train version 2 on more rows while requests run; the alias moves only if it scores higher."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "rows.jsonl"
        parts = [(EXAMPLES / ops.directory / f"{part}.jsonl").read_text() for part in ("train", "more")]
        path.write_text("".join(parts))
        upload(client, path, f"{ops.adapter}-train-more", console)
    served: Counter[str] = Counter()
    failed = 0
    done = threading.Event()

    def ask() -> None:
        nonlocal failed
        rows = ops.rows("heldout")
        while not done.is_set():
            row = rows[served.total() % len(rows)]
            try:
                reply = client.generate(row["prompt"], adapter=ops.adapter, max_tokens=ANSWER_TOKENS)
                served[reply.served_by.label] += 1
            except Exception as error:  # noqa: BLE001 - counted and shown: none may fail
                failed += 1
                console.print(f"  a request failed: {error}")
            done.wait(1.0)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        wanted = PromoteIf(alias="default", metric="exact_match", better_than_current=True)
        job = train(client, ops, f"{ops.adapter}-train-more", console, promote_if=wanted)
        # A few more requests, so that the version after the move is seen as well.
        before = served.total()
        while served.total() < before + 4 and not failed:
            time.sleep(0.1)
    finally:
        done.set()
        asking.join()
    result = job.train_result
    console.print(
        f"  {result.version.split('adapters/')[1] if result else ''}: {result.promotion if result else ''}"
    )
    counts = ", ".join(f"{number} by {label}" for label, number in sorted(served.items()))
    console.print(f"  requests while it trained and after: {counts}; {failed} failed")
    if failed:
        raise SystemExit(f"{failed} requests failed while the alias moved; none may")


def show_quantized(client: Client, console: Console) -> None:
    """INT8 and NF4, with what they cost."""
    table = Table("format", "bytes before", "after", "perplexity before", "after", "rise", "same first token")
    lineage = ""
    for weight_format in ("INT8", "NF4"):
        job = quantize(client, weight_format, f"smollm2-{weight_format.lower()}", console)
        if job.quantize_result is None:
            continue
        report = job.quantize_result.report
        lineage = report.source_lineage or lineage
        rise = report.quantized_perplexity / report.source_perplexity - 1
        table.add_row(
            weight_format,
            f"{report.source_bytes / 1e6:.0f} MB",
            f"{report.quantized_bytes / 1e6:.0f} MB",
            f"{report.source_perplexity:.2f}",
            f"{report.quantized_perplexity:.2f}",
            f"{rise:+.1%}",
            f"{report.top1_agreement:.1%}",
        )
    console.print(table)
    if lineage:
        console.print(f"  about the source: {lineage}")


def show_metrics(server: RunningServer, console: Console) -> None:
    """The lines of the Prometheus endpoint that tell this tour's story."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    for line in lines:
        if line.startswith(SHOWN_METRICS):
            console.print(f"  {line}", highlight=False, markup=False)


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else f"{flat[:79]}…"
