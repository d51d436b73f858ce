"""Every method of training for text generation through a real server: trained, served beside the others, out and
in again, with solo PEFT (which refuses to mix them) as the oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned import (
    Bottleneck,
    BottleneckPlacement,
    Client,
    EvaluationOptions,
    Full,
    Head,
    Ia3,
    Layers,
    Lora,
    Method,
    Optimization,
    Pooling,
    Qlora,
    errors,
)
from finetuned_service.adapters.layouts import PREFIX
from finetuned_service.text.tokenizer import BaseTokenizer
from packed_oracle import unpacked_model
from peft import PeftModel
from safetensors.torch import load_file
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
    "saved": (
        Method.LORA,
        3,
        {"lora": Lora(rank=4, target_modules=("q_proj",), modules_to_save=("lm_head",))},
    ),
    "ia3": (Method.IA3, 6, {"ia3": Ia3()}),
    "ia3-saved": (Method.IA3, 6 + 3, {"ia3": Ia3(modules_to_save=("q_proj", "model.norm"))}),
    "houlsby": (Method.BOTTLENECK, 4, {"bottleneck": Bottleneck(reduction_factor=8)}),
    "pfeiffer": (
        Method.BOTTLENECK,
        2,
        {"bottleneck": Bottleneck(placement=BottleneckPlacement.PFEIFFER, width=4)},
    ),
    "head": (Method.HEAD, 1, {"head": Head()}),
    "layers": (Method.LAYERS, 10, {"layers": Layers(last=1, modules=("model.norm",))}),
    "full": (Method.FULL, 20, {"full": Full()}),
}
"""By adapter: the method, how many modules it changes, its settings."""
IN_PEFT = ("dora", "patterns", "saved", "ia3", "ia3-saved")


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


def oracle(server: TinyServer, name: str, directory: Path) -> Any:
    """PEFT where it has the method; else plain transformers, its parameters or layers changed by hand."""
    model = load_plain(server.base_directory)
    if name in IN_PEFT:
        with peft_warnings_allowed():
            return PeftModel.from_pretrained(model, str(directory)).eval()
    tensors = {
        n.removeprefix(PREFIX): t for n, t in load_file(directory / "adapter_model.safetensors").items()
    }
    if METHODS[name][0] is Method.BOTTLENECK:
        for module in {n.partition(".adapter_")[0] for n in tensors}:
            add_bottleneck(model.get_submodule(module), tensors, module)
        return model
    if name == "head":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    own = dict(model.named_parameters())
    with torch.no_grad():
        for parameter, tensor in tensors.items():
            own[parameter].copy_(tensor)
    return model


def add_bottleneck(module: torch.nn.Module, tensors: dict[str, torch.Tensor], name: str) -> None:
    down, bias, up, up_bias = (
        tensors[f"{name}.adapter_{part}"] for part in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    forward = module.forward

    def added(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        h = output[0] if isinstance(output, tuple) else output
        h = h + torch.nn.functional.gelu(h @ down.T + bias) @ up.T + up_bias
        return (h, *output[1:]) if isinstance(output, tuple) else h

    module.forward = added


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
        check_against_oracle(reply, oracle(trained, name, tmp_path / name), prompt)
        assert (reply.served_by.label, reply.served_by.modules) == (f"{name}@1", METHODS[name][1])


@pytest.mark.parametrize("adapter", METHODS)
def test_a_version_tells_its_method_and_an_export_is_imported_as_the_same(
    client: Client, tmp_path: Path, adapter: str
) -> None:
    version = client.adapters.version(f"{adapter}@1")
    assert (version.method, version.modules) == METHODS[adapter][:2]
    assert {metric.name for metric in version.metrics} == {"loss", "exact_match", "general_perplexity"}
    client.adapters.export(adapter, tmp_path / "out")
    again = client.adapters.import_directory(
        tmp_path / "out", f"{adapter}-again", expected_base_digest=version.base_digest
    )
    assert (again.digest, again.method) == (version.digest, version.method)
    assert ask(client, f"{adapter}-again").token_ids == ask(client, adapter).token_ids


def test_the_server_tells_the_methods_and_a_job_its_resolved_settings(client: Client) -> None:
    assert set(client.server_info().methods) == {method for method, _, _ in METHODS.values()} | {Method.QLORA}
    job = train(client, "checked", {"ia3": Ia3()}, validate_only=True)
    assert job.train.lora is None
    assert job.train.ia3 == Ia3(
        target_modules=("down_proj", "k_proj", "v_proj"), feedforward_modules=("down_proj",)
    )
    job = train(client, "checked", {"bottleneck": Bottleneck()}, validate_only=True)
    assert (job.train.bottleneck.width, job.train.bottleneck.target_modules) == (
        3,
        tuple(f"model.layers.{number}.{part}" for number in (0, 1) for part in ("mlp", "self_attn")),
    )
    job = train(client, "checked", {"layers": Layers()}, validate_only=True)
    assert job.train.layers == Layers(last=1, layers=(1,))


@pytest.mark.parametrize(
    ("settings", "field", "said"),
    [
        (
            {"lora": Lora(modules_to_save=("pooler",))},
            "spec.lora.modules_to_save",
            "modules with parameters are down_proj, embed_tokens",
        ),
        ({"lora": Lora(modules_to_save=("q_proj",))}, "spec.lora.modules_to_save", "are targets, too"),
        ({"bottleneck": Bottleneck(width=49)}, "spec.bottleneck.width", "1 to 48"),
        (
            {"bottleneck": Bottleneck(reduction_factor=0.5)},
            "spec.bottleneck.reduction_factor",
            "greater than",
        ),
        (
            {"bottleneck": Bottleneck(target_modules=("q_proj",))},
            "spec.bottleneck.target_modules",
            "and their parts: mlp, self_attn",
        ),
        ({"layers": Layers(last=3)}, "spec.layers.last", "the base has 2 layers: 1 to 2"),
        ({"layers": Layers(layers=(0, 2))}, "spec.layers.layers", "names 2; the base's layers are 0 to 1"),
        ({"layers": Layers(modules=("pooler",))}, "spec.layers.modules", "embed_tokens"),
        ({"qlora": Qlora()}, "spec.qlora", "is for bases stored as INT8 or NF4; bases/tiny is FP32"),
        (
            {"qlora": Qlora(lora=Lora(modules_to_save=("lm_head",)))},
            "spec.qlora.lora.modules_to_save",
            "cannot train whole",
        ),
        ({"head": Head(pooling=Pooling.CLS)}, "spec.head.pooling", "leave it out"),
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
        ({"ia3": Ia3(modules_to_save=("down_proj",))}, "spec.ia3.modules_to_save", "are targets, too"),
        ({"ia3": Ia3(modules_to_save=("pooler",))}, "spec.ia3.modules_to_save", "parameters are down_proj"),
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


def test_low_rank_updates_train_over_a_quantized_base_and_are_served_on_it(tmp_path: Path) -> None:
    source = make_data_directory(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n} it is"}}\n' for n in range(20)))
    with running(tmp_path / "data") as server, Client(server.endpoint) as client:
        client.datasets.upload(rows, "rows")
        job = client.jobs.wait(client.quantize("NF4", "packed").name, timeout_seconds=600.0).check()
        assert job.quantize_result is not None
        packed = job.quantize_result.base
        with pytest.raises(errors.InvalidField, match="stored as NF4; METHOD_LORA trains over FP32 and BF16"):
            train(client, "mine", {"lora": Lora()}, base=packed)
        unnamed = train(client, "mine", {}, base=packed, validate_only=True).train
        assert (unnamed.lora, unnamed.qlora.lora.rank) == (None, 16)
        job = train(client, "mine", {"qlora": Qlora(lora=Lora(rank=4))}, base=packed)
        client.jobs.wait(job.name, timeout_seconds=600.0).check()
        assert client.adapters.version("mine@1").method is Method.QLORA
        go_on: dict[str, Any] = {"continue_from": "mine@1", "validate_only": True}
        again = train(client, "mine", {"qlora": Qlora(lora=Lora())}, base=packed, **go_on).train
        assert (again.qlora.lora.rank, again.qlora.lora.alpha) == (4, 8.0)
        with pytest.raises(errors.InvalidField, match=r"spec\.qlora\.lora\.rank: is 8; .* has 4"):
            train(client, "mine", {"qlora": Qlora(lora=Lora(rank=8))}, base=packed, **go_on)
        with pytest.raises(errors.AdapterIncompatible):
            train(client, "mine", {"lora": Lora()}, **go_on)
    with running(tmp_path / "data", base=packed) as server, Client(server.endpoint) as client:
        adapted, plain = ask(client, "mine"), ask(client, None)
        assert (adapted.served_by.modules, plain.served_by.modules) == (14, 0)
        assert [told.logprob for told in adapted.logprobs] != [told.logprob for told in plain.logprobs]
        assert client.server_info().resident_base_digest == adapted.served_by.base_digest
        client.adapters.export("mine", tmp_path / "mine")
    stands_for = unpacked_model(source, tmp_path / "data" / packed, torch.float32)
    prompt = BaseTokenizer.load(source).encode(PROMPT.text, add_special_tokens=True)
    check_against_oracle(plain, stands_for, prompt)
    with peft_warnings_allowed():
        peft = PeftModel.from_pretrained(stands_for, str(tmp_path / "mine")).eval()
    check_against_oracle(adapted, peft, prompt)
