"""An engine whose decoding steps are captured (by a fake, on the CPU): when, and that replies are PEFT's all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_recorder import FakeRecorder
from finetuned_service.engine import decode_graphs, plain
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Sampling, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from tiny_models import (
    TinyAdapter,
    load_peft,
    oracle_tokens,
    random_prompt,
    save_tiny_adapter,
    save_tiny_base,
)

CONFIG = EngineConfig(
    "", max_running_sequences=4, max_prefill_tokens=64, kv_capacity_tokens=512, device_budget_bytes=200_000
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TinyAdapter | None]:
    root = tmp_path_factory.mktemp("adapters")
    return [None, *(save_tiny_adapter(root / str(rank), base, seed=rank, rank=rank) for rank in (2, 5))]


@pytest.fixture(scope="module")
def model(base: Path) -> EngineModel:
    return EngineModel.load(base)


def engine_with(
    recorder: FakeRecorder, model: EngineModel, monkeypatch: pytest.MonkeyPatch, config: EngineConfig = CONFIG
) -> OfflineEngine:
    monkeypatch.setattr(plain, "recorder_of", lambda _device: recorder)
    return OfflineEngine(model, config)


def requests(adapters: list[TinyAdapter | None], count: int = 6, new_tokens: int = 9) -> list[Submit]:
    return [
        Submit(
            number,
            random_prompt(number, 5 + 7 * number),
            adapter.handle if adapter else None,
            Sampling(new_tokens, ignore_eos=True),
        )
        for number in range(count)
        for adapter in [adapters[number % len(adapters)]]
    ]


def rest(engine: OfflineEngine, recorder: FakeRecorder) -> int:
    """Steps with nothing to compute until nothing is captured any more; how many were."""
    before = recorder.captures
    runner: Any = engine._loop.runner
    while engine._loop._warmed():
        assert runner._graphs.count == recorder.captures
    return recorder.captures - before


def test_replies_of_replayed_steps_are_those_of_peft(
    base: Path, model: EngineModel, adapters: list[TinyAdapter | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = FakeRecorder()
    asked = requests(adapters)
    models = [load_peft(base, adapter) for adapter in adapters]
    expected = [
        oracle_tokens(models[number % 3], list(request.prompt_token_ids), request.sampling.max_new_tokens)
        for number, request in enumerate(asked)
    ]
    with engine_with(recorder, model, monkeypatch) as engine:
        # By the first graphs alone, in larger shapes than the steps'; then by those of every shape.
        for _ in range(2):
            assert [completion.token_ids for completion in engine.generate(asked)] == expected
            assert len(recorder.replays) > 8
            recorder.replays.clear()
            rest(engine, recorder)


def test_three_shapes_are_captured_before_it_is_ready_and_none_while_a_sequence_runs(
    model: EngineModel, adapters: list[TinyAdapter | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = FakeRecorder()
    with engine_with(recorder, model, monkeypatch) as engine:
        assert recorder.captures == decode_graphs.FIRST_SHAPES == 3
        # Of cold adapters alone: there are moments in which all wait, and nothing is computed.
        engine.generate(requests(adapters[1:]))
        assert recorder.captures == 3
        monkeypatch.setattr(
            recorder, "on_capture", lambda: engine._loop.scheduler.running and pytest.fail("busy")
        )
        assert rest(engine, recorder) > 3
        assert rest(engine, recorder) == 0


def test_a_step_without_a_graph_is_computed_without_one_and_has_one_after_a_rest(
    model: EngineModel, adapters: list[TinyAdapter | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "usual_shapes", lambda *_: [])
    recorder = FakeRecorder()
    with engine_with(recorder, model, monkeypatch) as engine:
        asked = requests(adapters, count=1)
        first = engine.generate(asked)[0].token_ids
        assert (recorder.captures, recorder.replays) == (0, [])
        assert rest(engine, recorder) == 1  # the one shape that came
        assert engine.generate(asked)[0].token_ids == first
        assert len(recorder.replays) == asked[0].sampling.max_new_tokens - 1


def test_an_engine_that_never_rests_captures_what_it_needs_after_many_steps(
    model: EngineModel, adapters: list[TinyAdapter | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "usual_shapes", lambda *_: [])
    monkeypatch.setattr(decode_graphs, "STEPS_WITHOUT_REST", 3)
    recorder = FakeRecorder()
    with engine_with(recorder, model, monkeypatch) as engine:
        engine.generate(requests(adapters, count=1, new_tokens=9))
    # Of eight steps that decode, three without and the others by the graph.
    assert (recorder.captures, len(recorder.replays)) == (1, 5)


@pytest.mark.parametrize("fails_at", [1, 3, 5])
def test_where_a_capture_fails_it_serves_with_those_it_has_and_tries_no_more(
    base: Path,
    model: EngineModel,
    adapters: list[TinyAdapter | None],
    monkeypatch: pytest.MonkeyPatch,
    fails_at: int,
) -> None:
    recorder = FakeRecorder(fails_at)
    with engine_with(recorder, model, monkeypatch) as engine:
        rest(engine, recorder)
        (completion,) = engine.generate(requests(adapters, count=1))
        assert recorder.captures == fails_at
        runner: Any = engine._loop.runner
        assert runner._graphs.count == fails_at - 1
    assert completion.token_ids == oracle_tokens(load_peft(base, None), list(random_prompt(0, 5)), 9)
