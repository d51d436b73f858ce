"""Which weights are brought where, for whom, and what is left of them when nobody wants them any more."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from finetuned.v1 import adapter_service_pb2 as pb
from finetuned_service.bases.manifest import BaseManifest
from finetuned_service.engine.messages import Residency
from finetuned_service.errors import QuotaExceeded, ResourceExhausted
from finetuned_service.names import AdapterSelector
from finetuned_service.rpc import adapters
from finetuned_service.rpc.adapters import AdapterServicer
from finetuned_service.serving.pin_shares import PinShares
from finetuned_service.serving.residents import Residents
from finetuned_service.tenancy.caller import Role
from finetuned_service.vocabulary import WeightFormat
from retention_place import Place
from tiny_jobs import TENANT

HOST, DEVICE = Residency.HOST, Residency.DEVICE
BASE = BaseManifest(
    name="bases/tiny",
    digest="sha256:" + "b" * 64,
    root_digest="sha256:" + "b" * 64,
    architecture="LlamaForCausalLM",
    weight_format=WeightFormat.BF16,
    parameters=1,
    weight_bytes=1,
    context_tokens=64,
    source="a test",
    create_time=datetime(2026, 1, 1, tzinfo=UTC),
)
ADAPTER = "sha256:" + "a" * 64


class Residencies:
    """An engine that refuses to bring weights to the device, and lets go of them when it does."""

    def __init__(self) -> None:
        self.pinned: dict[str, Residency] = {}
        self.asked: list[tuple[str, Residency]] = []

    async def set_residency(self, handle, residency, *, pinned, kept, lowers):
        self.asked.append((handle.digest, residency))
        if residency is Residency.DEVICE:
            self.pinned.pop(handle.digest, None)
            raise ResourceExhausted("no room")
        if pinned:
            self.pinned[handle.digest] = kept
        else:
            self.pinned.pop(handle.digest, None)


@pytest.fixture
def place(tmp_path):
    found = Place(tmp_path)
    yield found
    found.close()


@pytest.fixture
def engine():
    return Residencies()


@pytest.fixture
def residents(engine, place):
    return Residents(engine, place.registry, BASE, PinShares(dict.fromkeys((HOST, DEVICE), 8), 0.75))


@pytest.fixture
def add(place):
    def make(tenant=TENANT, adapter="redact", letter="a"):
        name = place.version(letter, adapter=adapter, tenant=tenant)
        return place.registry.resolve(AdapterSelector.parse(name))

    return make


@pytest.mark.parametrize("pin", [False, True])
async def test_a_load_that_is_refused_leaves_pinned_what_was(residents, engine, add, pin):
    version, others = add(), add("beta")
    for before, pinned in (
        (None, {}),
        (version, {ADAPTER: Residency.HOST}),
        (others, {ADAPTER: Residency.HOST}),
    ):
        if before is not None:
            await residents.load(before, Residency.HOST, pin=True)
        with pytest.raises(ResourceExhausted):
            await residents.load(version, Residency.DEVICE, pin=pin)
        assert engine.pinned == pinned
        assert residents.holders.pinned(ADAPTER) == pinned.get(ADAPTER, Residency.STORED)
        if before is not None:
            await residents.unload(before)
            assert engine.pinned == {}


async def test_a_refused_load_takes_away_no_pin_that_another_call_made_meanwhile(residents, engine, add):
    version, gate = add(), asyncio.Event()
    bring = engine.set_residency

    async def slow(handle, residency, *, pinned, kept, lowers):
        if residency is Residency.DEVICE:
            await gate.wait()
        return await bring(handle, residency, pinned=pinned, kept=kept, lowers=lowers)

    engine.set_residency = slow
    refused = asyncio.create_task(residents.load(version, Residency.DEVICE, pin=True))
    await asyncio.sleep(0)
    await residents.load(version, Residency.HOST, pin=True)
    gate.set()
    with pytest.raises(ResourceExhausted):
        await refused
    assert engine.pinned == {ADAPTER: Residency.HOST}
    assert residents.holders.pinned(ADAPTER) is Residency.HOST


async def test_a_pin_whose_caller_left_is_one(residents, engine, add):
    version, gate = add(), asyncio.Event()
    engine.set_residency = lambda *_, **__: gate.wait()
    load = asyncio.create_task(residents.load(version, Residency.HOST, pin=True))
    await asyncio.sleep(0)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert residents.holders.pinned(ADAPTER) is Residency.HOST


async def test_a_pin_that_is_refused_after_its_caller_left_is_none(
    residents, engine, place, add, monkeypatch
):
    version, begun, gate, refused = add(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    bring, refuse = engine.set_residency, residents.holders.refuse

    async def slow(*args, **settings):
        begun.set()
        await gate.wait()
        return await bring(*args, **settings)

    def telling(claim):
        refuse(claim)
        refused.set()

    engine.set_residency = slow
    monkeypatch.setattr(residents.holders, "refuse", telling)
    monkeypatch.setattr(adapters, "check_compatible", lambda *_: None)
    monkeypatch.setattr(adapters, "current_caller", lambda: SimpleNamespace(role=Role.ADMIN))
    servicer = AdapterServicer(place.registry, SimpleNamespace(residents=residents, base=BASE), None)
    call = asyncio.create_task(servicer.LoadAdapter(pb.LoadAdapterRequest(name=version.name, pin=True), None))
    await begun.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert residents.holders.pinned(ADAPTER) is DEVICE
    gate.set()
    async with asyncio.timeout(30):
        await refused.wait()
    assert residents.holders.wanted() == set()


async def test_what_is_pinned_stays_so_until_it_is_unloaded(residents, engine, add):
    version = add()
    await residents.load(version, Residency.HOST, pin=True)
    await residents.load(version, Residency.HOST, pin=False)
    assert engine.pinned == {ADAPTER: Residency.HOST}
    await residents.unload(version)
    assert engine.pinned == {}


async def test_a_pin_ends_with_the_last_version_that_a_tenant_has_of_the_weights(
    residents, engine, place, add
):
    """Another tenant has the same, so that the files stay."""
    version, again, _ = add(), add(adapter="again"), add("beta")
    await residents.load(version, Residency.HOST, pin=True)
    for gone, pinned in ((version, {ADAPTER: Residency.HOST}), (again, {})):
        place.registry.delete_adapter(AdapterSelector(TENANT, gone.adapter))
        await residents.leave_unnamed(TENANT, [ADAPTER])
        assert engine.pinned == pinned
    assert engine.asked[-1] == (ADAPTER, Residency.STORED)
    assert version.directory.exists()


async def test_what_is_pinned_is_wanted_whatever_the_engine_has(residents, engine, add):
    """Of one that was started anew the sweeper must not conclude that nobody needs the files."""
    version, others = add(), add("beta")
    assert residents.holders.wanted() == set()
    await residents.load(version, Residency.HOST, pin=True)
    await residents.load(others, Residency.HOST, pin=True)
    engine.pinned.clear()
    assert residents.holders.wanted() == {ADAPTER}
    for one in (version, others):
        await residents.unload(one)
    assert residents.holders.wanted() == set()


async def test_a_deletion_whose_caller_goes_lets_go_of_the_memory(residents, engine, place, add, monkeypatch):
    version, begun, gate = add(), threading.Event(), threading.Event()
    add("beta")
    await residents.load(version, Residency.HOST, pin=True)
    delete, bring, told = place.registry.delete_adapter, engine.set_residency, asyncio.Event()

    async def telling(*args, **settings):
        await bring(*args, **settings)
        told.set()

    engine.set_residency = telling

    def slow(selector):
        begun.set()
        assert gate.wait(30)
        return delete(selector)

    monkeypatch.setattr(place.registry, "delete_adapter", slow)
    servicer = AdapterServicer(place.registry, SimpleNamespace(residents=residents), None)
    request = pb.DeleteAdapterRequest(name=f"tenants/{TENANT}/adapters/redact")
    call = asyncio.create_task(servicer.DeleteAdapter(request, None))
    await asyncio.to_thread(begun.wait, 30)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    gate.set()
    async with asyncio.timeout(30):
        await told.wait()
    assert (engine.pinned, residents.holders.wanted()) == ({}, set())


async def test_a_deletion_leaves_pinned_what_another_tenant_has_pinned(residents, engine, place, add):
    for version in (add(), add("beta")):
        await residents.load(version, Residency.HOST, pin=True)
    place.registry.delete_adapter(AdapterSelector(TENANT, "redact"))
    await residents.leave_unnamed(TENANT, [ADAPTER])
    assert engine.pinned == {ADAPTER: Residency.HOST}
    place.registry.delete_adapter(AdapterSelector("beta", "redact"))
    await residents.leave_unnamed("beta", [ADAPTER])
    assert engine.pinned == {}


async def test_a_version_that_is_deleted_while_it_is_loaded_is_not_pinned(residents, engine, place, add):
    version = add()
    place.registry.delete_adapter(AdapterSelector(TENANT, "redact"))
    await residents.load(version, Residency.HOST, pin=True)
    assert engine.pinned == {}


async def test_files_of_a_deleted_version_stay_until_its_last_call_has_ended(residents, engine, place, add):
    version, selector = add(), AdapterSelector(TENANT, "redact")
    async with residents.running(version, 2):
        async with residents.running(version, 1):
            place.registry.delete_adapter(selector)
            assert version.directory.exists()
            assert place.collector.find(place.registry.readers.digests()) == []
        assert version.directory.exists()
        assert engine.asked == []
    assert not version.directory.exists()
    assert engine.asked == [(ADAPTER, Residency.STORED)]


async def test_files_that_are_named_again_stay_after_the_call_too(residents, engine, place, add):
    version = add()
    async with residents.running(version, 1):
        place.registry.delete_adapter(AdapterSelector(TENANT, "redact"))
        add(adapter="again")
    assert version.directory.exists()
    assert engine.asked == []


async def test_a_pin_beyond_the_tenants_share_is_refused_before_the_engine_is_asked(residents, engine, add):
    """Room for four, of which three are one tenant's."""
    versions = [add(letter=letter) for letter in "acdef"]
    for version in versions[:3]:
        await residents.load(version, HOST, pin=True, within_share=True)
    asked = len(engine.asked)
    with pytest.raises(QuotaExceeded, match="has pinned 3 adapters"):
        await residents.load(versions[3], HOST, pin=True, within_share=True)
    assert len(engine.asked) == asked
    await residents.load(versions[3], HOST, pin=False, within_share=True)
    await residents.load(versions[3], HOST, pin=True)
    assert residents.holders.pinned(versions[3].manifest.digest) is HOST
