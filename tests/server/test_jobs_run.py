"""TrainJobs and Quantize through a real server: processes, restarts, kills."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest
import torch
from finetuned import (
    Client,
    Job,
    JobState,
    PromoteIf,
)
from finetuned.errors import JobStateConflict
from served_jobs import eventually, finished, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_server import TinyServer, make_data_directory, running


def test_train_serve_repeat(client: Client, tmp_rows: Path, tmp_path: Path) -> None:
    client.datasets.upload(tmp_rows, "repeat")
    job = finished(client, start(client, "repeat", "repeat")).check()
    assert job.train_result is not None
    assert job.train_result.version.endswith("/adapters/repeat/versions/1")
    assert {m.name for m in job.metrics} >= {"loss", "exact_match"}
    assert {m.name for m in job.baseline_metrics} >= {"loss", "exact_match"}
    assert job.environment is not None
    assert job.environment.base_digest == client.server_info().base.digest
    assert (job.environment.compute_dtype, job.environment.trained_dtype) == ("float32", "float32")
    assert job.estimate is not None
    assert (job.estimate.steps, job.estimate.basis) == (6, "MEASURED")
    assert 0 < job.estimate.runtime_memory_bytes < job.estimate.memory_bytes
    assert job.usage is not None
    assert job.usage.memory_bytes > job.estimate.runtime_memory_bytes
    # Nothing timed is asserted; a model so small leaves the memory to the runtime.
    assert job.usage.memory_error == pytest.approx(0, abs=0.3)
    assert job.usage.duration_error is not None
    served = client.generate("say 3", adapter="repeat", max_tokens=4).served_by
    assert (served.adapter_version, served.adapter_digest) == (
        job.train_result.version,
        job.train_result.digest,
    )
    events = list(client.jobs.events(job.name))
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [e.state.state for e in events if e.state] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert any(event.evaluation for event in events)
    with pytest.raises(JobStateConflict) as caught:
        client.jobs.cancel(job.name)
    assert caught.value.metadata["state"] == "SUCCEEDED"
    _check_tensorboard(client, job, tmp_path)

    again = finished(client, start(client, "repeat", "repeat")).check()
    assert again.train_result is not None
    assert again.train_result.digest == job.train_result.digest
    assert again.train_result.version.endswith("/versions/2")


def _check_tensorboard(client: Client, job: Job, directory: Path) -> None:
    """What a remote user downloads is what TensorBoard itself reads as the job's figures."""
    logs = client.jobs.tensorboard(job.name, directory / "logs")
    assert logs.directory == str(directory / "logs" / job.name.rpartition("/")[2])
    read = EventAccumulator(logs.directory).Reload()
    scalars = {
        tag: {event.step: event.value for event in read.Scalars(tag)} for tag in read.Tags()["scalars"]
    }
    assert set(scalars["train/loss"]) == {1, 2, 3, 4, 5, 6}
    told = [e.progress for e in client.jobs.events(job.name) if e.progress and e.progress.phase == "training"]
    for progress in told:
        if progress.step:
            assert scalars["train/loss"][progress.step] == pytest.approx(progress.loss)
            assert scalars["train/learning_rate"][progress.step] == pytest.approx(progress.learning_rate)
    assert scalars["heldout/loss"].keys() <= set(range(1, 7))
    for group, metrics in (("baseline", job.baseline_metrics), ("result", job.metrics)):
        for metric in metrics:
            assert list(scalars[f"{group}/{metric.name}"].values()) == [pytest.approx(metric.value)]


def test_alias_moves_only_for_a_better_score(client: Client, tmp_rows: Path) -> None:
    client.datasets.upload(tmp_rows, "promoted")
    first = finished(client, start(client, "promoted", "promoted", steps=4)).check()
    better = PromoteIf(alias="default", metric="loss", better_than_current=True)
    same = finished(client, start(client, "promoted", "promoted", steps=4, promote_if=better)).check()
    assert same.train_result is not None
    assert same.train_result.promoted is False
    assert "not moved" in same.train_result.promotion
    longer = finished(client, start(client, "promoted", "promoted", steps=30, promote_if=better)).check()
    assert longer.train_result is not None
    assert longer.train_result.promoted is True
    assert client.adapters.alias("promoted@default").version == longer.train_result.version
    assert first.train_result is not None
    assert client.adapters.alias("promoted@default").previous_version == first.train_result.version


def test_cancel_while_running(client: Client, tmp_rows: Path) -> None:
    client.datasets.upload(tmp_rows, "cancelled")
    job = start(client, "cancelled", "cancelled", steps=100_000)
    eventually(lambda: (p := client.jobs.get(job.name).progress) is not None and p.step > 0)
    client.jobs.cancel(job.name)
    done = finished(client, job)
    assert done.state is JobState.CANCELLED
    assert [version.name for version in _versions(client, "cancelled")] == []


def _versions(client: Client, adapter: str) -> list[object]:
    from finetuned.errors import NotFound

    try:
        return list(client.adapters.versions(adapter))
    except NotFound:
        return []


def test_killed_process_goes_on_from_its_checkpoint(
    client: Client, server: TinyServer, tmp_rows: Path
) -> None:
    client.datasets.upload(tmp_rows, "killed")
    whole = finished(client, start(client, "killed", "killed-not", steps=400, every=20)).check()
    job = start(client, "killed", "killed", steps=400, every=20)
    eventually(lambda: len(client.jobs.get(job.name).checkpoints) > 0)
    os.kill(_job_process(job), signal.SIGKILL)
    done = finished(client, job).check()
    assert done.attempt == 2
    assert done.train_result is not None
    assert whole.train_result is not None
    assert done.train_result.digest == whole.train_result.digest
    assert client.generate("say 3", plain_base=True, max_tokens=2).text is not None


def _job_process(job: Job) -> int:
    """The process whose command line names the job's task."""
    job_id = job.name.rsplit("/", 1)[-1]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"/{job_id}/task.json".encode() in command:
                return int(entry.name)
    raise AssertionError("no process runs the job")


def test_restarted_server_goes_on_with_a_running_job(tmp_path: Path, tmp_rows: Path) -> None:
    make_data_directory(tmp_path)
    with running(tmp_path / "data") as server, Client(server.endpoint) as client:
        client.datasets.upload(tmp_rows, "rows")
        job = start(client, "rows", "restarted", steps=600, every=20)
        eventually(lambda: len(client.jobs.get(job.name).checkpoints) > 0)
        before = client.jobs.get(job.name).last_event
    with running(tmp_path / "data") as server, Client(server.endpoint) as client:
        done = finished(client, job).check()
        events = list(client.jobs.events(job.name))
        states = [event.state.state for event in events if event.state]
        assert states[:3] == ["QUEUED", "RUNNING", "QUEUED"]
        assert done.last_event > before
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert client.generate("say 3", adapter="restarted", max_tokens=2).served_by.modules == 14


def test_quantize_makes_a_base_with_a_report(client: Client) -> None:
    job = finished(client, client.quantize("INT8", "tiny-int8")).check()
    assert job.quantize_result is not None
    report = job.quantize_result.report
    assert report.quantized_bytes < report.source_bytes
    assert report.quantized_perplexity > 0
    names = {base.name: base for base in client.bases.list()}
    assert names[job.quantize_result.base].weight_format == "INT8"
    assert names["bases/tiny"].resident is True
    client.bases.delete(job.quantize_result.base)
    assert job.quantize_result.base not in {base.name for base in client.bases.list()}


@pytest.mark.parametrize("weight_format", ["INT8", "NF4"])
def test_quantized_base_is_served_as_transformers_serves_it(tmp_path: Path, weight_format: str) -> None:
    """Over weights unpacked by hand; their blocks go on from one row into the next."""
    from finetuned import RawText
    from finetuned_service.text.tokenizer import BaseTokenizer
    from packed_oracle import unpacked_model
    from tiny_models import oracle_tokens

    source = make_data_directory(tmp_path)
    with running(tmp_path / "data") as server, Client(server.endpoint) as client:
        job = finished(client, client.quantize(weight_format, "packed")).check()
    assert job.quantize_result is not None
    directory = tmp_path / "data" / job.quantize_result.base
    with (
        running(tmp_path / "data", base=job.quantize_result.base) as server,
        Client(server.endpoint) as client,
    ):
        info = client.server_info()
        assert info.resident_base_digest == job.quantize_result.digest
        reply = client.generate(RawText("one two three"), plain_base=True, max_tokens=12, ignore_eos=True)
    prompt = BaseTokenizer.load(directory).encode("one two three", add_special_tokens=True)
    plain = unpacked_model(source, directory, torch.float32)
    assert list(reply.token_ids) == oracle_tokens(plain, prompt, 12)


def test_results_fit_the_place_that_their_jobs_held(server: TinyServer, tmp_rows: Path) -> None:
    """Or a tenant would come to have more than its limit allows."""

    def stored_bytes(client: Client) -> int:
        return next(item.used for item in client.usage().limits if item.limit == "storage_bytes")

    with Client(server.endpoint, tenant="holds") as client:
        client.datasets.upload(tmp_rows, "rows")
        for begin in (
            lambda: start(client, "rows", "mine"),
            lambda: client.quantize("INT8", "mine-int8"),
            lambda: client.quantize("NF4", "mine-nf4"),
        ):
            before = stored_bytes(client)
            job = finished(client, begin()).check()
            with sqlite3.connect(server.data_directory / "finetuned.db") as raw:
                query = "SELECT reserved_bytes FROM jobs WHERE id = ?"
                ((held,),) = raw.execute(query, (job.name.rpartition("/")[2],)).fetchall()
            raw.close()
            assert 0 < stored_bytes(client) - before <= held
