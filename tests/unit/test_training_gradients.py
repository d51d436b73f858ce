"""Which kernels gradients are asked of where torch is told to keep to a fixed order (as on a GPU; here on a CPU)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.jobs.events import Notice
from finetuned_service.jobs.task import EXIT_FINISHED
from finetuned_service.training.gradients import Gradients
from finetuned_service.training.run import run
from safetensors.torch import load_file
from training_tasks import Reports, make_base, make_task


class _AnyOrder(torch.autograd.Function):
    """`put_` is an operator for which torch has no fixed order, also on a CPU."""

    @staticmethod
    def forward(_ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gradient,) = gradients
        return gradient.clone().put_(torch.tensor([0], device=gradient.device), gradient.flatten()[:1])


class _Asks(torch.autograd.Function):
    """Tells in which mode its gradient is computed."""

    found: list[bool]

    @staticmethod
    def forward(_ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        _Asks.found.append(torch.is_deterministic_algorithms_warn_only_enabled())
        return gradients[0]


@pytest.fixture
def _warns() -> Iterator[None]:
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    _Asks.found = []
    yield
    torch.use_deterministic_algorithms(mode=False)


def leaf() -> torch.Tensor:
    return torch.ones(3, requires_grad=True)


@pytest.mark.usefixtures("_warns")
def test_a_gradient_is_computed_where_nothing_else_is_allowed() -> None:
    reports, weights = Reports(), leaf()
    Gradients(reports).add(_Asks.apply(weights).sum())
    assert _Asks.found == [False]
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert weights.grad is not None
    assert weights.grad.tolist() == [1.0, 1.0, 1.0]
    assert reports.of(Notice) == []


def test_who_asks_for_no_order_is_left_alone() -> None:
    weights = leaf()
    Gradients(Reports()).add(_AnyOrder.apply(weights).sum())
    assert not torch.are_deterministic_algorithms_enabled()
    assert weights.grad is not None


@pytest.mark.usefixtures("_warns")
def test_what_has_no_fixed_order_is_refused_once_and_told() -> None:
    reports = Reports()
    gradients = Gradients(reports)
    with pytest.raises(RuntimeError, match="put_") as refused:
        gradients.add(_AnyOrder.apply(leaf()).sum())
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert gradients.accept_any_order(refused.value)
    (notice,) = reports.of(Notice)
    assert notice.severity == "WARNING"
    assert notice.text.startswith("put_ adds numbers in no fixed order on this GPU: ")
    with pytest.warns(UserWarning, match="put_"):
        gradients.add(_AnyOrder.apply(leaf()).sum())
    assert not gradients.accept_any_order(refused.value)
    assert not Gradients(reports).accept_any_order(RuntimeError("CUDA error: misaligned address"))


@pytest.mark.usefixtures("_warns")
@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic implementation")
def test_a_job_computes_the_refused_step_again_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base")
    # Nothing is clipped: a gradient that is there twice must show.
    settings = {"max_steps": 6, "batch_rows": 4, "learning_rate": 1e-2, "max_gradient_norm": 0}
    plain, met = (
        make_task(tmp_path / name, base, lora={"rank": 4, "dropout": 0.0}, optimization=settings)
        for name in ("plain", "met")
    )
    assert run(plain, Reports(), threading.Event()) == EXIT_FINISHED

    # Half of a gradient is there already when the other half is refused.
    add = Gradients.add

    def add_halves(gradients: Gradients, loss: torch.Tensor) -> None:
        half, other = (loss / 2), _AnyOrder.apply(loss[None])[0] / 2
        half.backward(retain_graph=True)
        add(gradients, other)

    monkeypatch.setattr(Gradients, "add", add_halves)
    reports = Reports()
    assert run(met, reports, threading.Event()) == EXIT_FINISHED
    assert sum("no fixed order" in notice.text for notice in reports.of(Notice)) == 1
    one, other = (
        load_file(Path(task.output_directory) / "adapter_model.safetensors") for task in (plain, met)
    )
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight)
