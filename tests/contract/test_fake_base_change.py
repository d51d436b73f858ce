"""The fake server under another base, and jobs that are run again for it, with both clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from both_clients import open_client, write_rows
from finetuned import AdapterState
from finetuned.errors import AdapterIncompatible, InvalidField, NotFound
from finetuned.testing import FakeServer


@pytest.fixture
def job(fake_server: FakeServer, tmp_path: Path) -> str:
    """A finished TrainJob on the first base, after which the server holds another."""
    with open_client("sync", fake_server.endpoint) as client:
        client.datasets.upload(write_rows(tmp_path / "rows.jsonl"))
        name = client.train(dataset="rows", adapter="mine").name
        client.jobs.wait(name).check()
    fake_server.change_base("bases/second")
    return name


def test_adapters_of_the_old_base_are_listed_and_refused(client: Any, job: str) -> None:
    (adapter,) = client.adapters.list()
    assert adapter.state is AdapterState.INCOMPATIBLE
    assert client.server_info().base.digest in adapter.incompatible_reason
    assert list(client.adapters.versions("mine", compatible_only=True)) == []
    assert client.generate("hello", plain_base=True).served_by.base == "bases/second"
    for refused in (lambda: client.generate("hello", adapter="mine"), lambda: client.adapters.load("mine")):
        with pytest.raises(AdapterIncompatible) as told:
            refused()
        assert told.value.metadata["job"] == job
        assert told.value.metadata["server_base_digest"] == client.server_info().base.digest


def test_a_job_is_run_again_on_the_new_base(client: Any, job: str) -> None:
    again = client.jobs.rerun(job)
    assert (again.rerun_of, again.train.base, again.train.dataset) == (
        job,
        "bases/second",
        "tenants/a/datasets/rows",
    )
    client.jobs.wait(again.name).check()
    assert client.generate("hello", adapter="mine@2").text == "[mine@2] hello"
    assert [version.state for version in client.adapters.versions("mine")] == [
        AdapterState.READY,
        AdapterState.INCOMPATIBLE,
    ]


def test_the_old_base_can_come_back(client: Any, fake_server: FakeServer, job: str) -> None:
    fake_server.change_base("bases/fake")
    assert client.generate("hello", adapter="mine").text == "[mine@1] hello"
    assert client.jobs.rerun(job, base="second").train.base == "bases/second"


def test_what_cannot_be_run_again_is_refused(client: Any, job: str) -> None:
    with pytest.raises(NotFound):
        client.jobs.rerun("absent")
    with pytest.raises(NotFound):
        client.jobs.rerun(job, base="absent")
    with pytest.raises(InvalidField, match="a Quantize run"):
        client.jobs.rerun(client.quantize("INT8", "small").name)
