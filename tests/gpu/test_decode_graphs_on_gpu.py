"""Replies that CUDA graphs compute: those of PEFT, one at a time on the CPU, in float32."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.bases.device import resolve_device
from finetuned_service.engine import decode_graphs, graph_recorder
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.decode_graphs import DecodeGraphs
from finetuned_service.engine.decode_shapes import Decoding
from finetuned_service.engine.messages import Residency, Sampling, SetResidency, Submit
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from tiny_models import (
    TinyAdapter,
    load_peft,
    oracle_tokens,
    random_prompt,
    save_tiny_adapter,
    save_tiny_base,
    save_tiny_ia3,
)

pytestmark = pytest.mark.gpu

CONFIG = EngineConfig(
    "",
    max_running_sequences=16,
    max_prefill_tokens=64,
    kv_capacity_tokens=4096,
    device_budget_bytes=400_000,
    host_budget_bytes=16 << 20,
)
"""Room for some of the adapters: they take turns, and their rows move in the banks."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_graphs, "STEPS_WITHOUT_REST", 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TinyAdapter | None]:
    root = tmp_path_factory.mktemp("adapters")
    shapes: list[dict[str, Any]] = [
        {"rank": 4},
        {"rank": 16},
        {"rank": 1, "target_modules": ("q_proj", "v_proj")},
        {"rank": 7, "target_modules": ("down_proj",)},
        {"rank": 3, "rank_pattern": {"q_proj": 9}},
    ]
    made = [save_tiny_adapter(root / str(i), base, seed=i, **shape) for i, shape in enumerate(shapes)]
    return [None, *made]


def captured(engine: OfflineEngine) -> int:
    runner: Any = engine._loop.runner
    return runner._graphs.count


def requests(adapters: list[TinyAdapter | None], count: int, new_tokens: int) -> list[Submit]:
    return [
        Submit(
            number,
            random_prompt(number, 3 + 11 * number % 60),
            adapter.handle if adapter else None,
            Sampling(new_tokens + number % 5, ignore_eos=True),
        )
        for number in range(count)
        for adapter in [adapters[number % len(adapters)]]
    ]


def test_mixed_replies_are_those_of_peft(
    base: Path, adapters: list[TinyAdapter | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed: list[bool] = []
    run = DecodeGraphs.run

    def counted(graphs: DecodeGraphs, decoding: Decoding) -> Any:
        found = run(graphs, decoding)
        replayed.append(found is not None)
        return found

    monkeypatch.setattr(DecodeGraphs, "run", counted)
    asked = requests(adapters, 24, 14)
    models = [load_peft(base, adapter) for adapter in adapters]
    expected = [
        oracle_tokens(
            models[number % len(adapters)], list(request.prompt_token_ids), request.sampling.max_new_tokens
        )
        for number, request in enumerate(asked)
    ]
    model = EngineModel.load(base, device=resolve_device("cuda"))
    with OfflineEngine(model, CONFIG) as engine:
        for _ in range(2):
            # First in the shapes that are there before anything has come, then in all usual ones.
            found = [completion.token_ids for completion in engine.generate(asked)]
            assert found == expected
            engine.warm()
        assert captured(engine) > decode_graphs.FIRST_SHAPES
    assert sum(replayed) > len(replayed) / 2 > 20


def test_other_ops_beside_them_are_computed_without_a_graph(
    base: Path, adapters: list[TinyAdapter | None], tmp_path: Path
) -> None:
    ia3 = save_tiny_ia3(tmp_path / "ia3", base, seed=6)
    mixed = [*adapters, ia3]
    asked = requests(mixed, 14, 8)
    model = EngineModel.load(base, device=resolve_device("cuda"))
    with OfflineEngine(model, CONFIG) as engine:
        alone = [engine.generate([request])[0].token_ids for request in asked]
        together = [completion.token_ids for completion in engine.generate(asked)]
    assert together == alone
    assert alone[6] == oracle_tokens(
        load_peft(base, ia3), list(asked[6].prompt_token_ids), asked[6].sampling.max_new_tokens
    )


def test_another_adapter_in_the_same_rows_is_not_taken_for_the_one_before(
    base: Path, adapters: list[TinyAdapter | None]
) -> None:
    model = EngineModel.load(base, device=resolve_device("cuda"))
    with OfflineEngine(model, CONFIG) as engine:
        for adapter in (adapters[1], adapters[2], adapters[1]):
            assert adapter is not None
            prompt = random_prompt(3, 20)
            request = Submit(1, prompt, adapter.handle, Sampling(12, ignore_eos=True))
            found = engine.generate([request])[0].token_ids
            assert found == oracle_tokens(load_peft(base, adapter), list(prompt), 12)
            engine.deliver(SetResidency(7, adapter.handle, Residency.STORED))
            engine.step()


def test_one_whose_capture_fails_serves_without_graphs(
    base: Path, adapters: list[TinyAdapter | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise RuntimeError("no capture today")

    monkeypatch.setattr(graph_recorder.torch.cuda, "graph", fail)
    model = EngineModel.load(base, device=resolve_device("cuda"))
    with OfflineEngine(model, CONFIG) as engine:
        (completion,) = engine.generate(requests(adapters, 1, 14))
        assert captured(engine) == 0
    assert completion.token_ids == oracle_tokens(load_peft(base, None), list(random_prompt(0, 3)), 14)


def test_what_an_ended_engine_left_is_not_freed_while_another_captures() -> None:
    """A graph in a circle is freed by the garbage collector, whose turn comes whenever objects are made."""
    device = resolve_device("cuda")
    recorder = graph_recorder.CudaRecorder(device)
    numbers = torch.arange(4.0, device=device)

    def double() -> tuple[torch.Tensor, torch.Tensor]:
        made = [[] for _ in range(1000)]
        assert len(made) == 1000
        return numbers * 2, numbers + 1

    circle: list[Any] = [recorder.record(double)]
    circle.append(circle)
    thresholds = gc.get_threshold()
    gc.collect()
    del circle
    gc.set_threshold(10, 1, 1)
    try:
        recording = recorder.record(double)
    finally:
        gc.set_threshold(*thresholds)
    assert gc.isenabled()
    gc.collect()
    recording.replay()
    assert recording.outputs[0].tolist() == [0.0, 2.0, 4.0, 6.0]
