"""Requests that must be refused, each with the error it must get."""

from __future__ import annotations

import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from finetuned import AsyncClient, Lora, RawText
from finetuned.errors import (
    EtagMismatch,
    FinetunedError,
    InvalidAdapterFiles,
    InvalidData,
    InvalidField,
    NotFound,
    PromptTooLong,
)

from benchmarks.soak.world import TENANTS, World

Attempt = Callable[[World, AsyncClient, Path], Awaitable[object]]


async def _no_tokens(world: World, client: AsyncClient, scratch: Path) -> object:
    return await client.generate(world.prompts[0], plain_base=True, max_tokens=0)


async def _impossible_probability(world: World, client: AsyncClient, scratch: Path) -> object:
    return await client.generate(world.prompts[0], plain_base=True, max_tokens=4, top_p=1.5)


async def _empty_prompt(world: World, client: AsyncClient, scratch: Path) -> object:
    return await client.generate(RawText(""), plain_base=True, max_tokens=4)


async def _long_prompt(world: World, client: AsyncClient, scratch: Path) -> object:
    text = "a b " * world.info.limits.context_tokens
    return await client.generate(RawText(text), plain_base=True, max_tokens=4)


async def _unknown_adapter(world: World, client: AsyncClient, scratch: Path) -> object:
    return await client.generate(world.prompts[0], adapter="nobody", max_tokens=4)


async def _adapter_of_another_tenant(world: World, client: AsyncClient, scratch: Path) -> object:
    (other,) = {*TENANTS} - {client.transport.names.parent.removeprefix("tenants/")}
    name = f"tenants/{other}/adapters/shared-0"
    return await client.generate(world.prompts[0], adapter=name, max_tokens=4)


async def _stale_etag(world: World, client: AsyncClient, scratch: Path) -> object:
    return await client.adapters.set_alias("shared-0@live", 1, etag="stale")


async def _bad_row(world: World, client: AsyncClient, scratch: Path) -> object:
    path = scratch / "bad.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    return await client.datasets.upload(path, "bad-rows")


async def _cut_adapter(world: World, client: AsyncClient, scratch: Path) -> object:
    whole, cut = world.adapters[TENANTS[0]][0], scratch / "cut"
    shutil.rmtree(cut, ignore_errors=True)
    shutil.copytree(whole, cut)
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    return await client.adapters.import_directory(cut, "cut", expected_base_digest=world.base_digest)


async def _adapter_with_other_shapes(world: World, client: AsyncClient, scratch: Path) -> object:
    whole, wrong = world.adapters[TENANTS[0]][0], scratch / "wrong"
    shutil.rmtree(wrong, ignore_errors=True)
    shutil.copytree(whole, wrong)
    config = wrong / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 5}))
    return await client.adapters.import_directory(wrong, "wrong", expected_base_digest=world.base_digest)


async def _job_without_data(world: World, client: AsyncClient, scratch: Path) -> object:
    return await client.train(dataset="nowhere", adapter="nothing")


async def _job_of_any_rank(world: World, client: AsyncClient, scratch: Path) -> object:
    return await client.train(dataset="rows", adapter="nothing", lora=Lora(rank=100_000))


REFUSALS: dict[Attempt, type[FinetunedError]] = {
    _no_tokens: InvalidField,
    _impossible_probability: InvalidField,
    _empty_prompt: InvalidField,
    _long_prompt: PromptTooLong,
    _unknown_adapter: NotFound,
    _adapter_of_another_tenant: NotFound,
    _stale_etag: EtagMismatch,
    _bad_row: InvalidData,
    _cut_adapter: InvalidAdapterFiles,
    _adapter_with_other_shapes: InvalidAdapterFiles,
    _job_without_data: NotFound,
    _job_of_any_rank: InvalidField,
}


async def refuse(attempt: Attempt, world: World, client: AsyncClient, scratch: Path) -> None:
    """Make the attempt and see it refused.

    Raises:
        AssertionError: it was not refused.
        FinetunedError: it was refused in another way.
    """
    expected = REFUSALS[attempt]
    try:
        found = await attempt(world, client, scratch)
    except expected as error:
        world.findings.refusals[type(error).__name__] += 1
        return
    raise AssertionError(f"{attempt.__name__} was not refused with {expected.__name__}; it gave {found}")
