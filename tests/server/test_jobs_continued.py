"""TrainJobs that go on from a version, or from what a diverged job has kept, through a real server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from finetuned import Client, EvaluationOptions, JobState, LearningRateSchedule, Lora, Metric, Optimization
from finetuned.errors import AdapterIncompatible, InvalidField, NotFound
from finetuned_service.bases.manifest import MANIFEST_FILE, read_manifest, write_manifest
from served_jobs import finished, start
from tiny_server import TinyServer, make_data_directory, running


def heldout_loss(metrics: tuple[Metric, ...]) -> float:
    return next(metric.value for metric in metrics if metric.name == "loss")


def test_training_goes_on_from_a_version(client: Client, tmp_rows: Path) -> None:
    client.datasets.upload(tmp_rows, "continued")
    first = finished(client, start(client, "continued", "continued", steps=30)).check()
    assert first.train_result is not None
    # So small a step changes nothing: what is measured is where training begins.
    job = client.train(
        dataset="continued",
        adapter="continued",
        lora=Lora(),
        continue_from="continued@default",
        optimization=Optimization(max_steps=1, batch_rows=4, learning_rate=1e-9),
        evaluation=EvaluationOptions(evaluations=0, generation_rows=0),
    )
    assert job.train is not None
    assert job.train.continue_from == first.train_result.version
    assert job.train.lora is not None
    assert (job.train.lora.rank, job.train.lora.alpha) == (4, 8.0)
    done = finished(client, job).check()
    assert heldout_loss(done.metrics) == pytest.approx(heldout_loss(first.metrics), rel=1e-3)
    assert heldout_loss(done.metrics) < heldout_loss(done.baseline_metrics)
    made = client.adapters.version("continued@2")
    assert made.lineage.parent_version == first.train_result.version
    assert client.adapters.version("continued@1").lineage.parent_version == ""


def test_what_cannot_be_continued_is_refused_before_the_job_is_there(client: Client, tmp_rows: Path) -> None:
    client.datasets.upload(tmp_rows, "refused")
    job = finished(client, start(client, "refused", "refused", steps=2)).check()
    known = len(list(client.jobs.list()))
    refusals = {
        "spec.lora.rank: is 8; tenants/default/adapters/refused/versions/1 has 4": {"lora": Lora(rank=8)},
        "spec.lora.alpha: is 3.0": {"lora": Lora(alpha=3.0)},
        "spec.lora.target_modules: is ('q_proj',)": {"lora": Lora(target_modules=("q_proj",))},
        "spec.lora.rank_stabilized: is True": {"lora": Lora(rank_stabilized=True)},
        "and has kept no checkpoint; jobs whose loss diverged do": {"continue_from": job.name},
    }
    for message, settings in refusals.items():
        with pytest.raises(InvalidField) as refused:
            start(client, "refused", "refused", **{"continue_from": "refused@1", **settings})
        assert message in refused.value.message
    for missing in (
        "refused@7",
        "absent@1",
        "tenants/default/jobs/absent",
        "tenants/other/adapters/a/versions/1",
    ):
        with pytest.raises(NotFound):
            start(client, "refused", "refused", continue_from=missing)
    assert len(list(client.jobs.list())) == known


def test_an_adapter_of_another_base_is_refused_with_both_digests(tmp_path: Path, tmp_rows: Path) -> None:
    make_data_directory(tmp_path)
    other = make_data_directory(tmp_path / "other", seed=7)
    copied = shutil.copytree(other, tmp_path / "data" / "bases" / "other")
    manifest = read_manifest(copied)
    (copied / MANIFEST_FILE).unlink()
    write_manifest(copied, manifest.model_copy(update={"name": "bases/other"}))
    with running(tmp_path / "data") as server, Client(server.endpoint) as client:
        client.datasets.upload(tmp_rows, "rows")
        finished(client, start(client, "rows", "mine", steps=2)).check()
        digests = {base.name: base.digest for base in client.bases.list()}
        with pytest.raises(AdapterIncompatible) as refused:
            start(client, "rows", "mine", base="other", continue_from="mine@1")
        assert refused.value.metadata == {
            "adapter_base_digest": digests["bases/tiny"],
            "server_base_digest": digests["bases/other"],
        }


def test_a_diverged_job_says_where_and_its_last_good_checkpoint_can_be_continued(
    client: Client, server: TinyServer, tmp_rows: Path
) -> None:
    client.datasets.upload(tmp_rows, "diverged")
    wild = Optimization(
        max_steps=40,
        batch_rows=4,
        learning_rate=1.0,
        max_gradient_norm=0.0,
        schedule=LearningRateSchedule.CONSTANT,
        warmup_fraction=0.0,
        checkpoint_interval_steps=1,
    )
    # Keys and queries this large have products whose gradient is infinite.
    lora = Lora(rank=4, alpha=1e9, target_modules=("q_proj", "k_proj"))
    job = finished(client, client.train(dataset="diverged", adapter="diverged", lora=lora, optimization=wild))
    assert (job.state, job.fault) == (JobState.FAILED, "USER")
    assert job.error is not None
    assert job.error.reason == "TRAINING_DIVERGED"
    assert int(job.error.metadata["step"]) > int(job.error.metadata["last_good_step"]) > 0
    assert job.error.metadata["continue_from"] == job.name
    files = server.data_directory / "jobs" / job.name.rpartition("/")[2]
    assert sorted(path.name for path in files.iterdir()) == ["last-good", "log", "task.json", "tensorboard"]
    tame = start(client, "diverged", "diverged", lora=Lora(), continue_from=job.name, steps=1)
    assert tame.train is not None
    assert tame.train.continue_from == job.name
    assert finished(client, tame).state.final
    client.jobs.delete(job.name)
    assert not files.exists()
