"""What is compared: tasks on real rows, the methods that train for them, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuned.v1 import common_pb2, job_pb2
from finetuned_service.jobs.methods import CLASSIFICATION_TASKS, BaseFacts
from finetuned_service.jobs.resolve import resolve_train
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.rpc.convert.specs import train_spec_from_proto
from finetuned_service.training.order import RowOrder
from finetuned_service.training.schedule import Plan
from finetuned_service.vocabulary import Objective, Task

from benchmarks.quality.rows import RowFiles

NEVER = 10**6
"""Steps between checkpoints: none but the last, which is the result."""
DATASET, ADAPTER = "tenants/quality/datasets/rows", "tenants/quality/adapters/studied"

METHODS: Mapping[str, Mapping[str, Any]] = {
    "head": {"method": "HEAD"},
    "lora": {"method": "LORA"},
    # At the usual rank it is LoRA.
    "rslora": {"method": "LORA", "lora": {"rank_stabilized": True, "rank": 64}},
    "dora": {"method": "LORA", "lora": {"decomposed": True}},
    "ia3": {"method": "IA3"},
    "houlsby": {"method": "BOTTLENECK"},
    "pfeiffer": {"method": "BOTTLENECK", "bottleneck": {"placement": "PFEIFFER"}},
    "layers": {"method": "LAYERS"},
    "full": {"method": "FULL"},
    "qlora": {"method": "QLORA"},
}
_OF_TEXT = ("head", "lora", "rslora", "dora", "ia3", "houlsby", "pfeiffer", "layers", "full")


@dataclass(frozen=True, slots=True)
class Grid:
    """What is tried of a reference that is tuned: each with each."""

    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Of small matrices beside the base's."""
    gain_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
    """Of IA3."""
    whole_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
    """Of the base's own parameters."""
    epochs: tuple[float, ...] = (2.0, 4.0, 8.0)
    inverse_regularizations: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
    """Of a head alone, which is a linear model of scikit-learn."""

    def rates_of(self, method: str) -> tuple[float, ...]:
        """Those that fit a key of `METHODS`."""
        return {"ia3": self.gain_rates, "layers": self.whole_rates, "full": self.whole_rates}.get(
            method, self.learning_rates
        )


@dataclass(frozen=True, slots=True)
class Study:
    """One task on rows of `rows.py` over a base of `bases.py`."""

    name: str
    task: Task
    base: str
    metric: str
    """What `scores.py` makes of the predictions for the scored rows."""
    methods: tuple[str, ...]
    seeds: int = 3
    batch_rows: int = 8
    epochs: float | None = None
    """None is the method's usual number; a head over a base that encodes always has that: its steps cost little."""
    max_steps: int | None = None
    objective: Objective | None = None
    balanced: bool = False
    """Whether rare labels count more, as they do by default; else all count alike."""
    train_rows: int | None = None
    """How many are learnt from at most; None is all."""
    test_rows: int = NEVER
    """How many are scored at most."""
    optimization: Mapping[str, Any] | None = None
    """Further settings."""
    generates: bool = False
    """Whether answers are written, and not only the rows' own are scored."""
    tuned: tuple[str, ...] = ()
    """Methods whose defaults are compared with a tuned reference."""
    grid: Grid = Grid()
    tuned_base: str = ""
    """The base of that comparison, where it is another."""
    tuned_rows: int | None = None
    """How many are learnt from there, at most; None is `train_rows`."""


STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        Study(
            "digits",
            Task.IMAGE_CLASSIFICATION,
            "digits",
            "accuracy",
            ("head", "lora", "rslora", "dora", "layers", "full"),
            tuned=("head", "lora", "rslora", "dora", "layers", "full"),
            grid=Grid(whole_rates=(3e-4, 1e-3, 3e-3, 1e-2)),
        ),
        Study(
            "intents",
            Task.TEXT_CLASSIFICATION,
            "minilm",
            "macro_f1",
            _OF_TEXT,
            epochs=1.5,
            tuned=_OF_TEXT,
        ),
        Study(
            "options",
            Task.TEXT_CLASSIFICATION,
            "minilm",
            "macro_f1_of_several",
            # In half the epochs, or with all labels alike, hardly a label is said.
            _OF_TEXT,
            balanced=True,
            tuned=("head", "lora"),
        ),
        Study(
            "ratings",
            Task.TEXT_CLASSIFICATION,
            "minilm",
            "spearman",
            _OF_TEXT,
            epochs=1.5,
            tuned=("head", "lora"),
        ),
        Study(
            "personal_data",
            Task.TOKEN_CLASSIFICATION,
            "minilm",
            "entity_f1",
            _OF_TEXT,
            epochs=1.5,
            tuned=("head", "lora"),
        ),
        Study(
            "commands",
            Task.FEATURE_EXTRACTION,
            "minilm",
            "mrr_at_10",
            _OF_TEXT[1:],
            batch_rows=32,
            epochs=1.5,
            tuned=("lora",),
        ),
        Study(
            "similarity",
            Task.FEATURE_EXTRACTION,
            "minilm",
            "spearman",
            _OF_TEXT[1:],
            epochs=1.5,
            tuned=("lora",),
        ),
        *(
            Study(
                name,
                Task.TEXT_GENERATION,
                base,
                "loss",
                methods,
                seeds=1,
                max_steps=4,
                objective=Objective.SFT,
                test_rows=24,
            )
            for name, base, methods in (
                ("answers", "smollm2-float32", _OF_TEXT),
                ("answers_nf4", "smollm2-nf4", ("qlora",)),
                ("answers_int8", "smollm2-int8", ("qlora",)),
            )
        ),
        Study(
            "redaction",
            Task.TEXT_GENERATION,
            "smollm2",
            "exact_match",
            ("lora",),
            batch_rows=4,
            epochs=1.0,
            objective=Objective.SFT,
            optimization={"learning_rate": 1e-3},
            generates=True,
            tuned=("lora",),
            grid=Grid((3e-4, 1e-3, 3e-3), (2.0, 4.0)),
            tuned_rows=160,
        ),
        *(
            Study(
                name,
                Task.TEXT_GENERATION,
                base,
                "reward_accuracy",
                methods,
                seeds=1,
                max_steps=4,
                objective=Objective.DPO,
                # Each is asked of the model before the first step.
                train_rows=64,
                test_rows=24,
                tuned=tuned,
                grid=Grid((3e-5, 1e-4, 3e-4), (3.0,)),
                tuned_base="smollm2",
            )
            for name, base, methods, tuned in (
                ("preferences", "smollm2-float32", _OF_TEXT, ("lora",)),
                ("preferences_nf4", "smollm2-nf4", ("qlora",), ()),
            )
        ),
    )
}


def steps_of(spec: TrainSpec, rows: int) -> tuple[list[list[int]], list[float]]:
    """Which rows every step of a resolved spec takes, by their place, and its learning rate."""
    plan = Plan.of(spec.optimization, spec.evaluation)
    order = RowOrder(rows, spec.optimization.batch_rows, spec.optimization.seed)
    steps = range(plan.total_steps)
    return [order.rows_of_step(step) for step in steps], [plan.learning_rate(step) for step in steps]


def matched_spec(study: Study, method: str, seed: int, base: Path, files: RowFiles) -> TrainSpec:
    """Resolved settings of a run that the reference repeats: all rows train, the last step is the result."""
    cheap = method == "head" and study.task in CLASSIFICATION_TASKS
    optimization: dict[str, Any] = {
        "batch_rows": study.batch_rows,
        "seed": seed,
        "epochs": None if cheap else study.epochs,
        "max_steps": study.max_steps,
        "checkpoint_interval_steps": NEVER,
        **(study.optimization or {}),
    }
    wanted = TrainSpec.model_validate(
        {
            "dataset": DATASET,
            "adapter": ADAPTER,
            "base": f"bases/{study.base}",
            "task": study.task,
            "objective": study.objective,
            "classification": {"class_weights": "BALANCED" if study.balanced else "NONE"}
            if study.task in CLASSIFICATION_TASKS
            else {},
            "optimization": optimization,
            "data": {"holdout_fraction": 0.0},
            "evaluation": {"evaluations": 0, "generation_rows": 0},
            **METHODS[method],
        }
    )
    return resolve_train(
        wanted,
        base=BaseFacts.of_directory(base),
        train_rows=files.train_rows,
        kind=files.kind,
    )


def default_spec(study: Study, method: str, seed: int, base: Path, files: RowFiles) -> TrainSpec:
    """What a call becomes that says what the rows are for, and the method, and nothing else."""
    task = common_pb2.Task.Value(f"TASK_{study.task.name}")
    said = job_pb2.TrainSpec(dataset=DATASET, adapter=ADAPTER, task=task)
    said.optimization.seed = seed
    name, settings = METHODS[method]["method"].lower(), METHODS[method]
    getattr(said, name).SetInParent()
    for key, value in settings.get(name, {}).items():
        # The one name there is belongs to an enumeration.
        told = f"{name.upper()}_{key.upper()}_{value}" if isinstance(value, str) else value
        setattr(getattr(said, name), key, told)
    wanted = train_spec_from_proto(said)
    # As submission does: where rows decide it, and the share that is held out of them.
    kept = files.train_rows - round(wanted.data.holdout_fraction * files.train_rows)
    return resolve_train(
        wanted.model_copy(update={"base": f"bases/{study.base}", "objective": study.objective}),
        base=BaseFacts.of_directory(base),
        train_rows=kept,
        kind=files.kind,
    )
