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


@pytest.mark.parametrize(
    ("share", "worked", "slept"),
    [(0.0, 0.02, []), (0.2, 0.0, []), (0.2, 0.02, [0.005]), (0.5, 0.01, [0.01]), (0.25, 9.0, [MOST_SECONDS])],
)
def test_a_pause_is_as_long_as_the_share_asks_for(share: float, worked: float, slept: list[float]) -> None:
    found: list[float] = []
    rest = Rest(found.append)
    rest.share = share
    rest.worked(worked)
    rest.take()
    rest.take()  # nothing was worked since
    assert found == pytest.approx(slept)


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
            self.rest.worked(0.01)
            return [f"step {self.steps}"]

        def abandon(self) -> list[str]:
            return ["abandoned"]

        def close(self) -> None:
            done.append("closed")

    Loop.rest.share = 0.2
    run(Loop(), done.extend)
    assert done == ["step 1", "pause", "step 2", "pause", "abandoned", "closed"]
