"""One base on a GPU for server and jobs: a job process opens what the engine holds (CUDA IPC)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from finetuned import Client, JobState, JobStateReason, Lora, Optimization
from finetuned_service.bases.device import resolve_device
from finetuned_service.bases.lender import Lender
from finetuned_service.bases.load import load_base
from finetuned_service.bases.resident import share
from finetuned_service.text.tokenizer import BaseTokenizer
from peft import PeftModel
from served_oracle import PROMPT, ask, check_against_oracle
from tiny_models import load_plain, peft_warnings_allowed, save_tiny_base
from tiny_server import TinyServer, make_data_directory, running

pytestmark = pytest.mark.gpu

OPEN = """
import json, sys, torch
from pathlib import Path
from finetuned_service.bases.device import resolve_device
from finetuned_service.bases.load import load_base
from finetuned_service.bases.lender import Lender
from finetuned_service.bases.resident import RESIDENT
from finetuned_service.bases.shared_tensor import SharedTensor

base, told = Path(sys.argv[1]), json.loads(sys.stdin.read())
shared = [SharedTensor.model_validate(tensor) for tensor in told["shared"]]
RESIDENT.open(base, shared, Lender.model_validate(told["lender"]))
model = load_base(base, device=resolve_device("cuda"))
print(json.dumps({
    "own": torch.cuda.memory_allocated(),
    "sums": {name: parameter.double().sum().item() for name, parameter in model.named_parameters()},
}))
"""


def test_another_process_computes_with_the_tensors_that_this_one_holds(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base", hidden_size=576, intermediate_size=1024)
    held = load_base(base, device=resolve_device("cuda"))
    with torch.no_grad():
        # Not what the file says: who read it would be found out.
        for parameter in held.parameters():
            parameter.add_(1.0)
    told = {
        "shared": [tensor.model_dump(mode="json") for tensor in share(held.named_parameters())],
        "lender": Lender.this_process().model_dump(mode="json"),
    }
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(base)],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, parameter in held.named_parameters():
        assert found["sums"][name] == pytest.approx(parameter.double().sum().item(), rel=1e-12)
    assert found["own"] < sum(parameter.nbytes for parameter in held.parameters()) / 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    directory = tmp_path_factory.mktemp("gpu")
    make_data_directory(directory)
    with running(directory / "data", device="cuda") as found:
        yield found


@pytest.fixture
def client(server: TinyServer, tmp_path: Path) -> Iterator[Client]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n} it is"}}\n' for n in range(20)))
    with Client(server.endpoint) as connected:
        connected.datasets.upload(rows, "rows")
        yield connected


def test_a_job_trains_on_the_base_of_its_server_and_its_adapter_is_served(
    server: TinyServer, client: Client
) -> None:
    assert client.server_info().device == "cuda"
    job = client.train(
        dataset="rows",
        adapter="counting",
        lora=Lora(rank=4),
        optimization=Optimization(max_steps=4, batch_rows=4, learning_rate=2e-2),
    )
    done = client.jobs.wait(job.name, timeout_seconds=300).check()
    task = json.loads(
        (server.data_directory / "jobs" / job.name.rpartition("/")[2] / "task.json").read_text()
    )
    assert len(task["resident"]) > 10
    assert "could not be opened" not in (server.data_directory / "finetuned.db").read_bytes().decode(
        "latin-1"
    )
    assert done.environment
    assert done.environment.instruction_set.startswith("NVIDIA")
    prompt = BaseTokenizer.load(server.base_directory).encode(PROMPT.text, add_special_tokens=True)
    export = server.data_directory / "exported"
    client.adapters.export("counting", export)
    plain = load_plain(server.base_directory)
    with peft_warnings_allowed():
        model = PeftModel.from_pretrained(load_plain(server.base_directory), str(export)).eval()
    check_against_oracle(ask(client, None), plain, prompt)
    check_against_oracle(ask(client, "counting"), model, prompt)


def test_a_job_ends_with_the_engine_that_lent_it_the_base_and_goes_on_with_the_next(
    server: TinyServer, client: Client
) -> None:
    job = client.train(
        dataset="rows",
        adapter="endless",
        lora=Lora(rank=4),
        optimization=Optimization(max_steps=100_000, batch_rows=4, checkpoint_interval_steps=10),
    )
    try:
        events = client.jobs.watch(job.name)
        next(event for event in events if event.checkpoint is not None)
        engine = server.server.engine.process_id
        assert engine is not None
        os.kill(engine, signal.SIGKILL)
        states = (event.state for event in events if event.state is not None)
        queued = next(states)
        assert (queued.state, queued.reason) == (JobState.QUEUED, JobStateReason.ENGINE_ENDED)
        assert (next(states).state, queued.attempt) == (JobState.RUNNING, 2)
        next(event for event in events if event.checkpoint is not None)
        notices = [event.notice.text for event in client.jobs.events(job.name) if event.notice is not None]
        assert any("goes on from the checkpoint after step" in text for text in notices)
        assert not any("could not be opened" in text for text in notices)
    finally:
        client.jobs.cancel(job.name)


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(Exception, match=r"'cuda:99'.*'cuda:0'"):
        resolve_device("cuda:99")
