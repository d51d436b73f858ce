"""What load, leaving clients and probes see of a real server."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest
from finetuned import Client, GenerateRequest, RawText, Reply
from finetuned._retry import Deadlines, RetryPolicy
from finetuned.errors import DeadlineExceeded, InvalidField, QueueFull
from finetuned_service.engine.messages import Cancel, Command, Inspect, Snapshot, Submit
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tiny_server import TinyServer

LONG = {"max_tokens": 200, "ignore_eos": True}
PROMPT = RawText("one two three")


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.01)


def running(client: Client) -> int:
    return client.server_info().load.running_sequences


def test_client_gone_mid_stream_frees_its_place(client: Client) -> None:
    stream = client.stream(PROMPT, plain_base=True, **LONG)
    next(stream)
    assert running(client) == 1
    with stream:
        pass
    eventually(lambda: running(client) == 0)
    assert client.server_info().load.kv_tokens_used == 0


def test_channel_gone_mid_stream_frees_its_place(client: Client, server: TinyServer) -> None:
    other = Client(server.endpoint)
    next(other.stream(PROMPT, plain_base=True, **LONG))
    other.close()
    eventually(lambda: running(client) == 0)


@pytest.mark.parametrize("leave", ["the call is cancelled", "the channel is closed"])
def test_client_gone_mid_stream_frees_its_place_within_one_step(
    server: TinyServer, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    """The engine is asked what runs right before and right after it learns of the end."""
    engine = server.server.engine
    send = engine._send
    answers: list[asyncio.Future[Snapshot]] = []

    def inspect() -> None:
        answers.append(server.loop.create_future())
        engine._calls[-len(answers)] = answers[-1]
        send(Inspect(-len(answers)))

    def send_between_inspections(command: Command) -> None:
        if not isinstance(command, Cancel):
            send(command)
            return
        inspect()
        send(command)
        inspect()

    monkeypatch.setattr(engine, "_send", send_between_inspections)
    with Client(server.endpoint) as other:
        stream = other.stream(PROMPT, plain_base=True, **LONG)
        next(stream)
        (other.close if leave == "the channel is closed" else stream.close)()
        eventually(lambda: len(answers) == 2 and all(answer.done() for answer in answers))
    before, after = (answer.result() for answer in answers)
    assert (before.running_sequences, after.running_sequences) == (1, 0)
    assert after.kv_tokens_used == 0
    assert after.counters["steps"] - before.counters["steps"] <= 1


def test_a_deadline_travels_to_the_engine_and_its_refusal_back(
    client: Client, server: TinyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.server.engine
    send, submitted = engine._send, list[Submit]()

    def send_too_late(command: Command) -> None:
        if isinstance(command, Submit):
            submitted.append(command)
            command = dataclasses.replace(command, deadline_seconds=time.monotonic() - 1)
        send(command)

    monkeypatch.setattr(engine, "_send", send_too_late)
    before = time.monotonic()
    patient = Client(server.endpoint, deadlines=Deadlines(generate_seconds=100.0))
    with patient, pytest.raises(DeadlineExceeded, match="deadline") as refusal:
        patient.generate(PROMPT, plain_base=True, **LONG)
    assert refusal.value.metadata["stage"] == "QUEUE"
    assert submitted[0].deadline_seconds == pytest.approx(before + 100.0, abs=30.0)
    with Client(server.endpoint, deadlines=Deadlines(generate_seconds=100.0)) as other:
        (item,) = other.generate_many([GenerateRequest(PROMPT, plain_base=True)])
    assert isinstance(item, DeadlineExceeded)
    assert submitted[1].deadline_seconds is not None


def test_full_queue_is_refused_with_a_time_to_retry(client: Client, server: TinyServer) -> None:
    impatient = Client(server.endpoint, retry=RetryPolicy(attempts=1))
    with ExitStack() as streams, impatient:
        pool = streams.enter_context(ThreadPoolExecutor(16))
        opened: list[object] = []
        refused: list[QueueFull] = []

        def flood() -> None:
            try:
                opened.append(impatient.generate(PROMPT, plain_base=True, **LONG))
            except QueueFull as error:
                refused.append(error)

        list(pool.map(lambda _: flood(), range(16)))
        assert refused, "4 run and 4 wait; of 16 at once some must be refused"
        assert all(error.retry_after_seconds is not None for error in refused)
        assert len(opened) + len(refused) == 16
    eventually(lambda: running(client) == 0)


def test_batch_mixes_successes_and_failures(client: Client) -> None:
    replies = client.generate_many(
        [
            GenerateRequest(PROMPT, plain_base=True, max_tokens=4, ignore_eos=True),
            GenerateRequest(PROMPT, plain_base=True, max_tokens=0),
            *[GenerateRequest(PROMPT, plain_base=True, max_tokens=4, ignore_eos=True)] * 30,
        ]
    )
    assert isinstance(replies[1], InvalidField)
    texts = {reply.text for reply in (*replies[:1], *replies[2:]) if isinstance(reply, Reply)}
    assert len(texts) == 1


def test_same_seed_same_text_other_seed_other_text(client: Client) -> None:
    def sample(seed: int) -> str:
        return client.generate(
            PROMPT, plain_base=True, temperature=1.0, top_p=0.95, seed=seed, max_tokens=24, ignore_eos=True
        ).text

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_stop_string_ends_the_reply_and_is_left_out(client: Client) -> None:
    whole = client.generate(PROMPT, plain_base=True, max_tokens=40, ignore_eos=True)
    stop = whole.text[10:13]
    cut = client.generate(PROMPT, plain_base=True, max_tokens=40, ignore_eos=True, stop=[stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop) == ("STOP", stop)


def test_base_digest_is_the_same_after_everything(client: Client, server: TinyServer) -> None:
    info = client.server_info()
    assert info.resident_base_digest == info.base.digest
    import asyncio

    snapshot = asyncio.run_coroutine_threadsafe(
        server.server.engine.inspect(verify_base=True), server.loop
    ).result(timeout=60)
    assert snapshot.base_digest == info.base.digest


def test_health_has_a_name_for_each_part(server: TinyServer) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.server.health_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "serving", "training", "live"):
            eventually(
                lambda name=name: (
                    stub.Check(health_pb2.HealthCheckRequest(service=name)).status
                    == health_pb2.HealthCheckResponse.SERVING
                )
            )


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    def ask() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(ask())
    names = {service.name for service in answer.list_services_response.service}
    assert {f"finetuned.v1.{n}Service" for n in ("Tuning", "Serving", "Dataset", "Adapter", "Base")} <= names


def test_metrics_tell_what_happened(client: Client, server: TinyServer) -> None:
    client.generate(PROMPT, plain_base=True, max_tokens=4, ignore_eos=True)

    def scraped() -> dict[str, float]:
        with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    eventually(lambda: scraped().get("finetuned_engine_decode_tokens_total", 0) >= 4)
    found = scraped()
    assert found['finetuned_sequences_total{finish="length",model="base"}'] >= 1
    assert found['finetuned_rpcs_total{code="OK",method="ServeAdapter"}'] >= 1
    assert found["finetuned_engine_up"] == 1
    assert found['finetuned_memory_bytes{use="base"}'] > 0
