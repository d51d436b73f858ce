"""Methods that change GPT-2 otherwise than by LoRA, beside plain transformers: the loss curve in float32, the logits of
what is served, and all of them in one batch. Its linear weights are turned in memory, and its file is not.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.bases.convert import import_directory
from finetuned_service.bases.manifest import describe_base, write_manifest
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.model import EngineModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import InvalidAdapterFiles
from finetuned_service.jobs.methods import BaseFacts, refuse_method, resolve_method
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED
from finetuned_service.names import BaseName
from finetuned_service.training.adapter import adapter_handle, write_adapter
from finetuned_service.training.model import load_model
from finetuned_service.training.run import run
from finetuned_service.vocabulary import WeightFormat
from peft import LoraConfig, PeftModel, get_peft_model
from reference_loops import our_curve, reference_curve, replies_alone_and_together
from safetensors.torch import load_file, save_file
from tiny_gpt2 import load_plain_gpt2, save_tiny_gpt2
from tiny_models import oracle_logits, peft_warnings_allowed, random_prompt
from tiny_tokenizers import byte_level, write_tokenizer
from torch import nn
from torch.nn import functional
from training_tasks import Reports, StopAfter, make_task

CHOSEN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "head": ({"method": "HEAD"}, ["lm_head."]),
    "last": ({"method": "LAYERS", "layers": {"last": 1}}, ["transformer.h.1."]),
    "named": (
        {"method": "LAYERS", "layers": {"modules": ["ln_f", "h.0.attn.c_attn", "wpe"]}},
        ["ln_f.", "h.0.attn.c_attn.", "wpe."],
    ),
    "embedding": ({"method": "LAYERS", "layers": {"modules": ["wte"]}}, ["wte."]),
    "full": ({"method": "FULL"}, [""]),
}
BOTTLENECKS: dict[str, dict[str, Any]] = {
    "houlsby": {"method": "BOTTLENECK", "bottleneck": {"width": 5, "scaling": 2.0}},
    "pfeiffer": {"method": "BOTTLENECK", "bottleneck": {"placement": "PFEIFFER", "width": 4}},
    "parallel": {"method": "BOTTLENECK", "bottleneck": {"placement": "PARALLEL", "width": 4}},
}
MIXED: list[dict[str, Any]] = [
    {"lora": {"rank": 4}},
    {"lora": {"rank": 4, "target_modules": ["c_attn"], "modules_to_save": ["c_proj", "c_fc"]}},
    {"method": "IA3", "ia3": {"modules_to_save": ["c_fc", "ln_f"]}},
    *BOTTLENECKS.values(),
    *(method for method, _ in CHOSEN.values()),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_tiny_gpt2(tmp_path_factory.mktemp("base"))
    manifest = describe_base(
        directory, name=BaseName.parse("bases/gpt"), weight_format=WeightFormat.FP32, source="random"
    )
    write_manifest(directory, manifest)
    return directory


def spec_of(base: Path, method: dict[str, Any]) -> TrainSpec:
    wanted = TrainSpec.model_validate({"dataset": "", "adapter": "", **method})
    return resolve_method(wanted, BaseFacts.of_directory(base))


def model_of(base: Path, method: dict[str, Any]) -> Any:
    return load_model(base, spec_of(base, method))


def served_logits(base: Path, model: Any, directory: Path, prompt: tuple[int, ...]) -> torch.Tensor:
    write_adapter(directory, model.method, "bases/gpt", torch.float32)
    return logits_of_files(base, directory, prompt)


def logits_of_files(base: Path, directory: Path, prompt: tuple[int, ...]) -> torch.Tensor:
    with OfflineEngine(EngineModel.load(base), EngineConfig("", kv_capacity_tokens=512)) as engine:
        return engine.logits(prompt, adapter_handle(directory, base))


def plain_for(base: Path, name: str) -> Any:
    """Transformers' own; a head alone leaves the embedding as it is."""
    plain = load_plain_gpt2(base)
    if name == "head":
        plain.lm_head.weight = nn.Parameter(plain.lm_head.weight.detach().clone())
    return plain


@pytest.mark.parametrize("name", CHOSEN)
def test_chosen_parameters_train_and_serve_as_in_plain_transformers(
    base: Path, tmp_path: Path, name: str
) -> None:
    method, parts = CHOSEN[name]
    ours, plain = model_of(base, method), plain_for(base, name)
    for parameter_name, parameter in plain.named_parameters():
        parameter.requires_grad_(any(part in parameter_name for part in parts))
    trained = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    assert set(dict(ours.named_parameters())) == set(trained)
    expected = reference_curve(plain, list(trained.values()))
    assert our_curve(ours) == pytest.approx(expected, rel=5e-5)
    assert expected[-1] < expected[0]
    again = plain_for(base, name)
    conv1d = {f"{n}.weight" for n, m in again.named_modules() if type(m).__name__ == "Conv1D"}
    found = {n: p.detach() for n, p in ours.named_parameters()}
    with torch.no_grad():
        for n, parameter in again.named_parameters():
            if n in found:
                parameter.copy_(found[n].T if n in conv1d else found[n])
    prompt = random_prompt(3, 20)
    served = served_logits(base, ours, tmp_path, prompt)
    torch.testing.assert_close(served, oracle_logits(again, prompt), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    "method",
    [
        {"method": "FULL"},
        {"method": "LAYERS", "layers": {"last": 1}},
        {"lora": {"rank": 2, "target_modules": ["c_attn"], "modules_to_save": ["ln_f", "wpe", "c_fc"]}},
    ],
    ids=["full", "layers", "modules to save"],
)
def test_what_trains_of_turned_weights_is_kept_in_checkpoints(tmp_path: Path, method: dict[str, Any]) -> None:
    source = save_tiny_gpt2(tmp_path / "source", vocab_size=byte_level().get_vocab_size(), n_positions=256)
    write_tokenizer(source)
    import_directory(source, tmp_path / "base")
    steps = {"max_steps": 6, "batch_rows": 4, "learning_rate": 1e-3, "checkpoint_interval_steps": 2}
    made = [
        make_task(tmp_path / name, tmp_path / "base", optimization=steps, **method)
        for name in ("whole", "parts")
    ]
    stop = StopAfter(3)
    assert run(made[1], stop, stop) == EXIT_STOPPED
    for task in made:
        assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
    geometry = BaseGeometry.of_directory(tmp_path / "base")
    digests = {check_adapter(Path(task.output_directory), geometry, 64).digest for task in made}
    assert len(digests) == 1


def peft_over(base: Path, names: list[str]) -> tuple[Any, dict[str, nn.Parameter]]:
    """PEFT's LoRA with modules to save, and what trains of it by its names in the file."""
    config = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=["c_attn"],
        modules_to_save=names,
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    with peft_warnings_allowed():
        model = get_peft_model(load_plain_gpt2(base), config)
    twins = {
        n.replace(".modules_to_save.default", "").replace(".default", ""): p
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    return model, twins


@pytest.mark.parametrize("names", [["c_fc"], ["attn.c_proj", "ln_f"], ["h.1.mlp.c_proj", "lm_head"]])
def test_whole_modules_beside_lora_train_and_are_stored_and_served_as_in_peft(
    base: Path, tmp_path: Path, names: list[str]
) -> None:
    """PEFT's files hold their weights as [in, out]; `attn.c_proj` is square, where a shape tells nothing."""
    settings = {"rank": 2, "target_modules": ["c_attn"], "modules_to_save": names}
    assert not list(refuse_method(wanted := spec_of(base, {"lora": settings}), BaseFacts.of_directory(base)))
    assert wanted.lora.modules_to_save == tuple(sorted(names))
    ours = model_of(base, {"lora": settings})
    peft, twins = peft_over(base, names)
    begun = {f"base_model.model.{n}": p.detach().cpu() for n, p in ours.named_parameters()}
    assert {n: p.shape for n, p in twins.items()} == {n: p.shape for n, p in begun.items()}
    with torch.no_grad():
        for twin, parameter in twins.items():
            if "lora_" not in twin:
                assert torch.equal(parameter, begun[twin])
            parameter.copy_(begun[twin])
    expected = reference_curve(peft, list(twins.values()))
    assert our_curve(ours) == pytest.approx(expected, rel=5e-5)
    assert expected[-1] < expected[0]

    own, pefts, prompt = tmp_path / "own", tmp_path / "peft", random_prompt(3, 20)
    own.mkdir()
    served = served_logits(base, ours, own, prompt)
    with peft_warnings_allowed():
        reread = PeftModel.from_pretrained(load_plain_gpt2(base), str(own)).eval()
        peft.save_pretrained(pefts)
    torch.testing.assert_close(served, oracle_logits(reread, prompt), atol=2e-4, rtol=2e-4)
    (pefts / "README.md").unlink()
    of_pefts = logits_of_files(base, pefts, prompt)
    torch.testing.assert_close(of_pefts, oracle_logits(peft, prompt), atol=2e-4, rtol=2e-4)
    assert (of_pefts - oracle_logits(load_plain_gpt2(base), prompt)).abs().max() > 0.05


def test_whole_modules_that_lie_as_torch_has_them_are_refused(base: Path, tmp_path: Path) -> None:
    """Where the weight is not square."""
    peft, _ = peft_over(base, ["c_fc"])
    with peft_warnings_allowed():
        peft.save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({n: t.T.contiguous() if n.endswith("c_fc.weight") else t for n, t in tensors.items()}, weights)
    with pytest.raises(InvalidAdapterFiles, match=r"has shape \[192, 48\]; .*\[48, 192\]"):
        check_adapter(tmp_path, BaseGeometry.of_directory(base), 64)


def add_bottlenecks(plain: Any, parameters: dict[str, nn.Parameter], settings: Any) -> None:
    """By the formula, on what each module returns, or beside the feed-forward on what that reads."""
    for name in settings.target_modules:
        down, bias, up, up_bias = (
            parameters[f"{name}.adapter_{part}"]
            for part in ("down.weight", "down.bias", "up.weight", "up.bias")
        )

        def added(
            _: nn.Module, inputs: tuple[Any, ...], output: Any, p: tuple[Any, ...] = (down, bias, up, up_bias)
        ) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            read = inputs[0] if settings.placement == "PARALLEL" else h
            h = h + settings.scaling * (functional.gelu(read @ p[0].T + p[1]) @ p[2].T + p[3])
            return (h, *output[1:]) if isinstance(output, tuple) else h

        plain.get_submodule(name).register_forward_hook(added)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_bottlenecks_train_and_serve_as_hooks_on_plain_transformers(
    base: Path, tmp_path: Path, name: str
) -> None:
    ours = model_of(base, BOTTLENECKS[name])
    settings = spec_of(base, BOTTLENECKS[name]).bottleneck
    plain = load_plain_gpt2(base).requires_grad_(requires_grad=False)
    parameters = {n: nn.Parameter(p.detach().cpu().clone()) for n, p in ours.named_parameters()}
    assert len(parameters) == 4 * len(settings.target_modules) > 0
    add_bottlenecks(plain, parameters, settings)
    expected = reference_curve(plain, list(parameters.values()))
    assert our_curve(ours) == pytest.approx(expected, rel=5e-5)
    assert expected[-1] < expected[0]
    again = load_plain_gpt2(base)
    add_bottlenecks(again, {n: nn.Parameter(p.detach().cpu()) for n, p in ours.named_parameters()}, settings)
    prompt = random_prompt(3, 20)
    served = served_logits(base, ours, tmp_path, prompt)
    torch.testing.assert_close(served, oracle_logits(again, prompt), atol=2e-4, rtol=2e-4)


def test_all_methods_run_in_one_batch_as_each_does_alone(base: Path, tmp_path: Path) -> None:
    alone, together = replies_alone_and_together(base, tmp_path, [model_of(base, method) for method in MIXED])
    assert together == alone
    assert len({tuple(tokens) for tokens in alone}) > len(MIXED) // 2
