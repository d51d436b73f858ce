"""Starting jobs, or finding those of an earlier run, and watching them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from finetuned import (
    Baseline,
    BaselineExample,
    Client,
    EvaluationOptions,
    Job,
    JobKind,
    JobState,
    Optimization,
    PromoteIf,
)
from finetuned.cli.progress import JobDisplay
from finetuned.errors import NotFound
from rich.console import Console

EXAMPLES = Path(__file__).resolve().parent.parent
TRAINING = Optimization(epochs=1.6, batch_rows=4, learning_rate=1e-3)
"""About 22,000 training tokens for one of the example datasets; small batches, so that there are steps."""


@dataclass(frozen=True, slots=True)
class Example:
    """One dataset of `examples/`, with the prompt that the plain base gets."""

    directory: str
    adapter: str
    baseline: Baseline

    @classmethod
    def load(cls, directory: str) -> Example:
        about = json.loads((EXAMPLES / directory / "dataset.json").read_text())
        examples = tuple(BaselineExample(e["prompt"], e["completion"]) for e in about["examples"])
        baseline = Baseline(instruction=about["instruction"], examples=examples)
        return cls(directory, directory.replace("_", "-"), baseline)

    def rows(self, name: str) -> list[dict[str, str]]:
        lines = (EXAMPLES / self.directory / f"{name}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def upload(client: Client, path: Path, dataset_id: str, console: Console) -> None:
    """Upload a file, unless its dataset is there from an earlier run."""
    try:
        dataset = client.datasets.get(dataset_id)
        console.print(f"  {dataset_id}: {dataset.rows} rows, here from an earlier run")
    except NotFound:
        dataset = client.datasets.upload(path, dataset_id)
        console.print(f"  {dataset_id}: {dataset.rows} rows, {dataset.digest[:19]}…")


def train(
    client: Client, example: Example, dataset: str, console: Console, *, promote_if: PromoteIf | None = None
) -> Job:
    """Train on a dataset with live progress, unless an earlier run has done so."""
    for done in client.jobs.list(states=[JobState.SUCCEEDED], kind=JobKind.TRAIN, adapter=example.adapter):
        if done.train is not None and done.train.dataset.endswith(f"/{dataset}"):
            console.print(f"  {done.name} trained it in an earlier run")
            return done
    job = client.train(
        dataset=dataset,
        eval_dataset=f"{example.adapter}-heldout",
        adapter=example.adapter,
        optimization=TRAINING,
        evaluation=EvaluationOptions(
            # A version that is compared with the one before needs no prompted base beside it.
            baseline=example.baseline if promote_if is None else None,
            generation_max_tokens=64,
        ),
        promote_if=promote_if,
    )
    return watch(client, job, example.adapter, console)


def quantize(client: Client, weight_format: str, base_id: str, console: Console) -> Job:
    """Quantize the base, unless an earlier run has done so."""
    for done in client.jobs.list(states=[JobState.SUCCEEDED], kind=JobKind.QUANTIZE):
        if done.quantize is not None and done.quantize.output_base_id == base_id:
            return done
    return watch(client, client.quantize(weight_format, base_id), base_id, console)


def watch(client: Client, job: Job, label: str, console: Console) -> Job:
    """Show a job's events until it has ended well.

    Raises:
        JobFailed: it did not.
    """
    with JobDisplay(console) as display:
        return client.jobs.wait(job.name, on_event=display.job(label)).check()
