"""What the real server refuses, the fake one refuses alike: the same error, about the same field. And what a spec leaves
out is filled in alike.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from both_clients import open_client, write_rows
from finetuned import (
    ClassificationOptions,
    ClassWeights,
    Client,
    ContrastiveOptions,
    DataOptions,
    Dpo,
    Head,
    Ia3,
    Lora,
    Objective,
    PromoteIf,
    Qlora,
    Residency,
    Task,
)
from finetuned.errors import FinetunedError
from finetuned.testing import FakeServer, _specs
from finetuned_service.jobs.data_check import KINDS
from finetuned_service.jobs.figures import FIGURES_OF_ROWS, GENERATION_FIGURES
from finetuned_service.jobs.methods import METHODS_OF_TASK
from tiny_models import save_tiny_adapter
from tiny_server import TINY, make_data_directory, running


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Client]]:
    """Of a real server that accepts jobs and runs none, and of a fake one; with the same rows."""
    directory = tmp_path_factory.mktemp("real")
    make_data_directory(directory)
    made = save_tiny_adapter(directory / "made", directory / "data" / "bases" / TINY, seed=1)
    labelled = directory / "labelled.jsonl"
    labelled.write_text(
        "".join(json.dumps({"text": f"t {n}", "label": "ab"[n % 2]}) + "\n" for n in range(20))
    )
    with (
        running(directory / "data", run_jobs=False) as real,
        FakeServer() as fake,
        open_client("sync", real.endpoint) as of_real,
        open_client("sync", fake.endpoint) as of_fake,
    ):
        for client in (of_real, of_fake):
            client.datasets.upload(write_rows(directory / "rows.jsonl", count=20), "rows")
            client.datasets.upload(labelled, "labelled")
            digest = client.server_info().base.digest
            client.adapters.import_directory(made.directory, "brought", expected_base_digest=digest)
        yield of_real, of_fake


def exported(client: Client) -> str:
    """The imported adapter's files, in a new directory under the current one."""
    return client.adapters.export("brought", Path(tempfile.mkdtemp(dir=".")) / "files").directory


def training(**options: Any) -> Callable[[Client], Any]:
    return lambda client: client.train(**{"dataset": "rows", "adapter": "mine", **options})


REFUSED: dict[str, Callable[[Client], object]] = {
    "QLORA over a base that is not quantized": training(qlora=Qlora()),
    "a head for vectors": training(task=Task.FEATURE_EXTRACTION, head=Head()),
    "IA3 for images": training(task=Task.IMAGE_CLASSIFICATION, ia3=Ia3()),
    "preferences for vectors": training(task=Task.FEATURE_EXTRACTION, objective=Objective.DPO),
    "labels to generate from": training(dataset="labelled"),
    "preferences of rows that have none": training(objective=Objective.DPO),
    "settings of preferences": training(dpo=Dpo(beta=0.2)),
    "settings of labels": training(classification=ClassificationOptions(class_weights=ClassWeights.NONE)),
    "settings of vectors": training(contrastive=ContrastiveOptions(scale=3.0)),
    "a rank too large": training(lora=Lora(rank=300)),
    "promotion by what is not measured": training(promote_if=PromoteIf(alias="prod", metric="accuracy")),
    "promotion without held-out rows": training(
        promote_if=PromoteIf(alias="prod"), data=DataOptions(holdout_fraction=0.0)
    ),
    "another tenant's adapter": training(adapter="tenants/b/adapters/mine"),
    "another tenant's rows": training(dataset="tenants/b/datasets/rows"),
    "another tenant's base": training(base="tenants/b/bases/small"),
    "a check that pauses": training(validate_only=True, pause_after_estimate=True),
    "embeddings in NF4": lambda client: client.quantize("nf4", "small", quantize_embeddings=True),
    "a format of later": lambda client: client.quantize("fp4", "small"),
    "another method than that of the weights": training(ia3=Ia3(), continue_from="brought"),
    "weights that are not there": training(continue_from="brought@7"),
    "a version that is not there": lambda client: client.adapters.version("brought@7"),
    "an alias back that has not moved": lambda client: client.adapters.rollback("brought"),
    "an alias to a version that is not there": lambda client: client.adapters.set_alias("brought@prod", 7),
    "an alias to another adapter's version": lambda client: client.adapters.set_alias(
        "brought@prod", "mine@1"
    ),
    "an alias that has moved": lambda client: client.adapters.set_alias("brought@default", 1, etag="old"),
    "an alias that stays": lambda client: client.adapters.delete_alias("brought"),
    "an alias that is not there": lambda client: client.adapters.delete_alias("brought@prod"),
    "a version that an alias names": lambda client: client.adapters.delete_version("brought@1"),
    "an adapter that a job continues from": lambda client: (
        training(continue_from="brought")(client),
        client.adapters.delete("brought"),
    ),
    "weights of another base": lambda client: client.adapters.import_directory(
        exported(client), "other", expected_base_digest="sha256:" + 64 * "0"
    ),
    "unloading to the device": lambda client: client.adapters.unload("brought", residency=Residency.DEVICE),
    "loading to the store": lambda client: client.adapters.load("brought", residency=Residency.STORED),
    "the base that is served": lambda client: client.bases.delete(client.server_info().base.name),
    "a base that is not there": lambda client: client.bases.delete("absent"),
    "a dataset again": lambda client: client.datasets.upload(write_rows(Path("again.jsonl")), "labelled"),
    "a Quantize run again": lambda client: client.jobs.rerun(client.quantize("int8", "small").name),
    "a job that waits is not over": lambda client: client.jobs.delete(training()(client).name),
    "rows that a job needs": lambda client: (training()(client), client.datasets.delete("rows")),
    "figures of a Quantize run": lambda client: client.jobs.tensorboard(
        client.quantize("int8", "smaller").name, "none"
    ),
    "figures of a job that waits": lambda client: client.jobs.tensorboard(
        training()(client).name,
        "none",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_both_refuse(
    clients: tuple[Client, Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    real, fake = (refused(lambda client=client: REFUSED[what](client)) for client in clients)
    assert describe(fake) == describe(real)
    assert not (tmp_path / "none").exists(), "a download that is refused leaves nothing"


def refused(call: Callable[[], object]) -> FinetunedError:
    with pytest.raises(FinetunedError) as caught:
        call()
    return caught.value


def describe(error: FinetunedError) -> tuple[Any, ...]:
    named = {key: value for key, value in error.metadata.items() if key in {"feature", "state"}}
    fields = tuple(violation.field for violation in error.violations)
    return type(error), error.reason, fields, sorted(error.metadata), named


def test_both_write_back_what_was_left_out(clients: tuple[Client, Client]) -> None:
    chosen_from_base_and_rows: dict[str, Any] = dict.fromkeys(
        ("epochs", "max_steps", "learning_rate", "checkpoint_interval_steps")
    )
    found = []
    for client in clients:
        job = client.train(
            dataset="rows", adapter="mine", promote_if=PromoteIf(alias="prod"), validate_only=True
        )
        spec, report = job.train, job.data_report
        assert spec is not None
        assert spec.base
        assert report is not None
        found.append(
            (
                (job.name, job.state, job.priority, report.train_rows, report.eval_rows),
                (spec.task, spec.objective, spec.evaluation, spec.promote_if),
                replace(spec.optimization, **chosen_from_base_and_rows),
                replace(spec.data, max_row_tokens=None),
                spec.lora and (spec.lora.rank, spec.lora.alpha, spec.lora.dropout),
            )
        )
    assert found[1] == found[0]


def test_the_fake_server_has_the_service_s_tables() -> None:
    assert {
        task.name: tuple(m.lower() for m in methods) for task, methods in METHODS_OF_TASK.items()
    } == dict(_specs.METHODS_OF_TASK)
    assert {task.name: dict(objectives) for task, objectives in KINDS.items()} == dict(_specs.KINDS_OF_TASK)
    assert dict(GENERATION_FIGURES) == dict(_specs.GENERATION_FIGURES)
    assert dict(FIGURES_OF_ROWS) == dict(_specs.FIGURES_OF_ROWS)
