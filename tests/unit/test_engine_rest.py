"""The pauses of an engine beside a job: their length by what was computed, none where nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.loop import EngineLoop
from finetuned_service.engine.messages import LeaveTime, Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.process import run
from finetuned_service.engine.rest import MOST_SECONDS, Rest
from tiny_models import save_tiny_base


class Time:
    """A clock that only moves when told to; it keeps what was slept."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)

    def rest(self, share: float) -> Rest:
        rest = Rest(self.sleep, lambda: self.now)
        rest.share = share
        return rest


@pytest.mark.parametrize(
    ("share", "busy", "slept"),
    [(0.0, 0.02, []), (0.2, 0.02, [0.005]), (0.5, 0.01, [0.01]), (0.25, 9.0, [MOST_SECONDS])],
)
def test_a_pause_is_as_long_as_the_share_asks_for(share: float, busy: float, slept: list[float]) -> None:
    time = Time()
    rest = time.rest(share)
    time.now += busy
    rest.computed()
    rest.take()
    rest.take()  # nothing was computed since
    assert time.slept == pytest.approx(slept)


def test_a_pause_counts_all_of_a_busy_engines_time_but_neither_pauses_nor_what_it_waited_for_requests() -> (
    None
):
    time = Time()
    rest = time.rest(0.2)
    for _ in range(2):
        time.now += 0.015  # the step
        rest.computed()
        time.now += 0.005  # its events are sent
        rest.take()
    assert time.slept == pytest.approx([0.005, 0.005])
    time.now += 60.0  # no request
    rest.take()
    time.now += 0.004
    rest.computed()
    rest.take()
    assert time.slept == pytest.approx([0.005, 0.005, 0.001])


def test_an_engine_pauses_after_steps_once_it_is_told_to_and_until_it_is_told_otherwise(
    tmp_path: Path,
) -> None:
    loop = EngineLoop(EngineModel.load(save_tiny_base(tmp_path)), EngineConfig("", kv_capacity_tokens=256))
    found: list[float] = []
    loop.rest._sleep = found.append
    try:
        for number, share in enumerate((0.0, 0.25, 0.0)):
            before = len(found)
            loop.deliver(LeaveTime(share))
            loop.deliver(Submit(number, (3, 4, 5), None, Sampling(4, ignore_eos=True)))
            while not any(getattr(event, "finish", None) for event in loop.step()):
                loop.rest.take()
            assert (len(found) > before) == (share > 0)
    finally:
        loop.close()


def test_the_process_sends_what_a_step_told_before_it_pauses_and_ends_streams_before_its_threads() -> None:
    done: list[str] = []

    class Loop:
        steps = 0
        rest = Rest(lambda _: done.append("pause"))

        @property
        def stopped(self) -> bool:
            return self.steps == 2

        def step(self) -> list[str]:
            self.steps += 1
            self.rest.computed()
            return [f"step {self.steps}"]

        def abandon(self) -> list[str]:
            return ["abandoned"]

        def close(self) -> None:
            done.append("closed")

    Loop.rest.share = 0.2
    run(Loop(), done.extend)
    assert done == ["step 1", "pause", "step 2", "pause", "abandoned", "closed"]
