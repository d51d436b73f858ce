"""One caller who does one thing after the other, at random: mostly requests for text, and all else there is."""

from __future__ import annotations

import asyncio
import random
import shutil
import urllib.request
from collections.abc import Awaitable, Callable

from finetuned import AsyncClient, GenerateRequest, Reply
from finetuned.errors import DeadlineExceeded, NotFound, QueueFull, ResourceExhausted

from benchmarks.soak.known import Question
from benchmarks.soak.refusals import REFUSALS, refuse
from benchmarks.soak.world import SHARED, TENANTS, World

_LENGTHS = (4, 16, 48)
_DEADLINES_SECONDS = (0.01, 0.05, 0.2)
_ROWS = '{"prompt": "what is due?", "completion": "nothing is due"}\n'


class Visitor:
    """Seeded: the same visitor does the same things in the same order; how visitors meet is left to chance."""

    def __init__(self, world: World, number: int, seed: int) -> None:
        self.world = world
        self.tenant = TENANTS[number % len(TENANTS)]
        self.client = world.clients[self.tenant]
        self.random = random.Random(f"{seed}-{number}")
        self.own = f"own-{number}"
        """An adapter, and the beginning of other names, that no other visitor touches."""
        self.scratch = world.scratch / self.own
        self.scratch.mkdir(parents=True, exist_ok=True)

    async def act(self, times: int) -> None:
        """Do so many things, drawn by weight."""
        actions, weights = zip(*ACTIONS.items(), strict=True)
        for action in self.random.choices(actions, weights, k=times):
            async with self.world.findings.call(action.__name__):
                await action(self)

    def question(self, *, sampled: bool = False, logprobs: int = 0) -> Question:
        temperature, seed = (0.9, self.random.randint(1, 3)) if sampled else (0.0, 0)
        prompt = self.random.randrange(len(self.world.prompts))
        return Question(prompt, self.random.choice(_LENGTHS), temperature, seed, logprobs)

    def request(self, question: Question, model: str | None) -> GenerateRequest:
        return GenerateRequest(
            self.world.prompts[question.prompt],
            adapter=model,
            plain_base=model is None,
            max_tokens=question.max_tokens,
            temperature=question.temperature,
            seed=question.seed,
            logprobs=question.logprobs,
            ignore_eos=True,
        )

    def arguments(self, question: Question, model: str | None) -> dict[str, object]:
        request = self.request(question, model)
        return {name: getattr(request, name) for name in request.__slots__ if name != "_"}

    def model(self) -> str | None:
        """The base now and then, else a shared adapter by a version, its default or the alias that moves."""
        if self.random.random() < 0.15:
            return None
        return shared(self.random.randrange(SHARED)) + self.random.choice(("", "@1", "@2", "@live"))

    async def ask(self) -> None:
        question = self.question(
            sampled=self.random.random() < 0.3, logprobs=2 * (self.random.random() < 0.3)
        )
        model = self.model()
        reply = await self.client.generate(**self.arguments(question, model))
        self.check(question, model, reply)

    def check(self, question: Question, model: str | None, reply: Reply) -> None:
        """It is by the weights that were asked for, and as it was the first time."""
        name, _, wanted = (model or "").partition("@")
        version = reply.served_by.adapter_version
        owner = f"tenants/{self.tenant}/adapters/{name}/versions/" if model else ""
        if not version.startswith(owner) or bool(model) != bool(version):
            raise AssertionError(f"{model} of {self.tenant} was served by {version!r}")
        if wanted.isdecimal() and version != owner + wanted:
            raise AssertionError(f"{model} was served by {version}")
        self.world.known.check(question, reply)

    async def stream_whole(self) -> None:
        question, model = self.question(), self.model()
        async with await self.client.stream(**self.arguments(question, model)) as stream:
            self.check(question, model, await stream.finish())

    async def leave_midway(self) -> None:
        question = self.question()
        tokens: tuple[int, ...] = ()
        async with await self.client.stream(**self.arguments(question, self.model())) as stream:
            for _ in range(self.random.randint(0, 3)):
                delta = await anext(stream, None)
                tokens += delta.token_ids if delta is not None else ()
            digest = stream.served_by.adapter_digest
        self.world.known.check_beginning(question, digest, tokens)

    async def hang_up(self) -> None:
        """A connection of its own, closed with a reply on its way."""
        client = AsyncClient(self.world.endpoint, tenant=self.tenant)
        try:
            stream = await client.stream(**self.arguments(self.question(), self.model()))
            await anext(stream, None)
        finally:
            await client.close()

    async def have_no_time(self) -> None:
        hurried = self.client.within(self.random.choice(_DEADLINES_SECONDS))
        question, model = self.question(), self.model()
        try:
            self.check(question, model, await hurried.generate(**self.arguments(question, model)))
        except (DeadlineExceeded, QueueFull) as error:
            self.world.findings.refusals[type(error).__name__] += 1

    async def ask_in_a_batch(self) -> None:
        asked = [(self.question(), self.model()) for _ in range(self.random.randint(2, 5))]
        replies = await self.client.generate_many([self.request(*item) for item in asked])
        for (question, model), reply in zip(asked, replies, strict=True):
            if not isinstance(reply, Reply):
                raise reply
            self.check(question, model, reply)

    async def move_residency(self) -> None:
        """Up and down under those who are using it. No room beside running adapters is a fair answer."""
        name = shared(self.random.randrange(SHARED)) + self.random.choice(("@1", "@2"))
        try:
            if self.random.random() < 0.5:
                if self.random.random() < 0.3:
                    async with self.world.findings.pinning():
                        await self.client.adapters.load(name, pin=True)
                        await self.client.adapters.unload(name)
                else:
                    await self.client.adapters.load(name)
            else:
                await self.client.adapters.unload(name)
        except ResourceExhausted as error:
            self.world.findings.refusals[type(error).__name__] += 1

    async def move_alias(self) -> None:
        alias = shared(self.random.randrange(SHARED)) + "@live"
        try:
            if self.random.random() < 0.3:
                await self.client.adapters.rollback(alias)
            else:
                await self.client.adapters.set_alias(alias, self.random.randint(1, 2))
        except NotFound as error:  # it has not moved yet
            self.world.findings.refusals[type(error).__name__] += 1

    async def bring_and_take_an_adapter(self) -> None:
        """Two versions in, served, out again, one deleted; then all of it deleted, perhaps while it is running."""
        adapters, digest = self.client.adapters, self.world.base_digest
        numbers: list[str] = []
        for source in self.random.sample(self.world.adapters[self.tenant], 2):
            version = await adapters.import_directory(source, self.own, expected_base_digest=digest)
            numbers.append(version.name.rpartition("/")[2])  # they go on after a deletion
        for model in (self.own, f"{self.own}@{numbers[1]}"):
            question = self.question()
            self.check(question, model, await self.client.generate(**self.arguments(question, model)))
        await adapters.set_alias(self.own, numbers[1])
        exported = self.scratch / "exported"
        await adapters.export(self.own, exported)
        shutil.rmtree(exported)
        await adapters.delete_version(f"{self.own}@{numbers[0]}")
        running = asyncio.create_task(self.outlive(self.own))
        await asyncio.sleep(self.random.choice((0.0, 0.05)))
        await adapters.delete(self.own)
        await running

    async def outlive(self, model: str) -> None:
        """A request that may come too late for its adapter; one that began is answered in full."""
        question = self.question()
        try:
            self.check(question, model, await self.client.generate(**self.arguments(question, model)))
        except NotFound as error:
            self.world.findings.refusals[type(error).__name__] += 1

    async def bring_and_take_a_dataset(self) -> None:
        path = self.scratch / "rows.jsonl"
        path.write_text(_ROWS * self.random.randint(2, 200))
        await self.client.datasets.upload(path, self.own)
        await self.client.datasets.get(self.own)
        await self.client.datasets.delete(self.own)

    async def look_around(self) -> None:
        match self.random.randrange(5):
            case 0:
                await self.client.server_info()
            case 1:
                await self.client.usage()
            case 2:
                found = [item async for item in self.client.adapters.list(page_size=3)]
                assert len(found) >= SHARED, f"{len(found)} adapters are listed; {SHARED} stay"
            case 3:
                await self.client.adapters.version(shared(self.random.randrange(SHARED)))
            case _:
                await asyncio.to_thread(_scrape, self.world.metrics_url)

    async def be_refused(self) -> None:
        attempt = self.random.choice(list(REFUSALS))
        await refuse(attempt, self.world, self.client, self.scratch)


ACTIONS: dict[Callable[[Visitor], Awaitable[None]], float] = {
    Visitor.ask: 40,
    Visitor.stream_whole: 20,
    Visitor.leave_midway: 10,
    Visitor.hang_up: 2,
    Visitor.have_no_time: 5,
    Visitor.ask_in_a_batch: 5,
    Visitor.move_residency: 5,
    Visitor.move_alias: 3,
    Visitor.bring_and_take_an_adapter: 2,
    Visitor.bring_and_take_a_dataset: 2,
    Visitor.look_around: 5,
    Visitor.be_refused: 5,
}
"""What a visitor does, and how often of all times."""


def shared(number: int) -> str:
    return f"shared-{number}"


def _scrape(url: str) -> None:
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert b"finetuned_engine_up 1" in answer.read(), "the page does not show that the engine is up"
