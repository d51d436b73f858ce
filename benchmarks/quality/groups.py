"""The figures: for each study its methods beside the reference, and its defaults beside a tuned one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.vocabulary import Objective, Task

from benchmarks.machine import cores
from benchmarks.quality.bases import base
from benchmarks.quality.compare import (
    Comparison,
    against_noise,
    against_tuned,
    best,
    compared,
    curve_distance,
    lie_apart,
    lora_beside_full,
)
from benchmarks.quality.encoded import encoded_file
from benchmarks.quality.learners import Learners
from benchmarks.quality.order import Order, Outcome
from benchmarks.quality.rows import RowFiles, read, rows_of
from benchmarks.quality.scores import score
from benchmarks.quality.studies import METHODS, STUDIES, Study, default_spec, matched_spec, steps_of

QUICK_STEPS = 3
QUICK_ROWS = 16
FLOAT32 = frozenset({"digits", "minilm", "smollm2-float32", "smollm2-nf4", "smollm2-int8"})
PEFT = frozenset({"LORA", "IA3"})
UNPACKED = {"smollm2-nf4": "bitsandbytes' NF4", "smollm2-int8": "what INT8 stands for"}
"""Over what the reference of packed bases trains."""


@dataclass(frozen=True, slots=True)
class QualityBench:
    """One run of the benchmark."""

    learners: Learners
    runs: int
    """Seeds at most."""
    quick: bool
    methods: frozenset[str] = frozenset(METHODS)
    """Those that are measured, of each study."""


Group = Callable[[QualityBench], Iterator[Comparison]]


@dataclass(frozen=True, slots=True)
class _Place:
    """A study with its base and its rows."""

    study: Study
    base: Path
    files: RowFiles
    encoded: str
    """See `Order.encoded`."""
    seeds: range

    @classmethod
    def of(cls, name: str, bench: QualityBench) -> _Place:
        return cls._of(STUDIES[name], bench)

    @classmethod
    def of_defaults(cls, name: str, bench: QualityBench) -> _Place:
        study = STUDIES[name]
        own = {"base": study.tuned_base or study.base, "train_rows": study.tuned_rows or study.train_rows}
        return cls._of(replace(study, **own), bench)

    @classmethod
    def _of(cls, study: Study, bench: QualityBench) -> _Place:
        generation = study.task is Task.TEXT_GENERATION
        if bench.quick:
            # Fewer rows with labels would not have them all.
            rows = min(study.test_rows, QUICK_ROWS) if generation else study.test_rows
            study = replace(study, max_steps=QUICK_STEPS, epochs=None, test_rows=rows)
        files, directory = rows_of(study.name, study.test_rows, study.train_rows), base(study.base)
        encoded = str(encoded_file(files, directory)) if generation else ""
        return cls(study, directory, files, encoded, range(min(study.seeds, bench.runs)))

    def repeated(self, spec: TrainSpec) -> Order:
        """With the steps that the reference repeats."""
        batches, rates = steps_of(spec, self.files.train_rows)
        return replace(self.order(spec), batches=batches, learning_rates=rates)

    def order(self, spec: TrainSpec, tuned: dict[str, float] | None = None) -> Order:
        """`tuned` for the reference."""
        return Order(
            spec=spec.model_dump(mode="json"),
            base=str(self.base),
            train=str(self.files.train),
            test=str(self.files.test),
            directory="",
            threads=cores(),
            encoded=self.encoded,
            generates=self.study.generates,
            tuned=tuned or {},
        )

    def reference(self, method: str) -> str:
        """Who is the reference: TRL's trainers where PEFT has a language model's method."""
        trl = self.study.task is Task.TEXT_GENERATION and METHODS[method]["method"] in PEFT
        return "trl" if trl else "reference"

    def scored(self, outcome: Outcome) -> tuple[Outcome, float]:
        return outcome, score(self.study.metric, outcome.predictions, read(self.files.test))


def methods_of(name: str) -> Group:
    """Each method of a study beside the reference, which repeats every run; then LoRA beside FULL."""

    def group(bench: QualityBench) -> Iterator[Comparison]:
        place = _Place.of(name, bench)
        lines: list[Comparison] = []
        for method in (each for each in place.study.methods if each in bench.methods):
            lines.append(_repeated(place, method, bench.learners))
            yield lines[-1]
        yield from lora_beside_full(lines)

    return group


def _repeated(place: _Place, method: str, learners: Learners) -> Comparison:
    study, rows = place.study, len(read(place.files.test))
    specs = [matched_spec(study, method, seed, place.base, place.files) for seed in place.seeds]
    orders = [place.repeated(spec) for spec in specs]
    named = (place.files.digest, place.reference(method))
    ours, reference = zip(*(learners.both(order, *named) for order in orders), strict=True)
    distance, first_loss = curve_distance(ours, reference), reference[0].losses[0]
    own_distance = None
    if study.base in FLOAT32 and lie_apart(distance, first_loss):
        ways = zip(*(learners.nudged(order, *named) for order in orders), strict=True)
        own_distance = max((curve_distance(nudged, reference) for nudged in ways), default=None)
    found = compared(
        f"{study.name}_{method}_vs_reference",
        study.name,
        method,
        study.metric,
        rows,
        [place.scored(outcome) for outcome in ours],
        _reference_name(study, method),
        [place.scored(outcome) for outcome in reference],
        curve_distance=distance,
        first_loss=first_loss,
        reference_curve_distance=own_distance,
        settings=_told(specs[-1]),
    )
    return against_noise(found, exact=study.base in FLOAT32)


def defaults_of(name: str) -> Group:
    """What a call gets that names rows, task and method, beside the best of the reference's grid. That is chosen with the
    first seed, on the scored rows themselves, which favours the reference.
    """

    def group(bench: QualityBench) -> Iterator[Comparison]:
        for method in (each for each in STUDIES[name].tuned if each in bench.methods):
            yield _tuned(_Place.of_defaults(name, bench), method, bench)

    return group


def _tuned(place: _Place, method: str, bench: QualityBench) -> Comparison:
    study, seeds = place.study, place.seeds
    specs = [default_spec(study, method, seed, place.base, place.files) for seed in seeds]
    ours = [bench.learners.one("ours", place.order(spec), place.files.digest) for spec in specs]
    grid = _grid(study, method, quick=bench.quick)

    def run(name: str, seed: int) -> tuple[Outcome, float]:
        order = place.order(specs[seed], grid[name])
        return place.scored(bench.learners.one(place.reference(method), order, place.files.digest))

    first = {name: run(name, 0) for name in grid}
    chosen = best({name: scored for name, (_, scored) in first.items()}, study.metric)
    reference = [first[chosen], *(run(chosen, seed) for seed in seeds[1:])]
    told = ", ".join(f"{name}: {scored:.3f}" for name, (_, scored) in first.items())
    found = compared(
        f"{study.name}_{method}_defaults_vs_tuned",
        study.name,
        method,
        study.metric,
        len(read(place.files.test)),
        [place.scored(outcome) for outcome in ours],
        f"{_tuned_name(study, method)}, {chosen}",
        reference,
        settings=_told(specs[0]),
        note=f"the reference's grid: {told}",
    )
    return against_tuned(found)


def _grid(study: Study, method: str, *, quick: bool) -> dict[str, dict[str, float]]:
    grid = study.grid
    if method == "head":
        found = {f"C {c:g}": {"inverse_regularization": c} for c in grid.inverse_regularizations}
    else:
        found = {
            f"rate {rate:g}, {epochs:g} epochs": {"learning_rate": rate, "epochs": epochs}
            for rate, epochs in product(grid.rates_of(method), grid.epochs)
        }
    if quick:
        name, settings = next(iter(found.items()))
        return {name: settings if method == "head" else {**settings, "max_steps": QUICK_STEPS}}
    return found


def _tuned_name(study: Study, method: str) -> str:
    if method != "head":
        return _peft_name(study) if METHODS[method]["method"] in PEFT else "transformers' Trainer"
    return f"scikit-learn's {'Ridge' if study.metric == 'spearman' else 'LogisticRegression'}"


def _reference_name(study: Study, method: str) -> str:
    if study.base in UNPACKED:
        return f"transformers' Trainer + PEFT over {UNPACKED[study.base]}"
    if METHODS[method]["method"] not in PEFT:
        return "plain PyTorch"
    return "PyTorch + PEFT" if study.base == "digits" else _peft_name(study)


def _peft_name(study: Study) -> str:
    if study.task is not Task.TEXT_GENERATION:
        return "transformers' Trainer + PEFT"
    return f"TRL's {'DPOTrainer' if study.objective is Objective.DPO else 'SFTTrainer'} + PEFT"


def _told(spec: TrainSpec) -> dict[str, Any]:
    """What a reader wants to know of resolved settings."""
    options = spec.optimization
    rates = {"learning_rate": options.learning_rate, "head_learning_rate": options.head_learning_rate}
    return rates | {"steps": options.max_steps, "rows": options.batch_rows}


GROUPS: dict[str, Group] = {name: methods_of(name) for name in STUDIES} | {
    f"{name}_defaults": defaults_of(name) for name, study in STUDIES.items() if study.tuned
}
