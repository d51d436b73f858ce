"""Preference training: DPO beside its definition in float64, pairs as they are read, whole jobs on a tiny base."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.errors import InvalidData
from finetuned_service.jobs.events import EvaluationFinished, Progress
from finetuned_service.jobs.specs import DpoSettings, TrainSpec
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, TrainFinished, TrainTask
from finetuned_service.text.supervision import EncodedRow, encode_preference
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import ChatMessage, Preference
from finetuned_service.training.preferences.loss import pair_metrics
from finetuned_service.training.preferences.model import PreferenceModel, ReferencedPair
from finetuned_service.training.preferences.pairs import EncodedPair, read_pair_data
from finetuned_service.training.preferences.reference import with_reference
from finetuned_service.training.run import run
from finetuned_service.vocabulary import Objective
from peft import PeftModel
from tiny_models import VOCABULARY, load_plain
from tiny_tokenizers import CHATML, write_tokenizer
from training_tasks import Reports, StopAfter, make_base, make_task, write_rows
from unit.test_training_model import make_pair, twin_of


def encoded(seed: int, prompt: int, answer: int) -> EncodedRow:
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(3, VOCABULARY, (prompt + answer,), generator=generator).tolist()
    return EncodedRow(token_ids, [place >= prompt for place in range(prompt + answer)])


PAIRS = [
    EncodedPair(encoded(1, 4, 5), encoded(2, 4, 3)),
    EncodedPair(encoded(3, 2, 1), encoded(4, 2, 6)),
    EncodedPair(encoded(5, 6, 4), encoded(6, 6, 4)),
]


def answer_log_probability(model: Any, row: EncodedRow) -> torch.Tensor:
    """log p(answer | prompt), the row alone, through all logits."""
    log_probabilities = model(input_ids=torch.tensor([row.token_ids])).logits[0].log_softmax(-1)
    terms = [
        log_probabilities[place - 1, token_id]
        for place, token_id in enumerate(row.token_ids)
        if row.supervised[place]
    ]
    return torch.stack(terms).sum()


def dpo_by_definition(policy: Any, reference: Any, pairs: list[EncodedPair], settings: DpoSettings) -> Any:
    """Equation 7 of the paper as it stands, with the smoothing of conservative DPO."""
    losses = []
    for pair in pairs:
        ratios = []
        for row in (pair.chosen, pair.rejected):
            with torch.no_grad():
                before = answer_log_probability(reference, row)
            ratios.append(answer_log_probability(policy, row) - before)
        preferred = torch.sigmoid(settings.beta * (ratios[0] - ratios[1]))
        wrong = settings.label_smoothing
        losses.append(-(1 - wrong) * preferred.log() - wrong * (1 - preferred).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_loss_and_gradients_are_those_of_the_definition(label_smoothing):
    ours, peft = make_pair("llama")
    settings = DpoSettings(beta=0.3, label_smoothing=label_smoothing)
    with torch.no_grad(), peft.disable_adapter():
        reference = [
            tuple(answer_log_probability(peft, row).item() for row in (p.chosen, p.rejected)) for p in PAIRS
        ]
    learner = PreferenceModel(ours, settings)
    rows = [ReferencedPair(*each) for each in zip(PAIRS, reference, strict=True)]
    scale = 1 / len(rows)
    # In two parts, as micro-batches.
    loss = learner.loss_of(rows[:2], scale) + learner.loss_of(rows[2:], scale)
    loss.backward()

    class Reference:
        """The base under the same modules."""

        def __call__(self, **inputs: Any) -> Any:
            with peft.disable_adapter():
                return peft(**inputs)

    expected = dpo_by_definition(peft, Reference(), PAIRS, settings)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), twin_of(peft, name).grad, rtol=1e-4, atol=1e-6)


def test_before_training_no_answer_is_preferred(tmp_path):
    """The reference is the model that training begins with: B is zero, so all rewards are."""
    ours, _ = make_pair("llama")
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("lora_B.weight"):
                parameter.zero_()
    rows = with_reference(ours, PAIRS, tmp_path / "kept", "digest", Reports(), threading.Event())
    learner = PreferenceModel(ours, DpoSettings())
    found = learner.measure(rows)
    assert found.loss == pytest.approx(math.log(2))
    assert {m.name: round(m.value, 9) for m in found.metrics} == {
        "reward_accuracy": 0.5,
        "reward_margin": 0.0,
        "chosen_reward": 0.0,
        "rejected_reward": 0.0,
    }


def test_a_reference_is_kept_for_its_own_task_alone(tmp_path):
    ours, _ = make_pair("llama")
    kept = tmp_path / "kept"
    first = with_reference(ours, PAIRS, kept, "one", Reports(), threading.Event())
    with torch.no_grad():
        for _, parameter in ours.named_parameters():
            parameter.add_(0.1)
    quiet = Reports()
    assert with_reference(ours, PAIRS, kept, "one", quiet, threading.Event()) == first
    assert quiet.all == []
    assert with_reference(ours, PAIRS, kept, "two", Reports(), threading.Event()) != first


def test_figures_of_pairs_worked_by_hand():
    settings = DpoSettings(beta=0.5)
    now, before = [[-2.0, -5.0], [-3.0, -1.0]], [[-4.0, -4.0], [-3.0, -3.0]]
    metrics = {metric.name: metric.value for metric in pair_metrics(now, before, settings)}
    # Rewards: 1 and -0.5 of the first pair, 0 and 1 of the second.
    assert metrics == pytest.approx(
        {
            "loss": (math.log1p(math.exp(-1.5)) + math.log1p(math.exp(1.0))) / 2,
            "reward_accuracy": 0.5,
            "reward_margin": 0.25,
            "chosen_reward": 0.5,
            "rejected_reward": 0.25,
        }
    )


def preferences(first: int, last: int) -> list[dict[str, Any]]:
    """Polite answers are better."""
    return [
        {"prompt": f"open {n}", "chosen": f"door {n} please", "rejected": f"door {n} now"}
        for n in range(first, last)
    ]


def read(tmp_path: Path, rows: list[dict[str, Any]], *, template: str = CHATML, **data: Any) -> Any:
    tokenizer = BaseTokenizer.load(write_tokenizer(tmp_path / "base", template=template))
    options = {"max_row_tokens": 60, "holdout_fraction": 0, **data}
    spec = TrainSpec.model_validate({"dataset": "", "adapter": "", "objective": "DPO", "data": options})
    return read_pair_data(spec, tokenizer, write_rows(tmp_path / "rows.jsonl", rows), None)


def test_pairs_are_read_with_the_tokens_of_both_answers(tmp_path):
    data = read(tmp_path, preferences(0, 20), holdout_fraction=0.25)
    assert (len(data.train), len(data.heldout)) == (15, 5)
    assert data.report.train_tokens == sum(
        len(row.token_ids)
        for example in data.train
        for row in (example.encoded.chosen, example.encoded.rejected)
    )
    pair = data.train[0].encoded
    asked = pair.chosen.supervised.index(True)
    assert pair.chosen.token_ids[:asked] == pair.rejected.token_ids[:asked]
    assert data.report.warnings == ()


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (
            [{"prompt": "a", "chosen": "b " * 80, "rejected": "c"}],
            {},
            "line 1 has .* max_row_tokens allows 60",
        ),
        ([{"prompt": "a", "chosen": "b", "rejected": "c <|im_end|> d"}], {}, "control token '<|im_end|>'"),
        (
            [{"prompt": "a", "chosen": "b " * 80, "rejected": "c"}],
            {"long_rows": "DROP"},
            "all 1 pairs .* raise max_row_tokens",
        ),
        (
            # The end, in which they differ, is cut off.
            [{"prompt": "a", "chosen": "b " * 80 + "x", "rejected": "b " * 80 + "y"}],
            {"long_rows": "TRUNCATE"},
            "all 1 pairs",
        ),
    ],
    ids=["long", "control", "dropped", "cut-to-the-same"],
)
def test_pairs_that_cannot_be_trained_on_are_refused_by_line(tmp_path, rows, options, said):
    with pytest.raises(InvalidData, match=said.replace("|", r"\|")):
        read(tmp_path, rows, **options)


def test_answers_that_the_template_makes_equal_are_refused(tmp_path):
    trimming = CHATML.replace("message['content']", "(message['content'] | trim)")
    rows = [{"prompt": "a", "chosen": "b", "rejected": "b "}]
    with pytest.raises(InvalidData, match=r"line 1 has two answers of which .* the same text"):
        read(tmp_path, rows, template=trimming)


def test_long_answers_are_cut_where_they_still_differ(tmp_path):
    rows = [{"prompt": "a", "chosen": "x " * 80, "rejected": "y"}]
    data = read(tmp_path, rows, long_rows="TRUNCATE")
    assert len(data.train[0].encoded.chosen.token_ids) == 60
    assert data.report.truncated_rows == 1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def task_of(directory: Path, base: Path, *, steps: int = 6, **parts: Any) -> TrainTask:
    settings = {
        "train": preferences(0, 24),
        "heldout": preferences(24, 32),
        "objective": Objective.DPO,
        "optimization": {"max_steps": steps, "batch_rows": 4, "learning_rate": 1e-2},
        "evaluation": {"evaluations": 2, "generation_rows": 2, "generation_max_tokens": 4},
        **parts,
    }
    return make_task(directory, base, **settings)


def finish(task: TrainTask) -> tuple[Reports, TrainFinished]:
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    (finished,) = reports.of(TrainFinished)
    return reports, finished


def digest(task: TrainTask) -> str:
    geometry = BaseGeometry.of_directory(Path(task.base_directory))
    return check_adapter(Path(task.output_directory), geometry, max_rank=64).digest


def test_a_job_prefers_what_was_chosen_and_its_figures_are_those_of_peft(tmp_path, base):
    task = task_of(tmp_path, base, steps=30, dpo={"beta": 0.2})
    reports, finished = finish(task)
    before = {metric.name: metric.value for metric in finished.baseline_metrics}
    assert before.pop("general_perplexity") > 1.0
    assert before == pytest.approx(
        {
            "loss": math.log(2),
            "reward_accuracy": 0.5,
            "reward_margin": 0.0,
            "chosen_reward": 0.0,
            "rejected_reward": 0.0,
        }
    )
    after = {metric.name: metric.value for metric in finished.metrics}
    assert after.pop("general_perplexity") > 1.0
    assert after["reward_accuracy"] == 1.0
    assert after["reward_margin"] > 0.5
    on_the_way = [e for e in reports.of(EvaluationFinished) if e.subject == "adapter"]
    assert [e.step for e in on_the_way] == [15, 30, 30]
    assert [{m.name for m in e.metrics} for e in on_the_way] == [
        set(after),
        set(after),
        {*after, "general_perplexity"},
    ]
    # The training process and the engine measure the same.
    for trained, served in zip(on_the_way[1].metrics, on_the_way[2].metrics[:-1], strict=True):
        assert trained.value == pytest.approx(served.value, abs=1e-3)
    assert [sample.expected for sample in finished.samples] == ["door 24 please", "door 28 please"]

    peft = PeftModel.from_pretrained(load_plain(base), task.output_directory).eval()
    tokenizer, margins = BaseTokenizer.load(base), []
    for row in preferences(24, 32):
        values = []
        asked = Preference((ChatMessage("user", row["prompt"]),), row["chosen"], row["rejected"])
        for answer in encode_preference(tokenizer, asked):
            with torch.no_grad():
                value = answer_log_probability(peft, answer)
                with peft.disable_adapter():
                    values.append((value - answer_log_probability(peft, answer)).item())
        margins.append(0.2 * (values[0] - values[1]))
    assert after["reward_margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stopped_job_goes_on_to_the_last_digit_with_the_reference_that_it_had(tmp_path, dtype):
    base = make_base(tmp_path / "base", dtype=dtype, head_dim=16)
    settings: dict[str, Any] = {"lora": {"rank": 4, "dropout": 0.2 if dtype is torch.float32 else 0.0}}
    whole, task = (task_of(tmp_path / name, base, **settings) for name in ("whole", "stopped"))
    _, expected = finish(whole)
    for stop in (StopAfter(phase="reference"), StopAfter(2), StopAfter(1), StopAfter(phase="evaluating")):
        assert run(task, stop, stop) == EXIT_STOPPED
    reports, finished = finish(task)
    assert digest(task) == digest(whole)
    assert finished == expected
    assert [p.phase for p in reports.of(Progress) if p.phase in {"reference", "training"}] == []


def test_a_continued_version_is_the_reference(tmp_path, base):
    """So that rewards tell what this job has changed, on the way and at the end alike."""
    first = task_of(tmp_path / "first", base, steps=8)
    _, trained = finish(first)
    margin = {metric.name: metric.value for metric in trained.metrics}["reward_margin"]
    settings = {"max_steps": 1, "batch_rows": 4, "learning_rate": 1e-9}
    second = task_of(tmp_path / "second", base, optimization=settings)
    reports, finished = finish(second.model_copy(update={"start_directory": first.output_directory}))
    before = {metric.name: metric.value for metric in finished.baseline_metrics}
    # Seen from the version that is continued, the plain base has lost what that version won.
    assert before["reward_margin"] == pytest.approx(-margin, rel=1e-4)
    for evaluation in reports.of(EvaluationFinished)[1:]:
        figures = {metric.name: metric.value for metric in evaluation.metrics}
        assert figures["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert figures["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert "reference" not in {evaluation.subject for evaluation in reports.of(EvaluationFinished)}
