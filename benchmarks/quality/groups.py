"""The figures: for each study its methods beside the reference, and its defaults beside a tuned one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from finetuned_service.vocabulary import Task

from benchmarks.machine import cores
from benchmarks.quality.bases import base
from benchmarks.quality.compare import (
    Comparison,
    against_noise,
    against_tuned,
    best,
    compared,
    curve_distance,
    lora_beside_full,
)
from benchmarks.quality.learners import Learners
from benchmarks.quality.order import Order, Outcome
from benchmarks.quality.rows import RowFiles, read, rows_of
from benchmarks.quality.scores import score
from benchmarks.quality.studies import METHODS, STUDIES, Study, default_spec, matched_spec

QUICK_STEPS = 3
QUICK_ROWS = 16
FLOAT32 = frozenset({"digits", "minilm", "smollm2-float32"})
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
EPOCHS = (2.0, 4.0)
INVERSE_REGULARIZATIONS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)


@dataclass(frozen=True, slots=True)
class QualityBench:
    """One run of the benchmark."""

    learners: Learners
    runs: int
    """Seeds at most."""
    quick: bool


Group = Callable[[QualityBench], Iterator[Comparison]]


@dataclass(frozen=True, slots=True)
class _Place:
    """A study with its base and its rows."""

    study: Study
    base: Path
    files: RowFiles
    seeds: range

    @classmethod
    def of(cls, name: str, bench: QualityBench) -> _Place:
        study = STUDIES[name]
        if bench.quick:
            # Fewer rows with labels would not have them all.
            rows = min(study.test_rows, QUICK_ROWS) if study.task is Task.TEXT_GENERATION else study.test_rows
            study = replace(study, max_steps=QUICK_STEPS, epochs=None, test_rows=rows)
        files = rows_of(name, study.test_rows)
        return cls(study, base(study.base), files, range(min(study.seeds, bench.runs)))

    def order(self, spec: Any, tuned: dict[str, float] | None = None) -> Order:
        return Order(
            spec=spec.model_dump(mode="json"),
            base=str(self.base),
            train=str(self.files.train),
            test=str(self.files.test),
            directory="",
            threads=cores(),
            generates=self.study.generates,
            tuned=tuned or {},
        )

    def scored(self, outcome: Outcome) -> tuple[Outcome, float]:
        return outcome, score(self.study.metric, outcome.predictions, read(self.files.test))


def methods_of(name: str) -> Group:
    """Each method of a study beside the reference, which repeats every run; then LoRA beside FULL."""

    def group(bench: QualityBench) -> Iterator[Comparison]:
        place = _Place.of(name, bench)
        lines: list[Comparison] = []
        for method in place.study.methods:
            lines.append(_repeated(place, method, bench.learners))
            yield lines[-1]
        yield from lora_beside_full(lines)

    return group


def _repeated(place: _Place, method: str, learners: Learners) -> Comparison:
    study, rows = place.study, len(read(place.files.test))
    pairs: list[tuple[Outcome, Outcome]] = []
    settings: dict[str, Any] = {}
    for seed in place.seeds:
        spec = matched_spec(study, method, seed, place.base, place.files.train_rows)
        settings = _told(spec)
        pairs.append(learners.both(place.order(spec), place.files.digest))
    ours, reference = zip(*pairs, strict=True)
    found = compared(
        f"{study.name}_{method}_vs_reference",
        study.name,
        method,
        study.metric,
        rows,
        [place.scored(outcome) for outcome in ours],
        _reference_name(study, method),
        [place.scored(outcome) for outcome in reference],
        curve_distance=curve_distance(ours, reference),
        first_loss=reference[0].losses[0],
        settings=settings,
    )
    return against_noise(found, exact=study.base in FLOAT32)


def defaults_of(name: str) -> Group:
    """What a call gets that names rows, task and method, beside the best of the reference's grid. That is chosen with the
    first seed, on the scored rows themselves, which favours the reference.
    """

    def group(bench: QualityBench) -> Iterator[Comparison]:
        for method in STUDIES[name].tuned:
            yield _tuned(_Place.of(name, bench), method, bench)

    return group


def _tuned(place: _Place, method: str, bench: QualityBench) -> Comparison:
    study, seeds = place.study, place.seeds
    specs = [default_spec(study, method, seed, place.base, place.files.train_rows) for seed in seeds]
    ours = [bench.learners.one("ours", place.order(spec), place.files.digest) for spec in specs]
    grid = _grid(method, quick=bench.quick)

    def run(name: str, seed: int) -> tuple[Outcome, float]:
        order = place.order(specs[seed], grid[name])
        return place.scored(bench.learners.one("reference", order, place.files.digest))

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
        f"{_tuned_name(method)}, {chosen}",
        reference,
        settings=_told(specs[0]),
        note=f"the reference's grid: {told}",
    )
    return against_tuned(found)


def _grid(method: str, *, quick: bool) -> dict[str, dict[str, float]]:
    if method == "head":
        found = {f"C {c:g}": {"inverse_regularization": c} for c in INVERSE_REGULARIZATIONS}
    else:
        found = {
            f"rate {rate:g}, {epochs:g} epochs": {"learning_rate": rate, "epochs": epochs}
            for rate, epochs in product(LEARNING_RATES, EPOCHS)
        }
    return dict(list(found.items())[:1]) if quick else found


def _tuned_name(method: str) -> str:
    return "scikit-learn's LogisticRegression" if method == "head" else "transformers' Trainer + PEFT"


def _reference_name(study: Study, method: str) -> str:
    peft = METHODS[method]["method"] in {"LORA", "IA3"}
    if not peft:
        return "plain PyTorch"
    return "PyTorch + PEFT" if study.base == "digits" else "transformers' Trainer + PEFT"


def _told(spec: Any) -> dict[str, Any]:
    """What a reader wants to know of resolved settings."""
    options = spec.optimization
    return {"learning_rate": options.learning_rate, "steps": options.max_steps, "rows": options.batch_rows}


GROUPS: dict[str, Group] = {name: methods_of(name) for name in STUDIES} | {
    f"{name}_defaults": defaults_of(name) for name, study in STUDIES.items() if study.tuned
}
