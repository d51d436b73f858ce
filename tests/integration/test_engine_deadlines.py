"""Deadlines in the real loop: late before the queue, in it, and while it runs. Time is what the test says."""

from __future__ import annotations

import dataclasses
import time

import pytest
from finetuned_service.engine import loop
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Cancel, Failed, Sampling, Started, Submit, Tokens
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import DeadlineExceeded, from_wire
from tiny_models import random_prompt, save_tiny_adapter, save_tiny_base

CONFIG = EngineConfig(
    base_directory="",
    max_running_sequences=2,
    max_prefill_tokens=64,
    kv_capacity_tokens=600,
    device_budget_bytes=1 << 20,
    host_budget_bytes=1 << 22,
)
PROMPT = random_prompt(1, 9)


class Clock:
    """Stands for `time` in the loop; waiting for nothing takes no time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base):
    return EngineModel.load(base)


@pytest.fixture
def engine(model, clock):
    with OfflineEngine(model, CONFIG) as engine:
        yield engine


class Watch:
    def __init__(self, engine):
        self.engine = engine
        self.started, self.tokens, self.errors, self.finished = [], {}, {}, {}

    def step(self):
        for event in self.engine.step():
            match event:
                case Started(request_id=request_id):
                    self.started.append(request_id)
                case Tokens(request_id=request_id):
                    self.tokens[request_id] = self.tokens.get(request_id, 0) + len(event.token_ids)
                    if event.finish:
                        self.finished[request_id] = event.finish
                case Failed(request_id=request_id):
                    self.errors[request_id] = from_wire(event.error)


def submit(request_id, deadline=None, new=20, adapter=None):
    sampling = Sampling(max_new_tokens=new, ignore_eos=True)
    return Submit(request_id, PROMPT, adapter, sampling, "t", deadline_seconds=deadline)


def test_one_that_runs_is_ended_at_its_deadline_and_its_place_is_free_in_that_step(engine, clock):
    watch = Watch(engine)
    engine.deliver(submit(1, deadline=clock.now + 5), submit(2), submit(3))
    for _ in range(4):
        watch.step()
    assert (watch.started, watch.tokens[1]) == ([1, 2], 4)
    clock.now += 5
    watch.step()
    error = watch.errors[1]
    assert isinstance(error, DeadlineExceeded)
    assert error.metadata == {"stage": "RUNNING", "completion_tokens": "4"}
    assert watch.started == [1, 2, 3]
    assert watch.tokens[1] == 4
    engine.deliver(Cancel(2), Cancel(3))
    snapshot = engine.inspect()
    assert (snapshot.running_sequences, snapshot.kv_tokens_used) == (0, 0)
    assert snapshot.counters["deadlines_running"] == 1


def test_one_that_waits_is_dropped_at_its_deadline_before_anything_is_computed(engine, clock):
    watch = Watch(engine)
    engine.deliver(submit(1), submit(2), submit(3, deadline=clock.now + 5), submit(4))
    watch.step()
    prefilled = engine.inspect().counters["prefill_tokens"]
    clock.now += 6
    watch.step()
    assert watch.errors[3].metadata == {"stage": "QUEUE"}
    assert 3 not in watch.started
    counters = engine.inspect().counters
    assert (counters["prefill_tokens"], counters["deadlines_queue"]) == (prefilled, 1)
    while len(watch.finished) < 3:
        watch.step()


def test_one_that_comes_too_late_is_refused_and_never_queued(engine, clock):
    watch = Watch(engine)
    engine.deliver(submit(1, deadline=clock.now - 1))
    watch.step()
    assert isinstance(watch.errors[1], DeadlineExceeded)
    snapshot = engine.inspect()
    assert (snapshot.waiting_sequences, snapshot.counters["deadlines_estimate"]) == (0, 1)


def fill(engine, watch, clock, seconds_each):
    """A queue that has moved at a known pace for a while: 20 wait, 2 run."""
    engine.deliver(*(submit(i, new=2) for i in range(40)))
    while len(watch.started) < 20:
        watch.step()
        clock.now += seconds_each
    return watch


def test_one_whose_turn_cannot_come_in_time_is_refused_at_once_with_the_reason(engine, clock):
    watch = fill(engine, Watch(engine), clock, seconds_each=2.0)
    engine.deliver(submit(100, deadline=clock.now + 5), submit(101, deadline=clock.now + 60), submit(102))
    watch.step()
    error = watch.errors.pop(100)
    assert isinstance(error, DeadlineExceeded)
    assert error.metadata["stage"] == "ESTIMATE"
    assert error.metadata["remaining_seconds"] == "5.000"
    assert 10 < float(error.metadata["estimated_wait_seconds"]) < 45
    assert "not queued" in error.message
    while not {101, 102} <= watch.finished.keys():
        watch.step()
    assert watch.errors == {}


def test_nobody_is_refused_for_a_pace_that_is_not_known_or_a_place_that_is_free(engine, clock):
    watch = Watch(engine)
    engine.deliver(*(submit(i, new=2) for i in range(50, 56)), submit(57, new=2, deadline=clock.now + 0.1))
    while len(watch.finished) < 7:
        watch.step()
    fill(engine, watch, clock, seconds_each=2.0)
    while len(watch.finished) < 7 + 40:
        watch.step()
    engine.deliver(submit(200, new=2, deadline=clock.now + 0.1))
    while 200 not in watch.finished:
        watch.step()
    assert watch.errors == {}


def test_a_deadline_wakes_an_engine_that_waits_for_a_load(model, base, tmp_path):
    """With the real clock: nothing runs, the load never ends, and the one that waits is told all the same."""
    adapter = save_tiny_adapter(tmp_path / "a", base, seed=1, rank=4)
    with OfflineEngine(model, dataclasses.replace(CONFIG)) as engine:
        engine._loop._loader.begin = lambda *_: None
        watch = Watch(engine)
        engine.deliver(submit(1, deadline=time.monotonic() + 0.05, adapter=adapter.handle))
        while not watch.errors:
            watch.step()
    assert watch.errors[1].metadata == {"stage": "QUEUE"}
