"""Every method of training for text generation through a real server: trained, served beside the others, out and
in again, with solo PEFT (which refuses to mix them) as the oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from finetuned import Client, EvaluationOptions, Ia3, Lora, Method, Optimization, errors
from finetuned_service.text.tokenizer import BaseTokenizer
from peft import PeftModel
from served_oracle import PROMPT, ask, check_against_oracle
from tiny_models import load_plain, peft_warnings_allowed
from tiny_server import TinyServer, make_data_directory, running

METHODS: dict[str, tuple[Method, int, dict[str, Any]]] = {
    "dora": (Method.LORA, 14, {"lora": Lora(rank=4, decomposed=True)}),
    "patterns": (
        Method.LORA,
        6,
        {
            "lora": Lora(
                rank=4,
                target_modules=("q_proj", "v_proj", "mlp.up_proj"),
                rank_pattern={"q_proj": 2, "layers.1.self_attn.q_proj": 8, "layers.1.mlp.up_proj": 1},
                alpha_pattern={"v_proj": 12.0},
            )
        },
    ),
    "ia3": (Method.IA3, 6, {"ia3": Ia3()}),
}
"""By adapter: the method, how many modules it changes, its settings."""


def train(client: Client, adapter: str, settings: dict[str, Any], **others: Any) -> Any:
    return client.train(
        dataset="rows",
        adapter=adapter,
        optimization=Optimization(max_steps=4, batch_rows=4, learning_rate=2e-2),
        evaluation=EvaluationOptions(evaluations=1, generation_rows=2, generation_max_tokens=4),
        **settings,
        **others,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    directory = tmp_path_factory.mktemp("methods")
    make_data_directory(directory)
    rows = directory / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n} it is"}}\n' for n in range(20)))
    with running(directory / "data") as server, Client(server.endpoint) as client:
        client.datasets.upload(rows, "rows")
        jobs = [train(client, adapter, settings) for adapter, (_, _, settings) in METHODS.items()]
        for job in jobs:
            client.jobs.wait(job.name, timeout_seconds=600.0).check()
        yield server


@pytest.fixture
def client(trained: TinyServer) -> Iterator[Client]:
    with Client(trained.endpoint) as found:
        yield found


def oracle(server: TinyServer, directory: Path) -> Any:
    with peft_warnings_allowed():
        return PeftModel.from_pretrained(load_plain(server.base_directory), str(directory)).eval()


def test_all_methods_are_served_in_one_batch_as_each_is_alone(
    trained: TinyServer, client: Client, tmp_path: Path
) -> None:
    prompt = BaseTokenizer.load(trained.base_directory).encode(PROMPT.text, add_special_tokens=True)
    asked: list[str | None] = [*METHODS, None]
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = dict(zip(asked, pool.map(lambda name: ask(client, name), asked), strict=True))
    check_against_oracle(replies.pop(None), load_plain(trained.base_directory), prompt)
    for name, reply in replies.items():
        assert name is not None
        client.adapters.export(name, tmp_path / name)
        check_against_oracle(reply, oracle(trained, tmp_path / name), prompt)
        assert (reply.served_by.label, reply.served_by.modules) == (f"{name}@1", METHODS[name][1])


@pytest.mark.parametrize("adapter", METHODS)
def test_a_version_tells_its_method_and_an_export_is_imported_as_the_same(
    client: Client, tmp_path: Path, adapter: str
) -> None:
    version = client.adapters.version(f"{adapter}@1")
    assert (version.method, version.modules) == METHODS[adapter][:2]
    assert {metric.name for metric in version.metrics} == {"loss", "exact_match"}
    client.adapters.export(adapter, tmp_path / "out")
    again = client.adapters.import_directory(
        tmp_path / "out", f"{adapter}-again", expected_base_digest=version.base_digest
    )
    assert (again.digest, again.method) == (version.digest, version.method)
    assert ask(client, f"{adapter}-again").token_ids == ask(client, adapter).token_ids


def test_the_server_tells_the_methods_and_a_job_its_resolved_settings(client: Client) -> None:
    assert client.server_info().methods == (Method.LORA, Method.IA3)
    job = train(client, "checked", {"ia3": Ia3()}, validate_only=True)
    assert job.train.lora is None
    assert job.train.ia3 == Ia3(
        target_modules=("down_proj", "k_proj", "v_proj"), feedforward_modules=("down_proj",)
    )


@pytest.mark.parametrize(
    ("settings", "field", "said"),
    [
        (
            {"lora": Lora(target_modules=("c_attn",))},
            "spec.lora.target_modules",
            "linear modules are down_proj",
        ),
        ({"lora": Lora(rank_pattern={"c_attn": 4})}, "spec.lora.rank_pattern", "which no target module has"),
        ({"lora": Lora(rank_pattern={"(a+)+$": 4})}, "spec.lora.rank_pattern", "which no target module has"),
        (
            {"lora": Lora(rank_pattern={"q_proj": 0})},
            "spec.lora.rank_pattern.q_proj",
            "greater than or equal to 1",
        ),
        ({"lora": Lora(rank=257)}, "spec.lora.rank", "less than or equal to 256"),
        ({"lora": Lora(alpha_pattern={"q_proj": -1.0})}, "spec.lora.alpha_pattern.q_proj", "greater than 0"),
        ({"ia3": Ia3(target_modules=("c_attn",))}, "spec.ia3.target_modules", "linear modules are down_proj"),
        (
            {"ia3": Ia3(target_modules=("k_proj",), feedforward_modules=("down_proj",))},
            "spec.ia3.feedforward_modules",
            "allowed are names from target_modules: k_proj",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_stored(
    client: Client, settings: dict[str, Any], field: str, said: str
) -> None:
    jobs = len(list(client.jobs.list()))
    with pytest.raises(errors.InvalidField, match=said) as refused:
        train(client, "refused", settings)
    assert field in {violation.field for violation in refused.value.violations}
    assert len(list(client.jobs.list())) == jobs
