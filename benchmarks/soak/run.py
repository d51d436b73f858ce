"""The soak: visitors act, all comes to rest, the server's processes are looked at; again and again."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from finetuned import AsyncClient, Deadlines, EvaluationOptions, Optimization

from benchmarks.soak.growth import ALLOWANCES, Growth, growth, read
from benchmarks.soak.visitor import Visitor, shared
from benchmarks.soak.world import SHARED, TENANTS, Findings, World, draw_prompts, write_adapters
from examples.demo.server import RunningServer, running_server

ENGINE = "finetuned-eng"
PATIENCE = 10.0
"""A soak may run on a busy machine, beside other work."""
DEADLINES = Deadlines.of(1800.0)
"""Of those who do not try what happens without time: how long things take is not what is asked here."""
FLAGS = (
    # Bits are compared, and only the native path promises them. Small budgets, so that adapters come and go and
    # the arena of keys and values is full early.
    *("--compute", "native", "--max-running-sequences", "8", "--max-prefill-tokens", "256"),
    *("--kv-cache-tokens", "8192", "--adapter-device-bytes", str(64 * 2**20)),
    *("--adapter-host-bytes", str(96 * 2**20), "--log-format", "json"),
)
_AT_ONCE = 64
"""More calls than the server's pools have threads and connections, which begin when they are first needed: visitors that hardly
overlap, on a busy machine, need the last of them long after the rounds that warm up.
"""
_ROWS = "".join(f'{{"prompt": "what is {n}?", "completion": "{n} it is"}}\n' for n in range(12))


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done. A round is so many actions of each visitor; there are at least `rounds`, and as many as
    fit into `minutes`.
    """

    directory: Path
    base_source: str = ""
    """As of `finetuned serve --base-source`; empty is the packaged base."""
    minutes: float = 30.0
    rounds: int = 6
    visitors: int = 12
    actions: int = 10
    rounds_per_job: int = 4
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """What the soak saw, and its verdict."""

    plan: Plan
    seconds: float
    findings: Findings
    compared: int
    pairs: int
    replies_per_question: float
    differences: list[str]
    log_errors: list[str]
    rests: list[dict[str, dict[str, float]]] = field(default_factory=list[dict[str, dict[str, float]]])
    """By round: process, quantity, value."""
    growths: list[Growth] = field(default_factory=list[Growth])

    @property
    def complaints(self) -> list[str]:
        """Everything that should not be; a soak that ends well has none."""
        grew = [
            f"{g.process} {g.quantity} grew by {g.grown:,.0f}; allowed: {g.allowed:,.0f}"
            for g in self.growths
            if not g.flat
        ]
        differed = [f"another reply: {difference}" for difference in self.differences]
        return [*grew, *differed, *self.findings.failures, *self.log_errors]


def soak(plan: Plan, report: Callable[[str], None] = print) -> Outcome:
    """Run a server in `plan.directory` (emptied first, but for its bases) and everything against it. SIGTERM ends
    it before its time, with the round that is running.

    Raises:
        RuntimeError: the server did not start or did not stop cleanly.
    """
    _empty(plan.directory)
    flags = [*FLAGS, "--base", "soak", "--base-source", plan.base_source] if plan.base_source else FLAGS
    with running_server(plan.directory / "data", *flags, patience=PATIENCE) as server:
        outcome = asyncio.run(_soak(plan, server, report))
    outcome.log_errors = _errors_of(server.log)
    return outcome


def _empty(directory: Path) -> None:
    shutil.rmtree(directory / "scratch", ignore_errors=True)
    for path in (directory / "data").glob("*"):
        if path.is_dir() and path.name != "bases":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


async def _soak(plan: Plan, server: RunningServer, report: Callable[[str], None]) -> Outcome:
    began = time.monotonic()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with _world(plan, server) as world:
        visitors = [Visitor(world, number, plan.seed) for number in range(plan.visitors)]
        ended: list[float] = []
        rests: list[dict[str, dict[str, float]]] = []
        while len(rests) < plan.rounds or (_minutes(began, world) < plan.minutes and not stop.is_set()):
            async with asyncio.TaskGroup() as group:
                if len(rests) % plan.rounds_per_job == 1:
                    group.create_task(_train(world, cancel=len(rests) % (2 * plan.rounds_per_job) == 1))
                for visitor in visitors:
                    group.create_task(visitor.act(plan.actions))
            await _come_to_rest(world)
            ended.append(60 * _minutes(began, world))
            rests.append(_at_rest(server.pid))
            report(
                f"round {len(rests)}, {_minutes(began, world):.1f} min: {_line(rests[-1])}, "
                f"{world.known.compared} replies compared, {len(world.findings.failures)} failures"
            )
    series = [
        growth(process, quantity, ended, [rest[process][quantity] for rest in rests])
        for process in rests[0]
        for quantity in ALLOWANCES
    ]
    known = world.known
    return Outcome(
        plan,
        time.monotonic() - began,
        world.findings,
        known.compared,
        known.pairs,
        known.replies_per_question,
        known.differences,
        [],
        rests,
        series,
    )


def _minutes(began: float, world: World) -> float:
    return (time.monotonic() - began - world.findings.frozen_seconds) / 60


def _line(rest: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{process} {v['rss_bytes'] / 2**20:.1f} MiB, {v['descriptors']:.0f} files, {v['threads']:.0f} threads"
        for process, v in rest.items()
    )


@asynccontextmanager
async def _world(plan: Plan, server: RunningServer) -> AsyncGenerator[World]:
    async with AsyncExitStack() as stack:
        clients = {
            tenant: await stack.enter_async_context(
                AsyncClient(server.endpoint, tenant=tenant, deadlines=DEADLINES)
            )
            for tenant in TENANTS
        }
        info = await clients[TENANTS[0]].server_info()
        scratch = plan.directory / "scratch"
        adapters = write_adapters(scratch, plan.directory / "data" / info.base.name)
        prompts = draw_prompts(plan.seed, info.limits.context_tokens)
        world = World(server.endpoint, server.metrics_url, scratch, info, clients, prompts, adapters)
        for tenant, client in clients.items():
            for number, directory in enumerate(adapters[tenant]):
                name = shared(number // 2)
                await client.adapters.import_directory(
                    directory, name, expected_base_digest=world.base_digest
                )
                if number % 2 == 0:
                    await client.adapters.set_alias(f"{name}@live", 1)
        (scratch / "train.jsonl").write_text(_ROWS)
        await clients[TENANTS[0]].datasets.upload(scratch / "train.jsonl", "rows")
        await asyncio.gather(*(clients[TENANTS[0]].adapters.get(shared(0)) for _ in range(_AT_ONCE)))
        pulse = asyncio.create_task(world.findings.pulse())
        yield world
        pulse.cancel()


async def _train(world: World, *, cancel: bool) -> None:
    """A TrainJob beside the visitors: its version is served and then deleted, or it is cancelled on its way."""
    client = world.clients[TENANTS[0]]
    async with world.findings.call("cancel a job" if cancel else "train"):
        job = await client.train(
            dataset="rows",
            adapter="trained",
            optimization=Optimization(max_steps=2, batch_rows=2),
            evaluation=EvaluationOptions(evaluations=0, generation_rows=0),
        )
        if cancel:
            await asyncio.sleep(5.0)
            await client.jobs.cancel(job.name)
            await client.jobs.wait(job.name)
            return
        (await client.jobs.wait(job.name)).check()
        reply = await client.generate(world.prompts[0], adapter="trained", max_tokens=4, ignore_eos=True)
        assert reply.served_by.modules, "the trained adapter changed no module"
        await client.adapters.delete("trained")


async def _come_to_rest(world: World) -> None:
    """Unload everything, and see that nothing is held that nobody uses."""
    for client in world.clients.values():
        for number in range(SHARED):
            for version in (1, 2):
                async with world.findings.call("unload"):
                    await client.adapters.unload(f"{shared(number)}@{version}")
    async with world.findings.call("rest"):
        load = (await world.clients[TENANTS[0]].server_info()).load
        held = (load.running_sequences, load.queued_sequences, load.kv_tokens_used, load.adapters_on_device)
        assert held == (0, 0, 0, 0), f"at rest the engine still holds {load}"


def _at_rest(pid: int) -> dict[str, dict[str, float]]:
    """The server and its engine; no other process is left of it."""
    children = psutil.Process(pid).children(recursive=True)
    (engine,) = (child for child in children if child.name() == ENGINE)
    return {"server": read(pid), "engine": read(engine.pid)}


def _errors_of(log: Path) -> list[str]:
    """Lines of the server's log that are errors, and those that are no log lines at all."""
    found: list[str] = []
    for line in log.read_text().splitlines():
        try:
            level = json.loads(line)["level"]
        except (ValueError, KeyError):
            level = "error"
        if level in {"error", "critical"}:
            found.append(f"in the log: {line[:500]}")
    return found
