"""A data directory under another base: it serves at once, and what was made for the old one is made again."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from finetuned import AdapterState, Client, DataOptions, EvaluationOptions, Job, Lora, Optimization
from finetuned.errors import (
    AdapterIncompatible,
    InvalidField,
    NotFound,
    RerunRefused,
)
from finetuned.v1 import job_pb2, tuning_service_pb2, tuning_service_pb2_grpc
from tiny_bases import make_tiny_base
from tiny_models import save_tiny_adapter
from tiny_server import TinyServer, make_data_directory, running

WAIT_SECONDS = 180.0
OLD_CONTEXT, NEW_CONTEXT = 256, 128


def write_rows(path: Path, word: str) -> Path:
    path.write_text("".join(f'{{"prompt": "{word} {n}", "completion": "{n} it is"}}\n' for n in range(20)))
    return path


def train(client: Client, **settings: object) -> Job:
    """With a rank of its own; learning rate, modules and row length are left to the base."""
    return client.train(
        dataset="rows",
        adapter="taught",
        lora=Lora(rank=2),
        optimization=Optimization(max_steps=2, batch_rows=4),
        evaluation=EvaluationOptions(evaluations=1, generation_rows=2, generation_max_tokens=4),
        **settings,  # type: ignore[arg-type]
    )


def finished(client: Client, job: Job) -> Job:
    return client.jobs.wait(job.name, timeout_seconds=WAIT_SECONDS).check()


def import_random(client: Client, server: TinyServer, directory: Path) -> None:
    made = save_tiny_adapter(directory, server.base_directory, seed=3, rank=2).directory
    client.adapters.import_directory(made, "brought", expected_base_digest=client.server_info().base.digest)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job]:
    """A data directory that served `tiny`, with a trained and an imported adapter, and holds `other` too."""
    directory = tmp_path_factory.mktemp("changed")
    make_data_directory(directory)
    make_tiny_base(
        directory / "data" / "bases" / "other",
        seed=1,
        hidden_size=96,
        num_attention_heads=12,
        max_position_embeddings=NEW_CONTEXT,
    )
    with running(directory / "data") as server, Client(server.endpoint) as client:
        client.datasets.upload(write_rows(directory / "rows.jsonl", "say"), "rows")
        job = finished(client, train(client))
        import_random(client, server, directory / "brought")
        assert client.adapters.get("taught").state is AdapterState.READY
    return directory, job


def test_the_new_base_serves_and_the_record_makes_a_version_for_it(old: tuple[Path, Job]) -> None:
    directory, job = old
    with running(directory / "data", base="other") as server, Client(server.endpoint) as client:
        bases = {base.name: base for base in client.bases.list()}
        old_digest, new_digest = bases["bases/tiny"].digest, bases["bases/other"].digest
        assert bases["bases/other"].resident

        served = client.generate("say 3", plain_base=True, max_tokens=4).served_by
        assert served.base_digest == new_digest

        for adapter in client.adapters.list():
            assert adapter.state is AdapterState.INCOMPATIBLE
            assert old_digest in adapter.incompatible_reason
            assert new_digest in adapter.incompatible_reason
            assert adapter.aliases[0].version == f"{adapter.name}/versions/1"
        with pytest.raises(AdapterIncompatible, match=f"jobs rerun {job.name.rsplit('/', 1)[-1]}'") as told:
            client.generate("say 3", adapter="taught", max_tokens=4)
        assert told.value.metadata == {
            "adapter_base_digest": old_digest,
            "server_base_digest": new_digest,
            "job": job.name,
        }
        with pytest.raises(AdapterIncompatible, match="Train it, or import one, for this base"):
            client.generate("say 3", adapter="brought", max_tokens=4)
        with pytest.raises(AdapterIncompatible):
            client.adapters.load("taught")

        again = finished(client, client.jobs.rerun(job.name))
        assert again.rerun_of == job.name
        assert job.train is not None
        assert again.train is not None
        assert again.train.lora is not None
        assert (again.train.base, again.train.lora.rank) == ("bases/other", 2)
        assert again.train.optimization != job.train.optimization  # a wider base has another learning rate
        assert job.train.data == DataOptions(
            holdout_fraction=0.1, max_row_tokens=OLD_CONTEXT, long_rows=job.train.data.long_rows
        )
        assert again.train.data == DataOptions(
            holdout_fraction=0.1, max_row_tokens=NEW_CONTEXT, long_rows=job.train.data.long_rows
        )

        newest, oldest = client.adapters.versions("taught")
        assert (newest.base_digest, newest.state) == (new_digest, AdapterState.READY)
        assert (oldest.base_digest, oldest.state) == (old_digest, AdapterState.INCOMPATIBLE)
        assert client.adapters.get("taught").state is AdapterState.INCOMPATIBLE  # `default` has not moved
        client.adapters.set_alias("taught@default", newest.name)
        assert client.adapters.get("taught").state is AdapterState.READY
        served = client.generate("say 3", adapter="taught", max_tokens=4).served_by
        assert (served.adapter_version, served.base_digest) == (newest.name, new_digest)

        # And the other way, before a server of the old base is started again.
        back = finished(client, client.jobs.rerun(again.name, base="tiny"))
        assert back.train == job.train
        newest = client.adapters.version("taught@3")
        assert (newest.base_digest, newest.state) == (old_digest, AdapterState.INCOMPATIBLE)


def test_what_cannot_be_run_again_is_refused_and_leaves_no_job(old: tuple[Path, Job], tmp_path: Path) -> None:
    directory, job = old
    with (
        running(directory / "data", base="other", run_jobs=False) as server,
        Client(server.endpoint) as client,
    ):
        jobs = [one.name for one in client.jobs.list()]
        with pytest.raises(NotFound, match="'bases/absent' does not exist"):
            client.jobs.rerun(job.name, base="absent")
        with pytest.raises(NotFound, match="jobs/absent"):
            client.jobs.rerun("absent")
        with grpc.insecure_channel(server.endpoint) as channel, pytest.raises(grpc.RpcError) as mixed:
            tuning_service_pb2_grpc.TuningServiceStub(channel).TrainJob(
                tuning_service_pb2.TrainJobRequest(
                    parent="tenants/default",
                    rerun_of=job.name,
                    spec=job_pb2.TrainSpec(dataset="tenants/default/datasets/rows"),
                )
            )
        assert "spec.dataset: is set beside rerun_of" in mixed.value.details()  # type: ignore[attr-defined]

        assert client.jobs.rerun(job.name, validate_only=True).name == ""
        client.datasets.delete("rows")
        with pytest.raises(NotFound, match="datasets/rows"):
            client.jobs.rerun(job.name)
        client.datasets.upload(write_rows(tmp_path / "others.jsonl", "tell"), "rows")
        with pytest.raises(RerunRefused, match="Upload those rows again") as changed:
            client.jobs.rerun(job.name)
        assert changed.value.metadata["recorded_digest"] == job.environment.dataset_digest  # type: ignore[union-attr]
        assert [one.name for one in client.jobs.list()] == jobs

        quantize = client.quantize("INT8", "small")
        with pytest.raises(InvalidField, match=r"rerun_of: is .*a Quantize run"):
            client.jobs.rerun(quantize.name)
        client.jobs.cancel(quantize.name)
