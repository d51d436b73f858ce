"""Whole TrainJobs on a tiny base: results, repetition, stopping at any point, overfitting, what is refused."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.errors import ResourceExhausted, TrainingDiverged
from finetuned_service.jobs import room
from finetuned_service.jobs.events import Checkpoint, EvaluationFinished, Notice, Overfitting, Progress
from finetuned_service.jobs.room import NoRoom
from finetuned_service.jobs.task import EXIT_FINISHED, EXIT_STOPPED, Prepared, TrainFinished, TrainTask
from finetuned_service.tenancy.stored import directory_bytes
from finetuned_service.text.supervision import encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import PromptCompletion
from finetuned_service.training import checkpoint, loop
from finetuned_service.training.run import run
from packed_oracle import pack
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import load_plain
from training_tasks import Reports, StopAfter, counting_rows, make_base, make_task


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def finish(task: TrainTask) -> Reports:
    reports = Reports()
    assert run(task, reports, threading.Event()) == EXIT_FINISHED
    return reports


def digest(task: TrainTask) -> str:
    geometry = BaseGeometry.of_directory(Path(task.base_directory))
    return check_adapter(Path(task.output_directory), geometry, max_rank=64).digest


HELDOUT = counting_rows(24, 30)
BASELINE = {
    "instruction": "Spell the number digit by digit.",
    "examples": [{"prompt": "say 7", "completion": "seven"}],
}


def test_a_job_reports_every_part_and_leaves_an_adapter(tmp_path, base):
    task = make_task(
        tmp_path,
        base,
        heldout=HELDOUT,
        evaluation={"evaluations": 2, "generation_rows": 4, "generation_max_tokens": 8, "baseline": BASELINE},
    )
    reports = finish(task)
    (prepared,) = reports.of(Prepared)
    assert prepared.data_report is not None
    assert (prepared.data_report.train_rows, prepared.data_report.eval_rows) == (24, 6)
    environment = prepared.environment
    assert environment.torch_version == torch.__version__
    assert (environment.compute_dtype, environment.trained_dtype) == ("float32", "float32")
    steps = [report for report in reports.of(Progress) if report.phase == "training"]
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.eta_seconds is not None for step in steps] == [True] * 6
    assert steps[-1].tokens == prepared.data_report.train_tokens
    phases = list(dict.fromkeys(report.phase for report in reports.of(Progress)))
    assert phases == ["preparing", "baseline", "training", "evaluating", "storing"]
    evaluations = [(e.subject, e.step) for e in reports.of(EvaluationFinished)]
    assert evaluations == [("baseline", 0), ("adapter", 3), ("adapter", 6), ("adapter", 6)]
    assert [checkpoint.step for checkpoint in reports.of(Checkpoint)] == [3, 5, 6]
    (finished,) = reports.of(TrainFinished)
    assert finished is reports.all[-1]
    assert {metric.name for metric in finished.metrics} == {"loss", "exact_match", "general_perplexity"}
    assert {metric.name for metric in finished.baseline_metrics} == {
        "loss",
        "exact_match",
        "general_perplexity",
    }
    assert len(finished.samples) == 4
    adapter = Path(task.output_directory)
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (
        json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "bases/tiny"
    )


def test_a_learnable_task_is_learnt_and_told_apart_from_the_baseline(tmp_path, base):
    rows = counting_rows(0, 10)
    task = make_task(
        tmp_path,
        base,
        train=rows,
        heldout=rows,
        optimization={"max_steps": 60, "batch_rows": 10, "learning_rate": 1e-2},
    )
    (finished,) = finish(task).of(TrainFinished)
    metrics = {metric.name: metric.value for metric in finished.metrics}
    assert metrics["exact_match"] == 1.0
    assert {metric.name: metric.value for metric in finished.baseline_metrics}["exact_match"] == 0.0
    assert [(s.answer, s.correct) for s in finished.samples] == [(row["completion"], True) for row in rows]


def test_answers_are_compared_whole_and_shown_cut(tmp_path, base, monkeypatch):
    monkeypatch.setattr("finetuned_service.training.stages.SHOWN_CHARACTERS", 2)
    rows = [{"prompt": "say it", "completion": "abcd"}, {"prompt": "ok", "completion": "abce"}]
    task = make_task(
        tmp_path,
        base,
        train=rows[:1],
        heldout=rows,
        optimization={"max_steps": 40, "batch_rows": 1, "learning_rate": 1e-2},
    )
    (finished,) = finish(task).of(TrainFinished)
    shown = [(s.prompt, s.expected, s.answer, s.correct) for s in finished.samples]
    assert shown == [("s…", "a…", "a…", True), ("ok", "a…", "a…", False)]
    assert {len(s.baseline) for s in finished.samples} <= {0, 1, 2}
    assert {metric.name: metric.value for metric in finished.metrics}["exact_match"] == 0.5


def loss_by_peft(task: TrainTask, base: Path) -> float:
    """Of the held-out rows, by PEFT over plain transformers from the job's files."""
    peft = PeftModel.from_pretrained(load_plain(base), task.output_directory).eval()
    tokenizer = BaseTokenizer.load(base)
    losses = []
    for row in HELDOUT:
        encoded = encode_row(tokenizer, PromptCompletion(**row))
        with torch.no_grad():
            logits = peft(input_ids=torch.tensor([encoded.token_ids])).logits[0].log_softmax(-1)
        losses += [
            -logits[place - 1, token].item()
            for place, token in enumerate(encoded.token_ids)
            if encoded.supervised[place]
        ]
    return sum(losses) / len(losses)


def test_loss_and_logits_are_those_of_plain_peft_on_the_exported_adapter(tmp_path, base):
    task = make_task(tmp_path, base, heldout=HELDOUT, evaluation={"generation_rows": 0})
    (finished,) = finish(task).of(TrainFinished)
    assert finished.metrics[0].value == pytest.approx(loss_by_peft(task, base), rel=1e-4)


@pytest.mark.parametrize(
    "pattern",
    [
        {"rank_pattern": {"down_proj": 8, "layers.1.mlp.down_proj": 2}},
        {"alpha_pattern": {"down_proj": 64.0, "layers.1.mlp.down_proj": 2.0}},
    ],
    ids=["rank", "alpha"],
)
def test_of_the_keys_of_a_pattern_the_longest_counts_in_the_files_too(tmp_path, base, pattern):
    """PEFT takes the first that fits a module."""
    lora = {"rank": 4, "target_modules": ["down_proj"], **pattern}
    task = make_task(tmp_path, base, heldout=HELDOUT, lora=lora)
    (finished,) = finish(task).of(TrainFinished)
    (written,) = (
        made
        for name, made in json.loads(Path(task.output_directory, "adapter_config.json").read_text()).items()
        if name in pattern
    )
    assert [*written] == ["layers.1.mlp.down_proj", "down_proj"]
    told = {metric.name: metric.value for metric in finished.metrics}["loss"]
    assert told == pytest.approx(loss_by_peft(task, base), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_job_twice_gives_the_same_digest_and_another_seed_another(tmp_path, dtype):
    base = make_base(tmp_path / "base", dtype=dtype)
    lora = {"rank": 4, "dropout": 0.1}
    settings = {"max_steps": 4, "batch_rows": 4, "learning_rate": 1e-2}
    tasks = [
        make_task(
            tmp_path / name,
            base,
            lora=lora,
            optimization={**settings, "seed": seed},
            data={"holdout_fraction": 0},
        )
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    ]
    for task in tasks:
        finish(task)
    first, again, other = map(digest, tasks)
    assert first == again != other
    tensors = load_file(Path(tasks[0].output_directory) / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_micro_batches_train_the_same(tmp_path, base):
    losses = []
    for rows in (4, 1):
        settings = {"max_steps": 3, "batch_rows": 4, "learning_rate": 1e-2, "micro_batch_rows": rows}
        task = make_task(tmp_path / str(rows), base, optimization=settings, data={"holdout_fraction": 0})
        losses.append([p.loss for p in finish(task).of(Progress) if p.phase == "training"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("head_dim", [8, 16], ids=["plain", "fused"])
def test_activation_checkpointing_changes_no_bit_and_comes_by_itself_where_memory_is_short(
    tmp_path, head_dim
):
    base = make_base(tmp_path / "base", dtype=torch.bfloat16, head_dim=head_dim)
    digests, told = [], []
    for name, wanted, budget_bytes in (
        ("off", False, 1),
        ("on", True, 10**12),
        ("short", None, 1),
        ("not", None, 10**12),
    ):
        optimization: dict[str, object] = {"max_steps": 3, "batch_rows": 4, "learning_rate": 1e-2}
        task = make_task(
            tmp_path / name,
            base,
            lora={"rank": 4, "dropout": 0.2},
            data={"holdout_fraction": 0},
            memory_budget_bytes=budget_bytes,
            optimization=optimization | {"activation_checkpointing": wanted},
        )
        reports = finish(task)
        digests.append(digest(task))
        told.append([n.text for n in reports.of(Notice) if "activation checkpointing is on" in n.text])
    assert len(set(digests)) == 1
    assert [bool(texts) for texts in told] == [False, False, True, False]


DROPOUT_TASK = {
    "heldout": HELDOUT,
    "lora": {"rank": 4, "dropout": 0.2},
    "evaluation": {"evaluations": 3, "generation_rows": 2, "generation_max_tokens": 4},
}


def test_fused_layers_resume_to_the_last_digit(tmp_path):
    base = make_base(tmp_path / "base", dtype=torch.bfloat16, head_dim=16)
    whole, task = (make_task(tmp_path / name, base, heldout=HELDOUT) for name in ("whole", "stopped"))
    finish(whole)
    for stop in (StopAfter(2), StopAfter(1)):
        assert run(task, stop, stop) == EXIT_STOPPED
    finish(task)
    assert digest(task) == digest(whole)


@pytest.mark.parametrize(
    "method",
    [
        {"lora": {"rank": 4, "dropout": 0.2, "decomposed": True}},
        {"method": "IA3"},
        {"method": "BOTTLENECK"},
        {"method": "LAYERS", "layers": {"last": 1}},
        {"method": "FULL"},
        {"method": "HEAD"},
    ],
)
def test_every_method_resumes_to_the_last_digit(tmp_path, base, method):
    whole, task = (
        make_task(tmp_path / name, base, evaluation={"generation_rows": 2}, heldout=HELDOUT, **method)
        for name in ("whole", "stopped")
    )
    finish(whole)
    for stop in (StopAfter(2), StopAfter(1)):
        assert run(task, stop, stop) == EXIT_STOPPED
    finish(task)
    assert digest(task) == digest(whole)


@pytest.mark.parametrize("weight_format", ["NF4", "INT8"])
def test_qlora_resumes_to_the_last_digit(tmp_path, base, weight_format):
    packed = pack(base, tmp_path / "packed", weight_format)
    settings = {
        "heldout": HELDOUT,
        "method": "QLORA",
        "lora": {"rank": 4, "dropout": 0.2},
        "optimization": {"max_steps": 6, "batch_rows": 4, "micro_batch_rows": 2, "learning_rate": 1e-2},
        "evaluation": {"generation_rows": 2},
    }
    whole, task = (make_task(tmp_path / name, packed, **settings) for name in ("whole", "stopped"))
    finish(whole)
    for stop in (StopAfter(2), StopAfter(1)):
        assert run(task, stop, stop) == EXIT_STOPPED
    finish(task)
    assert digest(task) == digest(whole)


def test_a_run_stopped_again_and_again_ends_as_one_that_never_was(tmp_path, base):
    uninterrupted = make_task(tmp_path / "whole", base, **DROPOUT_TASK)
    expected = finish(uninterrupted)
    task = make_task(tmp_path / "stopped", base, **DROPOUT_TASK)
    for stop in (
        StopAfter(phase="baseline"),
        StopAfter(2),
        StopAfter(1),
        StopAfter(1),
        StopAfter(phase="evaluating"),
    ):
        assert run(task, stop, stop) == EXIT_STOPPED
        assert not Path(task.output_directory).exists()
    reports = finish(task)
    assert digest(task) == digest(uninterrupted)
    assert reports.of(TrainFinished) == expected.of(TrainFinished)
    assert [p.phase for p in reports.of(Progress) if p.phase in {"baseline", "training"}] == []
    assert any("goes on from the checkpoint after step 6" in notice.text for notice in reports.of(Notice))


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, base, monkeypatch):
    uninterrupted = make_task(tmp_path / "whole", base, **DROPOUT_TASK)
    finish(uninterrupted)
    task = make_task(tmp_path / "full", base, **DROPOUT_TASK)
    write, written = checkpoint.save_file, []

    def fill_the_disk(tensors, path):
        written.append(path)
        write(tensors, path)
        if len(written) == 2:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", fill_the_disk)
    with pytest.raises(NoRoom, match=r"and a checkpoint takes .* MB: the job is paused") as full:
        run(task, Reports(), threading.Event())
    assert full.value.wanted_bytes > 1000
    kept = [path.name for path in Path(task.work_directory, "checkpoints").iterdir()]
    assert kept == ["step-00000002"]
    finish(task)
    assert digest(task) == digest(uninterrupted)


def test_only_the_newest_checkpoints_and_the_best_are_kept(tmp_path, base):
    settings = {"max_steps": 12, "batch_rows": 4, "learning_rate": 5e-3, "checkpoint_interval_steps": 1}
    task = make_task(
        tmp_path,
        base,
        heldout=HELDOUT,
        optimization=settings,
        evaluation={"generation_rows": 0, "evaluations": 6, "early_stopping_patience": 0},
    )
    reports = finish(task)
    best = [checkpoint.step for checkpoint in reports.of(Checkpoint) if checkpoint.best][-1]
    assert kept_steps(task) == sorted({best, 11, 12})


def kept_steps(task: TrainTask) -> list[int]:
    paths = Path(task.work_directory, "checkpoints").iterdir()
    return sorted(int(path.name.removeprefix("step-")) for path in paths)


def test_as_many_checkpoints_are_kept_as_asked_for_and_fewer_where_their_disk_budget_ends(tmp_path, base):
    settings = {"max_steps": 8, "batch_rows": 4, "learning_rate": 5e-3, "checkpoint_interval_steps": 1}
    settings["kept_checkpoints"] = 5
    task = make_task(tmp_path / "all", base, data={"holdout_fraction": 0}, optimization=settings)
    finish(task)
    assert kept_steps(task) == [4, 5, 6, 7, 8]
    (size,) = {directory_bytes(path) for path in Path(task.work_directory, "checkpoints").iterdir()}

    tight = make_task(tmp_path / "tight", base, data={"holdout_fraction": 0}, optimization=settings)
    limits = tight.limits.model_copy(update={"checkpoint_bytes": round(3.9 * size)})
    tight = tight.model_copy(update={"limits": limits})
    reports = finish(tight)
    assert kept_steps(tight) == [6, 7, 8]
    (told,) = [notice.text for notice in reports.of(Notice) if "kept_checkpoints" in notice.text]
    assert told.startswith(
        "3 checkpoints are kept, fewer than kept_checkpoints (5) and the best: each takes "
    )
    assert digest(tight) == digest(task)

    small = make_task(tmp_path / "small", base, data={"holdout_fraction": 0}, optimization=settings)
    limits = small.limits.model_copy(update={"checkpoint_bytes": 2 * size})
    with pytest.raises(ResourceExhausted, match=r"3 must have room .* \(job_checkpoint_bytes\)"):
        run(small.model_copy(update={"limits": limits}), Reports(), threading.Event())


class Disk:
    """Says how much is free on it: so much, less what the job's checkpoints take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, task: TrainTask, size: int) -> None:
        self.checkpoints, self.size = Path(task.work_directory, "checkpoints"), size
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=self._free()))

    def _free(self) -> int:
        return self.size - sum(directory_bytes(path) for path in self.checkpoints.glob("step-*"))


def test_a_checkpoint_without_room_on_the_disk_is_not_begun_and_the_job_goes_on_to_the_bit(
    tmp_path, base, monkeypatch
):
    settings = {"max_steps": 6, "batch_rows": 4, "learning_rate": 5e-3, "checkpoint_interval_steps": 2}
    settings["kept_checkpoints"] = 2
    task = make_task(tmp_path / "all", base, data={"holdout_fraction": 0}, optimization=settings)
    finish(task)
    (size,) = {directory_bytes(path) for path in Path(task.work_directory, "checkpoints").iterdir()}
    asked = checkpoint.DESCRIPTION_BYTES + size

    small = make_task(tmp_path / "small", base, data={"holdout_fraction": 0}, optimization=settings)
    small = small.model_copy(
        update={"limits": small.limits.model_copy(update={"reserved_disk_bytes": 10**6})}
    )
    disk = Disk(monkeypatch, small, 10**6)
    reports = Reports()
    with pytest.raises(
        room.NoRoom, match=r"of which 1\.0 MB must stay free \(min_free_disk_bytes\)"
    ) as refused:
        run(small, reports, threading.Event())
    assert "training" not in {progress.phase for progress in reports.of(Progress)}, "said before the steps"
    assert size <= refused.value.wanted_bytes <= asked
    # With room for one a second is not begun: the newest stays.
    disk.size += round(1.5 * asked)
    with pytest.raises(room.NoRoom):
        run(small, Reports(), threading.Event())
    assert kept_steps(small) == [2]
    # With room for two an old one goes for each.
    disk.size += asked
    reports = finish(small)
    assert kept_steps(small) == [4, 6]
    assert digest(small) == digest(task)


def test_the_best_checkpoint_stays_until_a_better_one_is_there(tmp_path, base, monkeypatch):
    """The better one cannot be written, and the steps that are repeated come out a hair worse: on other processors, say.
    The run's result is then the best that there was.
    """
    settings = {"max_steps": 6, "batch_rows": 4, "learning_rate": 5e-3, "checkpoint_interval_steps": 1}
    options = {"generation_rows": 0, "evaluations": 3, "early_stopping_patience": 0}
    whole = make_task(tmp_path / "all", base, heldout=HELDOUT, optimization=settings, evaluation=options)
    finish(whole)
    size = directory_bytes(Path(whole.work_directory, "checkpoints", "step-00000006"))
    task = make_task(tmp_path / "tight", base, heldout=HELDOUT, optimization=settings, evaluation=options)
    limits = task.limits.model_copy(update={"checkpoint_bytes": round(3.9 * size)})
    task = task.model_copy(update={"limits": limits})
    losses = iter([1.0, 1.1, 0.9, 1.05])
    monkeypatch.setattr(loop.Trainer, "_loss_alone", lambda _self, _rows: loop.HeldOut(next(losses)))
    publish = checkpoint.publish_directory

    def full_once(staged: Path, target: Path) -> None:
        if target.name == "step-00000006":
            monkeypatch.setattr(checkpoint, "publish_directory", publish)
            raise OSError(errno.ENOSPC, "no space left")
        publish(staged, target)

    monkeypatch.setattr(checkpoint, "publish_directory", full_once)
    with pytest.raises(NoRoom):
        run(task, Reports(), threading.Event())
    assert kept_steps(task) == [2, 5]
    reports = finish(task)
    assert [told.step for told in reports.of(Checkpoint) if told.best] == []
    assert kept_steps(task) == [2, 5, 6]
    best = load_file(Path(task.work_directory, "checkpoints", "step-00000002", "tensors.safetensors"))
    stored = load_file(Path(task.output_directory, "adapter_model.safetensors"))
    sums = {
        round(float(tensor.abs().sum()), 4) for name, tensor in best.items() if name.startswith("parameter.")
    }
    assert {round(float(tensor.abs().sum()), 4) for tensor in stored.values()} == sums


def test_checkpoints_of_another_task_are_not_resumed(tmp_path, base):
    first = make_task(tmp_path, base, data={"holdout_fraction": 0})
    stop = StopAfter(2)
    assert run(first, stop, stop) == EXIT_STOPPED
    other = first.model_copy(update={"train_digest": "sha256:" + "9" * 64})
    steps = [p.step for p in finish(other).of(Progress) if p.phase == "training"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_overfitting_is_told_and_the_best_checkpoint_wins(tmp_path, base):
    """Held-out answers that contradict the training rows: the loss on them can only rise in the end."""
    train = counting_rows(0, 8)
    heldout = [{"prompt": row["prompt"], "completion": row["completion"][::-1]} for row in train]
    task = make_task(
        tmp_path,
        base,
        train=train,
        heldout=heldout,
        optimization={"max_steps": 60, "batch_rows": 8, "learning_rate": 2e-2, "schedule": "CONSTANT"},
        evaluation={"evaluations": 30, "early_stopping_patience": 3, "generation_rows": 0},
    )
    reports = finish(task)
    (finished,) = reports.of(TrainFinished)
    losses = {
        e.step: e.metrics[0].value for e in reports.of(EvaluationFinished)[:-1] if e.subject == "adapter"
    }
    best = min(losses, key=losses.__getitem__)
    assert finished.stopped_early
    assert max(losses) < task.spec.optimization.max_steps
    assert list(losses)[-1] == list(losses)[list(losses).index(best) + 3]
    assert finished.metrics[0].value == pytest.approx(losses[best], rel=1e-3)
    warnings = [notice.text for notice in reports.of(Notice) if notice.severity == "WARNING"]
    assert f" at step {best} to " in warnings[-1]
    assert "overfit" in warnings[-1]
    turned = reports.of(Overfitting)[-1]
    assert (turned.best_step, turned.step) == (best, list(losses)[list(losses).index(best) + 1])
    assert (turned.best_loss, turned.loss) == (losses[best], losses[turned.step])


def test_without_held_out_rows_the_last_step_is_the_result(tmp_path, base):
    task = make_task(tmp_path, base, data={"holdout_fraction": 0})
    reports = finish(task)
    (finished,) = reports.of(TrainFinished)
    assert finished == TrainFinished(metrics=(), step=6)
    assert reports.of(EvaluationFinished) == []


def test_an_incumbent_is_measured_on_the_same_rows(tmp_path, base):
    first = make_task(tmp_path / "first", base, heldout=HELDOUT, evaluation={"generation_rows": 0})
    (measured,) = finish(first).of(TrainFinished)
    second = make_task(
        tmp_path / "second",
        base,
        heldout=HELDOUT,
        incumbent=Path(first.output_directory),
        evaluation={"generation_rows": 0},
        promote_if={"alias": "default", "metric": "loss", "better_than_current": True},
    )
    (compared,) = finish(second).of(TrainFinished)
    assert compared.incumbent_metrics == measured.metrics


def diverging(task: TrainTask, rate: float, **optimization: object) -> TrainTask:
    """The task with a rate beyond what the contract allows: it overflows whatever the rows are."""
    changed = task.spec.optimization.model_copy(update={"learning_rate": rate, **optimization})
    return task.model_copy(update={"spec": task.spec.model_copy(update={"optimization": changed})})


def test_divergence_names_the_step_and_the_learning_rate(tmp_path, base):
    settings = {"max_steps": 5, "batch_rows": 4, "max_gradient_norm": 0}
    task = make_task(
        tmp_path,
        base,
        data={"holdout_fraction": 0},
        optimization=settings,
        evaluation={"evaluations": 0},
    )
    wild = diverging(task, 1e38).model_copy(update={"last_good_directory": str(tmp_path / "last-good")})
    with pytest.raises(TrainingDiverged, match=r"at step 2, .* lower than 1e\+38$") as refused:
        run(wild, Reports(), threading.Event())
    assert refused.value.metadata == {"step": "2"}
    assert not (tmp_path / "last-good").exists()


def test_divergence_keeps_the_adapter_of_the_last_good_checkpoint(tmp_path, base, monkeypatch):
    settings = {"max_steps": 9, "batch_rows": 4, "learning_rate": 1e-2, "checkpoint_interval_steps": 1}
    good = make_task(tmp_path / "good", base, heldout=HELDOUT, optimization=settings)
    step = loop.Trainer.step

    def overflow_in_step_8(trainer):
        if trainer.state.step == 7:
            with torch.no_grad():
                trainer.parameters[0].fill_(float("nan"))
        return step(trainer)

    monkeypatch.setattr(loop.Trainer, "step", overflow_in_step_8)
    task = good.model_copy(update={"last_good_directory": str(tmp_path / "last-good")})
    reports = Reports()
    with pytest.raises(
        TrainingDiverged, match=r"at step 8, .* the loss was nan .* is kept: a TrainJob"
    ) as refused:
        run(task, reports, threading.Event())
    best = [kept.step for kept in reports.of(Checkpoint) if kept.best][-1]
    assert refused.value.metadata == {
        "step": "8",
        "last_good_step": str(best),
        "continue_from": "tenants/t/jobs/j",
    }
    kept = load_file(tmp_path / "last-good" / "adapter_model.safetensors")
    checkpoints = Path(task.work_directory, "checkpoints")
    state = load_file(checkpoints / f"step-{best:08}" / "tensors.safetensors")
    assert kept.keys()
    for name, tensor in kept.items():
        assert torch.equal(tensor, state["parameter." + name.removeprefix("base_model.model.")])
