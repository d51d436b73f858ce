"""ServeAdapter calls beside an engine that says what it is told to say."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from finetuned_service.adapters.manifest import AdapterManifest
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.bases.manifest import BaseManifest
from finetuned_service.engine.messages import (
    Failed,
    FinishReason,
    Started,
    TokenLogprobs,
    Tokens,
)
from finetuned_service.engine.stream import EngineStream
from finetuned_service.errors import (
    AdapterIncompatible,
    Internal,
    InvalidField,
    NotFound,
    PromptTooLong,
    QueueFull,
    Unavailable,
)
from finetuned_service.metrics import ServerMetrics, new_registry
from finetuned_service.names import AdapterSelector
from finetuned_service.serving.merge import merged
from finetuned_service.serving.pin_shares import PinShares
from finetuned_service.serving.residents import Residents
from finetuned_service.serving.service import Serving
from finetuned_service.serving.values import (
    Content,
    Delta,
    Done,
    GenerationSettings,
    Outcome,
    ServeCall,
    ServedBy,
    Truncation,
)
from finetuned_service.storage.database import Database
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.vocabulary import Method, Task, WeightFormat
from prometheus_client import CollectorRegistry
from tiny_limits import stored_limits
from tiny_tokenizers import byte_level, write_tokenizer

BASE, OTHER_BASE, ADAPTER = (f"sha256:{letter * 64}" for letter in "bca")
MODULES = 14
SHARES = PinShares({}, 1.0)
HANG_SECONDS = 20.0
"""A deadline for what must not hang; nothing is expected to take any of it."""


class ToldEngine:
    """Each submitted sequence gets the events of the next script; None stands for silence for ever."""

    def __init__(self) -> None:
        self.scripts: list[list[object] | Exception] = []
        self.submitted: list[tuple[tuple[int, ...], object, object]] = []
        self.cancelled: list[int] = []
        self.all_submitted = asyncio.Event()

    def submit(
        self, prompt_token_ids, adapter, sampling, tenant, deadline_seconds, *, leader=None
    ) -> EngineStream:
        number = len(self.submitted)
        self.submitted.append((tuple(prompt_token_ids), adapter, sampling))
        if len(self.submitted) == len(self.scripts):
            self.all_submitted.set()
        script = self.scripts[number]
        if isinstance(script, Exception):
            raise script
        stream = EngineStream(number, self.cancelled.append)
        self._say(stream, iter(script))
        return stream

    def _say(self, stream, events) -> None:
        """One event now, the next when the reader has taken it: what a reader that keeps up sees."""
        if stream._events.empty():
            event = next(events, None)
            if event is None:
                return
            stream.feed(event)
        asyncio.get_running_loop().call_soon(self._say, stream, events)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> BaseTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return BaseTokenizer.load(directory)


@pytest.fixture
def registry(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'finetuned.db'}")
    (tmp_path / "adapters").mkdir()
    yield AdapterRegistry(database, tmp_path / "adapters", stored_limits(tmp_path))
    database.close()


@pytest.fixture
def add(registry, tmp_path):
    def make(adapter: str, base_digest: str = BASE):
        staged = tmp_path / "staged"
        staged.mkdir()

        def manifest(name: str) -> AdapterManifest:
            return AdapterManifest(
                name=name,
                digest=ADAPTER,
                base_digest=base_digest,
                base_root_digest=base_digest,
                method=Method.LORA,
                task=Task.TEXT_GENERATION,
                parameters=1,
                modules=MODULES,
                size_bytes=1,
                create_time=datetime(2026, 1, 1, tzinfo=UTC),
            )

        return registry.import_version("acme", adapter, staged, manifest, 1, RequestKey.of("acme", "", b""))

    return make


@pytest.fixture
def engine() -> ToldEngine:
    return ToldEngine()


@pytest.fixture
def serving(engine, registry, tokenizer, page) -> Serving:
    base = BaseManifest(
        name="bases/tiny",
        digest=BASE,
        root_digest=BASE,
        architecture="LlamaForCausalLM",
        weight_format=WeightFormat.BF16,
        parameters=1,
        weight_bytes=1,
        context_tokens=64,
        source="a test",
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return Serving(
        engine,
        registry,
        tokenizer,
        base,
        64,
        "replica-1",
        ServerMetrics(page),
        Residents(engine, registry, base, SHARES),
    )


@pytest.fixture
def page():
    return new_registry(version="test")


def ids(text: str) -> tuple[int, ...]:
    return tuple(byte_level().encode(text, add_special_tokens=False).ids)


def started(modules: int = 0) -> Started:
    return Started(0, modules, queue_seconds=0.25, load_seconds=0.5)


def said(text: str, *, finish: FinishReason | None = None) -> Tokens:
    return Tokens(
        0,
        ids(text),
        finish=finish,
        prefill_seconds=1.0 if finish else 0.0,
        decode_seconds=2.0 if finish else 0.0,
    )


def reply(text: str, modules: int = 0) -> list[object]:
    return [started(modules), said(text), Tokens(0, (), finish=FinishReason.END, prefill_seconds=1.0)]


def call(*texts: str, adapter: str | None = None, **generation) -> ServeCall:
    selector = AdapterSelector("acme", adapter) if adapter else None
    inputs = tuple(Content(text) for text in texts or ("hello",))
    return ServeCall("acme", selector, inputs, GenerationSettings(**generation))


async def collect(serving: Serving, asked: ServeCall) -> list[object]:
    async with asyncio.timeout(HANG_SECONDS):
        return [event async for event in serving.serve(asked)]


def texts_of(events: list[object], inputs: int) -> list[str]:
    return [
        "".join(event.text for event in events if isinstance(event, Delta) and event.input == i)
        for i in range(inputs)
    ]


def metric(page: CollectorRegistry, name: str, **labels: str) -> float:
    return page.get_sample_value(name, labels) or 0.0


# One input


async def test_a_reply_comes_as_served_by_deltas_and_done(serving, engine):
    engine.scripts = [[started(), said("hello "), said("world", finish=FinishReason.LENGTH)]]
    events = await collect(serving, call("say it"))
    assert events[0] == ServedBy("", "", "bases/tiny", BASE, 0, "replica-1")
    assert texts_of(events, 1) == ["hello world"]
    done = events[-1]
    assert isinstance(done, Done)
    assert done.outcomes == (Outcome(FinishReason.LENGTH),)
    assert (done.prompt_tokens, done.completion_tokens) == (
        len(ids("say it")),
        len(ids("hello ") + ids("world")),
    )
    assert (done.timing.queue, done.timing.load, done.timing.prefill, done.timing.decode) == (
        0.25,
        0.5,
        1.0,
        2.0,
    )
    assert engine.cancelled == []


async def test_served_by_names_the_version_that_answered(serving, engine, add):
    version = add("redact")
    engine.scripts = [reply("ok", MODULES)]
    events = await collect(serving, call(adapter="redact"))
    assert events[0] == ServedBy(version.name, ADAPTER, "bases/tiny", BASE, MODULES, "replica-1")
    ((_, handle, _),) = engine.submitted
    assert (handle.digest, handle.directory) == (ADAPTER, str(version.directory))


async def test_a_stop_string_ends_the_reply_and_the_sequence(serving, engine):
    engine.scripts = [[started(), said("one EN"), said("D two"), said(" three")]]
    events = await collect(serving, call(stop=("END",)))
    assert texts_of(events, 1) == ["one "]
    assert events[-1].outcomes == (Outcome(FinishReason.STOP, "END"),)
    assert engine.cancelled == [0]


async def test_tokens_that_came_after_a_stop_string_are_not_of_the_reply(serving, engine):
    """Of one event, as a reader that is slower than the engine gets them."""
    logprobs = tuple(TokenLogprobs(-1.0, (), ()) for _ in ids("one END two"))
    late = Tokens(0, ids("one END two"), logprobs, FinishReason.LENGTH, decode_seconds=1.0)
    kept = len(ids("one END"))
    assert kept < len(ids("one END two"))
    engine.scripts = [[started(), late]]
    _, delta, done = await collect(serving, call(stop=("END",), logprobs=1))
    assert (delta.text, delta.token_ids, len(delta.logprobs)) == ("one ", ids("one END"), kept)
    assert (done.outcomes, done.completion_tokens) == ((Outcome(FinishReason.STOP, "END"),), kept)


async def test_what_looked_like_a_stop_string_comes_at_the_end(serving, engine):
    engine.scripts = [[started(), said("one EN"), said("", finish=FinishReason.END)]]
    events = await collect(serving, call(stop=("END",)))
    assert texts_of(events, 1) == ["one EN"]
    assert events[-1].outcomes == (Outcome(FinishReason.END),)


async def test_a_truncated_prompt_is_told(serving, engine):
    engine.scripts = [reply("ok")]
    long = "word " * 100
    events = await collect(serving, call(long, max_tokens=10, truncation=Truncation.KEEP_END))
    expected = len(ids(long)) - (64 - 10)
    assert events[-1].outcomes[0].truncated_tokens == expected
    assert engine.submitted[0][0] == ids(long)[expected:]


async def test_leaving_early_cancels_the_sequence(serving, engine):
    engine.scripts = [[started(), said("hello")]]
    async with aclosing(serving.serve(call())) as events:
        assert isinstance(await anext(events), ServedBy)
        assert isinstance(await anext(events), Delta)
    assert engine.cancelled == [0]


async def test_a_reader_that_is_cancelled_cancels_the_sequence(serving, engine):
    engine.scripts = [[started()]]
    began = asyncio.Event()

    async def read() -> None:
        async for _ in serving.serve(call()):
            began.set()

    task = asyncio.create_task(read())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.cancelled == [0]


# Several inputs


async def test_every_input_has_its_own_reply(serving, engine):
    engine.scripts = [reply("one"), reply("two"), reply("three")]
    events = await collect(serving, call("a", "bb", "ccc", seed=5))
    assert texts_of(events, 3) == ["one", "two", "three"]
    assert [type(event) for event in events].count(ServedBy) == 1
    assert isinstance(events[0], ServedBy)
    assert len(events[-1].outcomes) == 3
    assert events[-1].completion_tokens == sum(len(ids(text)) for text in ("one", "two", "three"))
    assert [prompt for prompt, _, _ in engine.submitted] == [ids("a"), ids("bb"), ids("ccc")]
    assert [sampling.seed for _, _, sampling in engine.submitted] == [5, 6, 7]


async def test_one_that_ends_by_a_stop_string_leaves_the_others_alone(serving, engine):
    engine.scripts = [[started(), said("a STOP")], reply("two")]
    events = await collect(serving, call("a", "b", stop=("STOP",)))
    assert texts_of(events, 2) == ["a ", "two"]
    assert [outcome.finish for outcome in events[-1].outcomes] == [FinishReason.STOP, FinishReason.END]
    assert engine.cancelled == [0]


@pytest.mark.parametrize("silent", [0, 2])
async def test_the_first_failure_ends_all_and_cancels_the_rest(serving, engine, silent):
    scripts: list[object] = [reply("done"), [started(), Failed(1, Unavailable("gone").to_wire())]]
    scripts.insert(silent, [started()])
    engine.scripts = scripts
    with pytest.raises(Unavailable, match="gone"):
        await collect(serving, call("a", "b", "c"))
    assert silent in engine.cancelled


async def test_a_queue_that_is_full_for_one_input_cancels_the_others(serving, engine):
    engine.scripts = [[started()], QueueFull("no place"), [started()]]
    with pytest.raises(QueueFull):
        await collect(serving, call("a", "b", "c"))
    assert set(engine.cancelled) == set(range(len(engine.submitted))) - {1}


async def test_leaving_early_cancels_every_sequence(serving, engine):
    engine.scripts = [[started(), said("x")], [started()], [started()]]
    async with aclosing(serving.serve(call("a", "b", "c"))) as events:
        assert isinstance(await anext(events), ServedBy)
    assert sorted(engine.cancelled) == list(range(len(engine.submitted)))


async def test_leaving_before_the_first_event_leaves_nothing_behind(serving, engine):
    engine.scripts = [[], [], []]

    async def read() -> None:
        async for _ in serving.serve(call("a", "b", "c")):
            pytest.fail("there is nothing to read")

    task = asyncio.create_task(read())
    await engine.all_submitted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(engine.cancelled) == [0, 1, 2]


@pytest.mark.parametrize("inputs", [1, 2])
async def test_an_engine_that_ends_a_reply_without_an_end_is_a_fault(serving, engine, inputs, monkeypatch):
    """Whatever ends a stream in silence, also a cancelled wait inside the engine's client, hangs nobody."""

    class Silent:
        request_id = 1

        def __aiter__(self):
            return self

        async def __anext__(self):
            if inputs == 2:
                raise asyncio.CancelledError
            raise StopAsyncIteration

        async def aclose(self):
            return

    monkeypatch.setattr(engine, "submit", lambda *_, **__: Silent())
    with pytest.raises(Internal, match="internal fault"):
        await collect(serving, call(*"ab"[:inputs]))


# The weights


@pytest.mark.parametrize("modules", [0, MODULES - 1, MODULES + 1])
async def test_an_adapter_that_was_not_applied_in_full_fails_the_call(serving, engine, add, modules):
    add("redact")
    engine.scripts = [[started(modules), said("wrong")]]
    with pytest.raises(Internal, match=f"{modules} modules are changed instead of {MODULES}"):
        await collect(serving, call(adapter="redact"))
    assert engine.cancelled == [0]


async def test_every_input_proves_its_weights(serving, engine, add):
    add("redact")
    engine.scripts = [[started(MODULES)], [started(MODULES - 1)]]
    with pytest.raises(Internal, match="instead of 14"):
        await collect(serving, call("a", "b", adapter="redact"))
    assert sorted(engine.cancelled) == [0, 1]


async def test_the_plain_base_is_changed_by_nothing(serving, engine):
    engine.scripts = [[started(1)]]
    with pytest.raises(Internal, match="1 modules are changed instead of 0"):
        await collect(serving, call())


async def test_what_cannot_be_served_is_refused_before_anything_is_submitted(serving, engine, add):
    add("foreign", OTHER_BASE)
    refused = [
        (call(adapter="absent"), NotFound),
        (call(adapter="foreign"), AdapterIncompatible),
        (call(max_tokens=0), InvalidField),
        (call(""), InvalidField),
        (call("ok", "word " * 100), PromptTooLong),
    ]
    for asked, error in refused:
        with pytest.raises(error):
            await collect(serving, asked)
    assert engine.submitted == []


async def test_figures_count_sequences_by_their_end(serving, engine, add, page):
    add("redact")
    engine.scripts = [
        reply("one", MODULES),
        reply("two", MODULES),
        [started(MODULES), Failed(2, Unavailable("gone").to_wire())],
    ]
    await collect(serving, call("a", "b", adapter="redact"))
    with pytest.raises(Unavailable):
        await collect(serving, call("c", adapter="redact"))
    assert metric(page, "finetuned_sequences_total", model="adapter", finish="end") == 2.0
    assert metric(page, "finetuned_sequences_total", model="adapter", finish="failed") == 1.0
    prompts, completions = (
        metric(page, "finetuned_tokens_total", kind=kind, model="adapter")
        for kind in ("prompt", "completion")
    )
    assert prompts == len(ids("a") + ids("b") + ids("c"))
    assert completions == len(ids("one") + ids("two"))
    assert metric(page, "finetuned_time_to_first_token_seconds_count", model="adapter") == 2.0
    assert metric(page, "finetuned_queue_seconds_sum", model="adapter") == 3 * 0.25
    assert metric(page, "finetuned_adapter_wait_seconds_sum") == 3 * 0.5
    assert metric(page, "finetuned_prefill_seconds_sum", model="adapter") == 2 * 1.0
    assert metric(page, "finetuned_sequence_completion_tokens_count") == 3.0


async def test_figures_count_a_sequence_that_is_left_with_what_it_said(serving, engine, page):
    engine.scripts = [[started(), said("hello"), said("world")]]
    async with aclosing(serving.serve(call("hi"))) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    assert metric(page, "finetuned_sequences_total", model="base", finish="left") == 1.0
    assert metric(page, "finetuned_tokens_total", kind="completion", model="base") == len(ids("hello"))


async def test_tokens_beside_the_first_are_counted_too(serving, engine, page):
    """A busy server gives the first tokens of a reply in one message."""
    engine.scripts = [[started(), said("abc"), said("de", finish=FinishReason.LENGTH)]]
    await collect(serving, call("hi"))
    assert metric(page, "finetuned_time_to_first_token_seconds_count", model="base") == 1
    told = len(ids("abc") + ids("de"))
    assert metric(page, "finetuned_inter_token_seconds_count", model="base") == told - 1


async def test_time_between_tokens_is_counted_once_a_token(serving, engine, page):
    engine.scripts = [[started(), said("a"), said("bcd"), said("ef", finish=FinishReason.LENGTH)]]
    await collect(serving, call("hi"))
    assert metric(page, "finetuned_inter_token_seconds_count", model="base") == len(ids("bcd") + ids("ef"))
    assert metric(page, "finetuned_time_to_first_token_seconds_count", model="base") == 1.0


# Merging by itself


async def numbers(*values: int, error: Exception | None = None):
    for value in values:
        await asyncio.sleep(0)
        yield value
    if error is not None:
        raise error


async def test_merging_keeps_the_order_of_each_source():
    async with asyncio.timeout(HANG_SECONDS):
        found = [item async for item in merged([numbers(1, 2, 3), numbers(10, 20), numbers()])]
    assert [item for item in found if item < 10] == [1, 2, 3]
    assert [item for item in found if item >= 10] == [10, 20]


async def test_no_source_runs_ahead_of_the_reader():
    given = {"a": 0, "b": 0}

    async def count(name):
        for number in range(100):
            given[name] += 1
            yield number

    async with asyncio.timeout(HANG_SECONDS), aclosing(merged([count("a"), count("b")])) as found:
        for taken in range(1, 50):
            await anext(found)
            for _ in range(10):
                await asyncio.sleep(0)  # whoever may go on does
            assert sum(given.values()) <= taken + 2


async def test_items_that_are_errors_are_items():
    async def errors():
        yield ValueError("an item")

    async with asyncio.timeout(HANG_SECONDS):
        found = [str(item) async for item in merged([errors(), errors()])]
    assert found == ["an item", "an item"]


@pytest.mark.parametrize("sources", [1, 2])
async def test_a_failure_comes_after_what_came_before_it(sources):
    found: list[int] = []

    async def read() -> None:
        rest = [numbers() for _ in range(sources - 1)]
        async for item in merged([numbers(1, 2, error=LookupError("late")), *rest]):
            found.append(item)  # noqa: PERF401 - what came before the failure is kept

    with pytest.raises(LookupError):
        await read()
    assert found == [1, 2]
