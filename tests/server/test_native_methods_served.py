"""A server on the native path, as one is on a CPU whose base is in bfloat16: adapters of every method answer in one
batch, each to the last bit as alone, and near plain transformers in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned import Client, Reply
from finetuned_service.text.tokenizer import BaseTokenizer
from own_layouts import oracle, save_bottleneck, save_parameters
from served_oracle import PROMPT, ask
from tiny_models import TinyAdapter, load_peft, oracle_logits, save_tiny_adapter, save_tiny_ia3
from tiny_server import TinyServer, make_data_directory, running

TOLERANCE = 0.25
"""Of a log-probability in bfloat16; those of other adapters are further away."""


def made(directory: Path, base: Path) -> dict[str, TinyAdapter]:
    parts = [f"model.layers.{number}.{part}" for number in (0, 1) for part in ("self_attn", "mlp")]
    names = [
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "model.norm.weight",
    ]
    embedding = "model.embed_tokens.weight"
    return {
        "lora": save_tiny_adapter(directory / "lora", base, seed=1, spread=0.1),
        "dora": save_tiny_adapter(directory / "dora", base, seed=2, spread=0.1, use_dora=True),
        "ia3": save_tiny_ia3(directory / "ia3", base, seed=3),
        "houlsby": save_bottleneck(directory / "houlsby", base, parts, seed=4),
        "head": save_parameters(directory / "head", base, ["lm_head.weight"], method="HEAD", seed=5),
        "layers": save_parameters(directory / "layers", base, names, method="LAYERS", seed=6),
        "full": save_parameters(
            directory / "full",
            base,
            [*names, embedding],
            method="FULL",
            seed=7,
            tied={embedding: ["lm_head"]},
        ),
    }


@dataclass(frozen=True)
class Stage:
    server: TinyServer
    client: Client
    adapters: dict[str, TinyAdapter]

    def oracle(self, name: str | None) -> Any:
        base = self.server.base_directory
        adapter = None if name is None else self.adapters[name]
        if adapter is None or name in {"lora", "dora", "ia3"}:
            return load_peft(base, adapter, torch.float32)
        return oracle(base, adapter, torch.float32)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("native")
    base = make_data_directory(directory, dtype=torch.bfloat16, head_dim=16)
    adapters = made(directory / "adapters", base)
    settings = {"compute": "native", "max_running_sequences": 8, "max_queued_sequences": 8}
    with running(directory / "data", **settings) as server, Client(server.endpoint) as client:
        digest = client.server_info().base.digest
        for name, adapter in adapters.items():
            client.adapters.import_directory(adapter.directory, name, expected_base_digest=digest)
        yield Stage(server, client, adapters)


def said(reply: Reply) -> tuple[object, ...]:
    return reply.token_ids, reply.logprobs, reply.served_by.modules


def test_every_method_answers_in_one_batch_as_alone(stage: Stage) -> None:
    assert stage.client.server_info().compute_path.startswith("native")
    asked: list[str | None] = [None, *stage.adapters]
    alone = {name: ask(stage.client, name) for name in asked}
    with ThreadPoolExecutor(len(asked)) as pool:
        together = dict(zip(asked, pool.map(lambda name: ask(stage.client, name), asked), strict=True))
    for name in asked:
        assert said(together[name]) == said(alone[name])
    assert [alone[name].served_by.modules for name in asked] == [0, 14, 14, 6, 4, 1, 3, 4]
    prompt = BaseTokenizer.load(stage.server.base_directory).encode(PROMPT.text, add_special_tokens=True)
    for name, reply in alone.items():
        found = torch.tensor([told.logprob for told in reply.logprobs])
        near = {other: away(found, stage.oracle(other), prompt, reply) for other in asked}
        assert near[name] < TOLERANCE
        assert all(near[other] > 2 * near[name] for other in asked if other != name)


def away(found: torch.Tensor, model: Any, prompt: list[int], reply: Reply) -> float:
    """How far the log-probabilities of a reply are from a model's, at the most."""
    ids = [*prompt, *reply.token_ids]
    rows = oracle_logits(model, ids)[len(prompt) - 1 : -1].log_softmax(-1)
    expected = rows.gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
    return float((found - expected).abs().max())


def test_the_memory_of_whole_parameters_is_told_and_given_back(stage: Stage) -> None:
    (loaded,) = stage.client.adapters.load("full").residency
    (stored,) = stage.adapters["full"].directory.glob("*.safetensors")
    assert loaded.resident_bytes >= stored.stat().st_size * 0.9  # the same dtype, without the file's header
    assert stage.client.adapters.unload("full").residency[0].resident_bytes == 0
