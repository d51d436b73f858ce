"""Residency through a real server: loads, unloads and pins, and what runs while adapters are unloaded or deleted."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest
from finetuned import Client, Residency
from finetuned.errors import InvalidField, NotFound
from finetuned.v1 import serving_service_pb2 as pb
from finetuned.v1.serving_service_pb2_grpc import ServingServiceStub
from served_jobs import eventually
from served_oracle import PROMPT, ask
from server.test_adapters_served import imported
from tiny_server import TinyServer, make_data_directory, running


def test_residency_is_asked_for_and_told(client: Client, server: TinyServer, tmp_path: Path) -> None:
    imported(client, server, tmp_path / "r", "resident", seed=6)
    assert client.adapters.version("resident").residency[0].residency is Residency.STORED
    version = client.adapters.load("resident", pin=True)
    loaded = version.residency[0]
    assert (loaded.residency, loaded.pinned, loaded.replica) == (Residency.DEVICE, True, "test")
    assert loaded.resident_bytes > 0
    assert client.adapters.unload("resident").residency[0].residency is Residency.STORED
    client.adapters.unload("resident", residency=Residency.HOST)
    in_engine = asyncio.run_coroutine_threadsafe(server.server.engine.inspect(), server.loop).result(60)
    assert version.digest not in {adapter.digest for adapter in in_engine.adapters}


def test_what_is_in_memory_is_listed_and_falls_as_far_as_is_asked(
    client: Client, server: TinyServer, tmp_path: Path
) -> None:
    names = [imported(client, server, tmp_path / n, f"in-memory-{n}", seed=20) for n in "ba"]

    def listed() -> dict[str, tuple[str, bool]]:
        found = client.adapters.resident(page_size=1)
        return {
            one.name: (one.residency[0].residency, one.residency[0].pinned)
            for one in found
            if one.name in names
        }

    assert listed() == {}
    client.adapters.load("in-memory-b", pin=True)
    # Both versions are the same weights, of one tenant.
    assert listed() == dict.fromkeys(sorted(names), (Residency.DEVICE, True))
    assert list(listed()) == sorted(names)
    lowered = client.adapters.unload("in-memory-b", residency=Residency.HOST).residency[0]
    assert (lowered.residency, lowered.pinned) == (Residency.HOST, False)
    with pytest.raises(InvalidField, match="LoadAdapter"):
        client.adapters.unload("in-memory-b", residency=Residency.DEVICE)
    with pytest.raises(InvalidField, match="UnloadAdapter"):
        client.adapters.load("in-memory-b", residency=Residency.STORED)
    with Client(server.endpoint, tenant="stranger") as stranger:
        assert list(stranger.adapters.resident()) == []
    client.adapters.unload("in-memory-b")
    assert listed() == {}


def test_a_reload_under_the_same_name_leaves_running_replies_on_their_version(
    client: Client, server: TinyServer, tmp_path: Path
) -> None:
    first = imported(client, server, tmp_path / "1", "reloaded", seed=31)
    alone = client.generate(PROMPT, adapter="reloaded", max_tokens=60, ignore_eos=True)
    with client.stream(PROMPT, adapter="reloaded", max_tokens=60, ignore_eos=True) as stream:
        next(stream)
        second = imported(client, server, tmp_path / "2", "reloaded", seed=32)
        client.adapters.set_alias("reloaded@default", "reloaded@2")
        client.adapters.load("reloaded", pin=True)
        client.adapters.unload("reloaded@1")
        after = client.generate(PROMPT, adapter="reloaded", max_tokens=60, ignore_eos=True)
        reply = stream.finish()
    assert (reply.served_by.adapter_version, reply.text) == (first, alone.text)
    assert after.served_by.adapter_version == second
    assert after.text != alone.text
    client.adapters.unload("reloaded")


def test_a_version_deleted_while_it_answers_answers_to_the_end(
    client: Client, server: TinyServer, tmp_path: Path
) -> None:
    imported(client, server, tmp_path / "d", "deleted", seed=33)
    alone = client.generate(PROMPT, adapter="deleted", max_tokens=60, ignore_eos=True)
    with client.stream(PROMPT, adapter="deleted", max_tokens=60, ignore_eos=True) as stream:
        next(stream)
        client.adapters.delete("deleted")
        assert stream.finish().text == alone.text
    with pytest.raises(NotFound):
        ask(client, "deleted")


def test_inputs_that_wait_when_their_adapter_is_deleted_are_answered_too(
    client: Client, server: TinyServer, tmp_path: Path
) -> None:
    """Six of them and places for four: the last two begin when nobody holds the weights any more."""
    digest = client.adapters.version(imported(client, server, tmp_path / "q", "deleted", seed=34)).digest
    call = pb.ServeAdapterRequest(parent="tenants/default", adapter="tenants/default/adapters/deleted")
    call.generate.max_tokens = 60
    call.generate.ignore_eos = True
    for number in range(6):
        call.inputs.add().content.parts.add().text = f"prompt {number}"
    files = server.data_directory / "adapters" / digest.removeprefix("sha256:")
    with grpc.insecure_channel(server.endpoint) as channel:
        events = ServingServiceStub(channel).ServeAdapter(call)
        first = next(events)
        client.adapters.delete("deleted")
        assert files.exists()
        *_, last = events
    assert (first.WhichOneof("event"), len(last.done.outcomes)) == ("started", 6)
    assert not files.exists()


def test_a_pin_of_weights_that_two_tenants_have_goes_with_the_version_of_who_pinned_them(
    server: TinyServer, tmp_path: Path
) -> None:
    with Client(server.endpoint, tenant="one") as one, Client(server.endpoint, tenant="two") as two:
        for client, name in ((one, "one"), (two, "two")):
            imported(client, server, tmp_path / name, "same", seed=35)
        one.adapters.load("same", pin=True)
        two.adapters.load("same")
        one.adapters.delete("same")
        assert two.adapters.version("same").residency[0].residency is Residency.STORED


def test_unload_while_a_request_runs_lets_it_finish(
    client: Client, server: TinyServer, tmp_path: Path
) -> None:
    imported(client, server, tmp_path / "u", "unloaded", seed=7)
    alone = client.generate(PROMPT, adapter="unloaded", max_tokens=60, ignore_eos=True)
    with client.stream(PROMPT, adapter="unloaded", max_tokens=60, ignore_eos=True) as stream:
        next(stream)
        client.adapters.unload("unloaded")
        assert stream.finish().text == alone.text


def test_a_pin_whose_files_a_new_engine_cannot_take_counts_no_more(tmp_path: Path) -> None:
    make_data_directory(tmp_path)
    with running(tmp_path / "data") as server, Client(server.endpoint, tenant="one") as one:
        imported(one, server, tmp_path / "a", "damaged", seed=36)
        digest = one.adapters.load("damaged", pin=True).digest
        holders = server.server._residents.holders
        assert holders.wanted() == {digest}
        weights = (
            server.data_directory / "adapters" / digest.removeprefix("sha256:") / "adapter_model.safetensors"
        )
        weights.write_bytes(weights.read_bytes()[:-1])
        process_id = server.server.engine.process_id
        assert process_id is not None
        os.kill(process_id, signal.SIGKILL)
        eventually(lambda: holders.wanted() == set(), seconds=60)
