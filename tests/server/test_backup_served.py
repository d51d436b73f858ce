"""A backup of a server at work, restored to a server that answers with its adapter."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetuned import Client, RawText
from finetuned_service import __main__ as service
from tiny_models import save_tiny_adapter
from tiny_server import TinyServer, make_data_directory, running

PROMPT = RawText("what is kept?")


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    """A server with an adapter `kept`, whose jobs wait."""
    directory = tmp_path_factory.mktemp("busy")
    make_data_directory(directory)
    with running(directory / "data", run_jobs=False) as server, Client(server.endpoint) as client:
        made = save_tiny_adapter(directory / "a", server.base_directory, seed=1, rank=4).directory
        client.adapters.import_directory(made, "kept", expected_base_digest=client.server_info().base.digest)
        rows = directory / "rows.jsonl"
        rows.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n} it is"}}\n' for n in range(20)))
        client.datasets.upload(rows, "rows")
        yield server


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert service.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_backup_taken_at_work_becomes_a_server_that_answers_the_same(
    busy: TinyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, copy, new = busy.data_directory, tmp_path / "backup", tmp_path / "new"
    stop, faults, created = threading.Event(), [], []

    def work(step) -> None:
        try:
            with Client(busy.endpoint) as client:
                while not stop.is_set():
                    step(client)
        except Exception as error:  # noqa: BLE001 - told by the test
            faults.append(error)

    def create(client: Client) -> None:
        created.append(client.train(dataset="rows", adapter="later").name)
        client.jobs.cancel(created[-1])

    def ask(client: Client) -> None:
        client.generate(PROMPT, adapter="kept", max_tokens=4)

    threads = [threading.Thread(target=work, args=(step,)) for step in (create, ask)]
    for thread in threads:
        thread.start()
    made = printed(capsys, "backup", str(copy), "--data-dir", str(data))
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert created
    assert (made["datasets"], made["adapter_versions"], made["bases"]) == (1, 1, 1)

    restored = printed(capsys, "restore", str(copy), "--data-dir", str(new))
    assert restored == made | {"directory": str(new)}
    with Client(busy.endpoint) as client:
        before = client.generate(PROMPT, adapter="kept", max_tokens=8, ignore_eos=True)
    with running(new, run_jobs=False) as server, Client(server.endpoint) as client:
        after = client.generate(PROMPT, adapter="kept", max_tokens=8, ignore_eos=True)
        assert (after.text, after.served_by.adapter_digest) == (before.text, before.served_by.adapter_digest)
        assert client.datasets.get("rows").rows == 20
        names = {job.name for job in client.jobs.list()}
        assert len(names) == made["jobs"]
        assert names <= set(created)


def test_a_server_that_runs_is_only_looked_at(busy: TinyServer, capsys: pytest.CaptureFixture[str]) -> None:
    busy.until_swept()
    data = str(busy.data_directory)
    stray = busy.data_directory / "datasets" / f"{'f' * 64}.jsonl"
    stray.write_text("left by a crash")
    item = {"kind": "dataset file", "name": f"datasets/{stray.name}", "size_bytes": 15}
    told = printed(capsys, "gc", "--dry-run", "--data-dir", data)
    assert told == {"dry_run": True, "count": 1, "size_bytes": 15, "items": [item]}
    from finetuned_service.storage.directory import holding

    with holding(busy.data_directory):
        assert service.main(["gc", "--data-dir", data]) == 1
    assert "it sweeps by itself. Stop it to collect now, or look with --dry-run" in capsys.readouterr().err
    assert stray.exists()
    # The server of these tests does not hold its directory, so that this does what a stopped one allows.
    told = printed(capsys, "gc", "--data-dir", data)
    assert told == {"dry_run": False, "count": 1, "size_bytes": 15, "items": [item]}
    assert not stray.exists()
