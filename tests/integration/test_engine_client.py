"""The engine process and its client: streams, cancellation, refusals, death and restart."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys

import pytest
import pytest_asyncio
from finetuned_service.bases.manifest import describe_base, write_manifest
from finetuned_service.engine.client import EngineClient
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import (
    AdapterHandle,
    FinishReason,
    Residency,
    Sampling,
    Started,
    Tokens,
)
from finetuned_service.errors import (
    Internal,
    InvalidAdapterFiles,
    InvalidField,
    NotFound,
    PromptTooLong,
    QueueFull,
    Unavailable,
)
from finetuned_service.names import BaseName
from finetuned_service.vocabulary import WeightFormat
from tiny_models import (
    CONTEXT_TOKENS,
    load_peft,
    oracle_tokens,
    random_prompt,
    save_tiny_adapter,
    save_tiny_base,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = random_prompt(1, 12)
LONG = Sampling(max_new_tokens=200, ignore_eos=True)
SHORT = Sampling(max_new_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = save_tiny_base(tmp_path_factory.mktemp("base"))
    manifest = describe_base(
        directory, name=BaseName("tiny"), weight_format=WeightFormat.FP32, source="random"
    )
    write_manifest(directory, manifest)
    return directory


@pytest.fixture(scope="module")
def config(base):
    return EngineConfig(
        base_directory=str(base),
        max_running_sequences=4,
        max_queued_sequences=2,
        kv_capacity_tokens=2048,
        device_budget_bytes=1 << 20,
        host_budget_bytes=1 << 22,
        verify_base=True,
        log_level="error",
    )


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return save_tiny_adapter(tmp_path_factory.mktemp("adapter"), base, seed=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(config):
    client = await EngineClient.start(config)
    yield client
    await client.shutdown(0.0)


async def collect(stream):
    events = [event async for event in stream]
    return [token_id for event in events if isinstance(event, Tokens) for token_id in event.token_ids]


async def test_ready_tells_what_is_held(client, base):
    from finetuned_service.bases.manifest import read_manifest

    assert read_manifest(base).digest == client.ready.base_digest
    assert (client.ready.context_tokens, client.ready.device) == (CONTEXT_TOKENS, "cpu")
    assert client.alive
    assert client.ready.base_digest == (await client.inspect(verify_base=True)).base_digest


async def test_replies_are_pefts_for_adapter_and_base_at_once(client, base, adapter):
    streams = [client.submit(PROMPT, handle, SHORT) for handle in (adapter.handle, None)]
    actual = await asyncio.gather(*map(collect, streams))
    expected = [oracle_tokens(load_peft(base, a), PROMPT, 6) for a in (adapter, None)]
    assert expected == list(actual)


async def test_events_come_in_order_and_end_with_a_reason(client, adapter):
    events = [event async for event in client.submit(PROMPT, adapter.handle, SHORT)]
    assert isinstance(events[0], Started)
    assert events[0].modules_changed == 14
    *before, last = events[1:]  # tokens that came while the reader was busy share an event
    assert {event.finish for event in before} <= {None}
    assert last.finish is FinishReason.LENGTH
    assert sum(len(event.token_ids) for event in events[1:]) == 6
    assert [event.prefill_seconds > 0 for event in events[1:]] == [True] + [False] * (len(events) - 2)
    assert events[-1].decode_seconds > 0


async def test_leaving_a_stream_frees_its_place(client):
    async with client.submit(PROMPT, None, LONG) as stream:
        await anext(stream)
        assert (await client.inspect()).running_sequences == 1
    snapshot = await client.inspect()
    assert (snapshot.running_sequences, snapshot.kv_tokens_used) == (0, 0)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_cancelled_reader_frees_its_place(client):
    stream = client.submit(PROMPT, None, dataclasses.replace(LONG, max_new_tokens=240))
    started = asyncio.Event()

    async def read():
        async for _ in stream:
            started.set()

    reader = asyncio.create_task(read())
    await started.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert (await client.inspect()).running_sequences == 0


async def test_more_requests_than_places_are_refused_at_once(client):
    streams = [client.submit(PROMPT, None, LONG, "greedy") for _ in range(5)]
    with pytest.raises(QueueFull, match="for other tenants") as refusal:
        client.submit(PROMPT, None, LONG, "greedy")
    assert refusal.value.retry_after_seconds is not None
    streams.append(client.submit(PROMPT, None, LONG, "other"))
    with pytest.raises(QueueFull, match="the most this server takes"):
        client.submit(PROMPT, None, LONG, "third")
    for stream in streams:
        await stream.aclose()
    assert len(await collect(client.submit(PROMPT, None, SHORT))) == 6


@pytest.mark.parametrize(
    ("prompt", "sampling", "error"),
    [
        ((), SHORT, InvalidField),
        ((5, 97), SHORT, InvalidField),
        ((5, -1), SHORT, InvalidField),
        ((5,), Sampling(max_new_tokens=0), InvalidField),
        ((5,) * CONTEXT_TOKENS, SHORT, PromptTooLong),
    ],
)
async def test_what_cannot_run_is_refused_alone(client, prompt, sampling, error):
    good = client.submit(PROMPT, None, SHORT)
    with pytest.raises(error):
        await collect(client.submit(prompt, None, sampling))
    assert len(await collect(good)) == 6


async def test_an_adapter_that_cannot_be_read_fails_its_requests_only(client, tmp_path):
    good = client.submit(PROMPT, None, SHORT)
    with pytest.raises(Unavailable):
        await collect(client.submit(PROMPT, AdapterHandle("sha256:none", str(tmp_path / "none")), SHORT))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InvalidAdapterFiles):
        await collect(client.submit(PROMPT, AdapterHandle("sha256:bad", str(tmp_path)), SHORT))
    assert len(await collect(good)) == 6


async def test_another_digest_than_asked_for_is_refused(client, adapter):
    with pytest.raises(InvalidAdapterFiles, match=adapter.digest):
        await collect(client.submit(PROMPT, AdapterHandle("sha256:other", str(adapter.directory)), SHORT))


async def test_residency_goes_up_and_down(client, adapter):
    def tiers(snapshot):
        return {a.digest: (a.residency, a.pinned) for a in snapshot.adapters}

    up = await client.set_residency(adapter.handle, Residency.DEVICE, pinned=True)
    assert {adapter.digest: (Residency.DEVICE, True)} == tiers(up)
    host = await client.set_residency(adapter.handle, Residency.HOST)
    assert {adapter.digest: (Residency.HOST, False)} == tiers(host)
    assert tiers(await client.set_residency(adapter.handle, Residency.STORED)) == {}


async def test_a_dead_engine_fails_what_is_pending_and_comes_back(config, adapter):
    client = await EngineClient.start(config)
    await client.set_residency(adapter.handle, Residency.DEVICE, pinned=True)
    stream = client.submit(PROMPT, None, LONG)
    await anext(stream)
    os.kill(client.process_id, signal.SIGKILL)
    with pytest.raises(Unavailable) as failure:
        await collect(stream)
    assert failure.value.retry_after_seconds is not None
    with pytest.raises(Unavailable):
        client.submit(PROMPT, None, SHORT)
    while not client.alive:  # noqa: ASYNC110 - no event tells of a restart
        await asyncio.sleep(0.05)
    assert len(await collect(client.submit(PROMPT, None, SHORT))) == 6
    while not any(a.pinned for a in (await client.inspect()).adapters):
        pass
    assert client.restarts == 1
    await client.shutdown(0.0)


async def test_a_restart_brings_back_what_is_pinned_and_not_what_was_evicted_for_it(config, base, tmp_path):
    """Room for one on the device: the first that was loaded is not to have it again."""
    first, pinned = (
        save_tiny_adapter(tmp_path / str(seed), base, seed=seed, rank=128).handle for seed in (1, 2)
    )
    client = await EngineClient.start(config)
    await client.set_residency(first, Residency.DEVICE)
    before = await client.set_residency(pinned, Residency.DEVICE, pinned=True)
    os.kill(client.process_id, signal.SIGKILL)
    with pytest.raises(Unavailable):
        await client.inspect()
    while not client.alive:  # noqa: ASYNC110 - no event tells of a restart
        await asyncio.sleep(0.05)
    await client._restoring
    assert {a.digest: (a.residency, a.pinned) for a in before.adapters} == {
        first.digest: (Residency.HOST, False),
        pinned.digest: (Residency.DEVICE, True),
    }
    after = {a.digest: (a.residency, a.pinned) for a in (await client.inspect()).adapters}
    assert after[pinned.digest] == (Residency.DEVICE, True)
    await client.shutdown(0.0)


async def test_shutdown_does_not_wait_for_an_engine_that_is_gone(config):
    client = await EngineClient.start(config)
    stream = client.submit(PROMPT, None, LONG)
    os.kill(client.process_id, signal.SIGKILL)
    with pytest.raises(Unavailable):
        await collect(stream)
    assert (client.alive, client.ready, client.process_id) == (False, None, None)
    await client.shutdown(3600.0)
    with pytest.raises(Unavailable):
        await client.inspect()


async def test_a_stop_of_the_whole_group_leaves_the_end_to_the_parent(client):
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(client.process_id, number)
    assert len(await collect(client.submit(PROMPT, None, SHORT))) == 6


async def test_shutdown_lets_running_requests_finish(config):
    client = await EngineClient.start(config)
    stream = client.submit(PROMPT, None, SHORT)
    await anext(stream)
    tokens, _ = await asyncio.gather(collect(stream), client.shutdown(30.0))
    assert len(tokens) == 6
    assert not client.alive
    with pytest.raises(Unavailable):
        client.submit(PROMPT, None, SHORT)


async def test_shutdown_without_grace_fails_what_runs(config):
    client = await EngineClient.start(config)
    streams = [client.submit(PROMPT, None, LONG, str(i)) for i in range(6)]
    await anext(streams[0])
    await client.shutdown(0.0)
    for stream in streams:
        with pytest.raises(Unavailable):
            await collect(stream)


async def test_a_base_that_is_not_what_its_manifest_says_does_not_start(config, tmp_path):
    with pytest.raises(NotFound):
        await EngineClient.start(dataclasses.replace(config, base_directory=str(tmp_path)))
    directory = save_tiny_base(tmp_path / "other", seed=7)
    other = describe_base(directory, name=BaseName("x"), weight_format=WeightFormat.FP32, source="random")
    write_manifest(directory, other.model_copy(update={"digest": "sha256:" + "0" * 64}))
    with pytest.raises(Internal, match="digest"):
        await EngineClient.start(dataclasses.replace(config, base_directory=str(directory)))


async def test_the_client_imports_no_torch():
    code = "import sys, finetuned_service.engine.client; sys.exit('torch' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
