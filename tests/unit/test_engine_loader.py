"""LoaderThreads: each load is told once, one after another, and one that gets no time is begun again."""

from __future__ import annotations

import os
import queue
import threading

import pytest
from finetuned_service.engine.loader import LoaderThreads
from finetuned_service.engine.memory import Loaded
from finetuned_service.errors import Internal, NotFound

WAIT_SECONDS = 60.0
Ends = queue.SimpleQueue[Loaded]


@pytest.mark.parametrize("gives_way", [False, True])
def test_loads_end_in_their_order_with_what_they_made_or_their_error(gives_way: bool) -> None:
    ends: Ends = queue.SimpleQueue()

    def refused() -> str:
        raise NotFound("it is gone")

    def broken() -> str:
        raise ZeroDivisionError

    loader = LoaderThreads(ends.put, gives_way=gives_way, patience_seconds=WAIT_SECONDS)
    for digest, work in (("a", lambda: "weights"), ("b", refused), ("c", broken), ("d", lambda: None)):
        loader.begin(digest, work)
    found = [ends.get(timeout=WAIT_SECONDS) for _ in range(4)]
    assert [(end.digest, end.weights, type(end.error)) for end in found] == [
        ("a", "weights", type(None)),
        ("b", None, NotFound),
        ("c", None, Internal),
        ("d", None, type(None)),
    ]
    loader.close()
    assert ends.empty()


def test_a_load_that_gives_way_runs_at_idle_priority_and_so_do_threads_it_starts() -> None:
    ends: Ends = queue.SimpleQueue()
    seen: list[int] = []

    def work() -> None:
        seen.append(os.sched_getscheduler(0))
        thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
        thread.start()
        thread.join()

    for gives_way in (True, False):
        loader = LoaderThreads(ends.put, gives_way=gives_way, patience_seconds=WAIT_SECONDS)
        loader.begin("a", work)
        assert ends.get(timeout=WAIT_SECONDS).error is None
        loader.close()
    assert seen == [os.SCHED_IDLE, os.SCHED_IDLE, os.SCHED_OTHER, os.SCHED_OTHER]


def test_a_load_that_gets_no_time_is_begun_again_and_told_once() -> None:
    ends: Ends = queue.SimpleQueue()
    stuck = threading.Event()
    policies: list[int] = []

    def work() -> str:
        policies.append(os.sched_getscheduler(0))
        if len(policies) == 1:
            stuck.wait(WAIT_SECONDS)
            return "late"
        return "in time"

    loader = LoaderThreads(ends.put, gives_way=True, patience_seconds=0.01)
    loader.begin("a", work)
    loader.begin("b", lambda: "after it")
    assert ends.get(timeout=WAIT_SECONDS).weights == "in time"
    assert ends.get(timeout=WAIT_SECONDS).weights == "after it"
    assert policies == [os.SCHED_IDLE, os.SCHED_OTHER]
    stuck.set()
    loader.close()
    assert ends.empty()


def test_patience_begins_with_a_loads_turn() -> None:
    ends: Ends = queue.SimpleQueue()
    ran: list[int] = []
    loader = LoaderThreads(ends.put, gives_way=True, patience_seconds=WAIT_SECONDS)
    begun, may_end = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        may_end.wait(WAIT_SECONDS)

    loader.begin("first", first)
    for number in range(4):
        loader.begin(str(number), lambda number=number: ran.append(number))
    assert begun.wait(WAIT_SECONDS)
    may_end.set()
    assert [ends.get(timeout=WAIT_SECONDS).digest for _ in range(5)] == ["first", "0", "1", "2", "3"]
    loader.close()
    assert ran == [0, 1, 2, 3]


def test_closing_waits_for_the_load_that_runs() -> None:
    ends: Ends = queue.SimpleQueue()
    begun, may_end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(WAIT_SECONDS)

    loader = LoaderThreads(ends.put, gives_way=True, patience_seconds=WAIT_SECONDS)
    loader.begin("a", work)
    assert begun.wait(WAIT_SECONDS)
    closing = threading.Thread(target=loader.close)
    closing.start()
    assert ends.empty()
    may_end.set()
    closing.join(WAIT_SECONDS)
    assert not closing.is_alive()
    assert ends.get(timeout=WAIT_SECONDS).digest == "a"
