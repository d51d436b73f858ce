"""What `continue_from` takes over of each method's settings, and what it refuses before a job is there, through a real
server whose adapters were imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned import (
    Bottleneck,
    BottleneckActivation,
    BottleneckPlacement,
    Client,
    EvaluationOptions,
    Full,
    Head,
    Ia3,
    Layers,
    Lora,
    Optimization,
    PromoteIf,
    errors,
)
from finetuned_service.jobs.methods import BaseFacts, resolve_method
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.training.adapter import write_adapter
from finetuned_service.training.model import load_model
from tiny_server import TinyServer, make_data_directory, running

NO_GRADIENT = Optimization(max_steps=1, batch_rows=4, learning_rate=1e-9)
LOSS_ALONE = EvaluationOptions(evaluations=0, generation_rows=0)

MADE: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "alpha": 6.0, "rank_pattern": {"layers.1.mlp.up_proj": 2}}},
    "dora": {"lora": {"rank": 2, "decomposed": True, "target_modules": ["q_proj", "v_proj"]}},
    "saved": {"lora": {"rank": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}},
    "ia3": {"method": "IA3"},
    "ia3-saved": {"method": "IA3", "ia3": {"modules_to_save": ["lm_head", "norm"]}},
    "houlsby": {"method": "BOTTLENECK", "bottleneck": {"reduction_factor": 8.0, "activation": "SILU"}},
    "placed": {"method": "BOTTLENECK", "bottleneck": {"width": 3, "target_modules": ["layers.1.mlp"]}},
    "layers": {"method": "LAYERS", "layers": {"last": 1, "modules": ["model.norm", "layers.0.mlp.up_proj"]}},
    "head": {"method": "HEAD"},
    "full": {"method": "FULL"},
}
"""By adapter: the parts of our own spec that it was made with."""

Q, V = (tuple(f"model.layers.{n}.self_attn.{name}" for n in (0, 1)) for name in ("q_proj", "v_proj"))

TAKEN: list[tuple[str, Any, dict[str, Any]]] = [
    (
        "lora",
        Lora(),
        {"rank": 4, "alpha": 6.0, "rank_pattern": {"model.layers.1.mlp.up_proj": 2}, "decomposed": False},
    ),
    ("dora", Lora(target_modules=(*Q, *V)), {"decomposed": True, "target_modules": ("q_proj", "v_proj")}),
    ("saved", Lora(modules_to_save=("model.norm", "lm_head")), {"modules_to_save": ("lm_head", "norm")}),
    (
        "ia3",
        Ia3(target_modules=("mlp.down_proj", "k_proj", "v_proj")),
        {"target_modules": ("down_proj", "k_proj", "v_proj"), "feedforward_modules": ("down_proj",)},
    ),
    ("ia3-saved", Ia3(modules_to_save=("model.norm", "lm_head")), {"modules_to_save": ("lm_head", "norm")}),
    (
        "houlsby",
        Bottleneck(reduction_factor=8.0),
        {
            "placement": BottleneckPlacement.HOULSBY,
            "width": 6,
            "activation": BottleneckActivation.SILU,
            "target_modules": tuple(
                f"model.layers.{n}.{part}" for n in (0, 1) for part in ("mlp", "self_attn")
            ),
        },
    ),
    ("placed", Bottleneck(), {"width": 3, "target_modules": ("model.layers.1.mlp",)}),
    ("layers", Layers(), {"layers": (1,), "modules": ("model.layers.0.mlp.up_proj", "model.norm")}),
    (
        "layers",
        Layers(last=1, modules=("norm", "layers.0.mlp.up_proj")),
        {"last": 1, "layers": (1,), "modules": ("layers.0.mlp.up_proj", "norm")},
    ),
    ("head", Head(), {}),
    ("full", Full(), {}),
]
"""By adapter: what is said again, in other words or not at all, and what it comes to."""

OTHERWISE: list[tuple[str, Any, str, str]] = [
    ("lora", Lora(rank_pattern={"q_proj": 3}), "spec.lora.rank_pattern", "is {'q_proj': 3}"),
    ("dora", Lora(target_modules=("q_proj", "v_proj", "nope")), "spec.lora.target_modules", "'nope'"),
    ("saved", Lora(modules_to_save=("norm",)), "spec.lora.modules_to_save", "has ('lm_head', 'norm')"),
    ("ia3", Ia3(target_modules=("k_proj",)), "spec.ia3.target_modules", "has ('down_proj', 'k_proj'"),
    ("ia3", Ia3(feedforward_modules=("k_proj",)), "spec.ia3.feedforward_modules", "has ('down_proj',)"),
    ("ia3-saved", Ia3(modules_to_save=("norm",)), "spec.ia3.modules_to_save", "has ('lm_head', 'norm')"),
    ("houlsby", Bottleneck(width=5), "spec.bottleneck.width", "is 5; "),
    ("houlsby", Bottleneck(reduction_factor=2), "spec.bottleneck.reduction_factor", "is 2.0"),
    (
        "houlsby",
        Bottleneck(placement=BottleneckPlacement.PFEIFFER),
        "spec.bottleneck.placement",
        "is PFEIFFER; tenants/default/adapters/houlsby/versions/1 has HOULSBY",
    ),
    (
        "placed",
        Bottleneck(placement=BottleneckPlacement.PARALLEL),
        "spec.bottleneck.placement",
        "is PARALLEL; ",
    ),
    ("layers", Layers(last=2), "spec.layers", "other parameters of the base than"),
    ("full", Lora(), "spec.continue_from", "of method FULL; this job's is LORA, which trains other"),
    ("dora", Full(), "spec.continue_from", "Use METHOD_LORA, or train without"),
    ("head", Layers(), "spec.continue_from", "of method HEAD; this job's is LAYERS"),
]
"""By adapter: what is said otherwise, the field that is named, and some of what is said of it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    directory = tmp_path_factory.mktemp("continuing")
    base = make_data_directory(directory)
    rows = directory / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n} it is"}}\n' for n in range(20)))
    with running(directory / "data") as found, Client(found.endpoint) as client:
        client.datasets.upload(rows, "rows")
        digest = client.server_info().resident_base_digest
        for name, spec in MADE.items():
            (directory / name).mkdir()
            write_random(directory / name, base, spec)
            client.adapters.import_directory(directory / name, name, expected_base_digest=digest)
        yield found


@pytest.fixture
def client(server: TinyServer) -> Iterator[Client]:
    with Client(server.endpoint) as found:
        yield found


def write_random(directory: Path, base: Path, spec: dict[str, Any]) -> None:
    """An adapter as a job writes it, its parameters moved a little at random."""
    wanted = TrainSpec.model_validate({"dataset": "", "adapter": "", **spec})
    model = load_model(base, resolve_method(wanted, BaseFacts.of_directory(base)))
    generator = torch.Generator().manual_seed(len(directory.name))
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    write_adapter(directory, model.method, "bases/tiny", torch.float32)


def go_on(client: Client, adapter: str, settings: Any, **others: Any) -> Any:
    return client.train(
        dataset="rows",
        adapter=adapter,
        continue_from=adapter,
        optimization=NO_GRADIENT,
        evaluation=LOSS_ALONE,
        **{type(settings).__name__.lower(): settings, **others},
    )


@pytest.mark.parametrize(("adapter", "said", "expected"), TAKEN)
def test_settings_are_taken_over_from_the_version_that_is_continued(
    client: Client, adapter: str, said: Any, expected: dict[str, Any]
) -> None:
    job = go_on(client, adapter, said, validate_only=True)
    assert job.train.continue_from == f"tenants/default/adapters/{adapter}/versions/1"
    found = getattr(job.train, type(said).__name__.lower())
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(("adapter", "said", "field", "message"), OTHERWISE)
def test_settings_that_contradict_it_are_refused(
    client: Client, adapter: str, said: Any, field: str, message: str
) -> None:
    with pytest.raises(errors.InvalidField, match=re.escape(message)) as refused:
        go_on(client, adapter, said)
    assert {violation.field for violation in refused.value.violations} == {field}
    assert not list(client.jobs.list())


def test_a_job_begins_with_all_weights_of_the_version(client: Client) -> None:
    """The version that it continues is the one that it is compared with, and so small a step changes nothing."""
    promote = PromoteIf(alias="default", metric="loss", better_than_current=True)
    job = client.jobs.wait(
        go_on(client, "full", Full(), promote_if=promote).name, timeout_seconds=600.0
    ).check()
    told = [event.evaluation for event in client.jobs.events(job.name) if event.evaluation]
    before, after = ({e.subject: e.metrics for e in told}[subject] for subject in ("incumbent", "adapter"))
    for expected, found in zip(before, after, strict=True):
        assert found.value == pytest.approx(expected.value, rel=1e-5)
    first, second = (client.adapters.version(f"full@{number}") for number in (1, 2))
    assert (second.lineage.parent_version, second.parameters) == (first.name, first.parameters)
