"""From the outcomes of runs to one line: medians over seeds, ours beside the reference's, and whether that is enough."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.quality.order import Outcome
from benchmarks.quality.scores import LOWER_IS_BETTER

MB = 1e6
LOSS_NOISE = 0.01
"""Of the reference's loss: what the order of additions moves it in some steps."""
CURVE_BOUND = 0.01
"""Of the first step's loss: how far two curves in float32 may be apart anywhere."""
CURVE_TARGET = f"≤ {CURVE_BOUND:.0%} of the first loss, or as the reference from itself begun a bit apart"
DEFAULTS_BOUND = 0.98


@dataclass(frozen=True, slots=True)
class Side:
    """What one side came to, as medians over seeds."""

    score: float
    score_minimum: float
    score_maximum: float
    seconds: float
    peak_mb: float
    parameters: int
    adapter_bytes: int

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], scores: Sequence[float]) -> Side:
        """Of outcomes with their scores, one a seed."""
        return cls(
            statistics.median(scores),
            min(scores),
            max(scores),
            statistics.median(outcome.seconds for outcome in outcomes),
            statistics.median(outcome.peak_bytes for outcome in outcomes) / MB,
            outcomes[0].parameters,
            outcomes[0].adapter_bytes,
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the table and of the results."""

    figure: str
    study: str
    method: str
    metric: str
    seeds: int
    test_rows: int
    ours: Side
    reference_name: str
    reference: Side
    ratio: float
    """The median over seeds of how much better ours is: scores divided, or losses the other way round."""
    ratio_minimum: float
    ratio_maximum: float
    noise: float
    """What two scores may differ by without meaning anything."""
    curve_distance: float | None = None
    """The largest difference between the losses of the same step, over all steps and seeds, in nats; None where the
    two did not train on the same batches.
    """
    first_loss: float | None = None
    """Of the reference, before its first step, in nats."""
    reference_curve_distance: float | None = None
    """As `curve_distance`, of the reference from itself begun a bit apart; None where nobody needed to know."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Resolved."""
    target: str = ""
    verdict: str = ""
    note: str = ""


def compared(
    figure: str,
    study: str,
    method: str,
    metric: str,
    test_rows: int,
    ours: Sequence[tuple[Outcome, float]],
    reference_name: str,
    reference: Sequence[tuple[Outcome, float]],
    **more: Any,
) -> Comparison:
    """Outcomes and scores, one of each side for each seed."""
    (outcomes, scores), (others, other_scores) = (zip(*side, strict=True) for side in (ours, reference))
    lower = metric in LOWER_IS_BETTER
    ratios = [
        better(theirs, mine) if lower else better(mine, theirs)
        for mine, theirs in zip(scores, other_scores, strict=True)
    ]
    return Comparison(
        figure,
        study,
        method,
        metric,
        len(scores),
        test_rows,
        Side.of(outcomes, scores),
        reference_name,
        Side.of(others, other_scores),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        noise_of(metric, other_scores, test_rows),
        **more,
    )


def better(first: float, second: float) -> float:
    """`first / second`, and 1 where both are nothing."""
    if second == 0.0:
        return 1.0 if first == 0.0 else float("inf")
    return first / second


def noise_of(metric: str, scores: Sequence[float], test_rows: int) -> float:
    """How far the seeds of the reference lie apart; at least one row, or a share of a loss."""
    least = LOSS_NOISE * statistics.median(scores) if metric in LOWER_IS_BETTER else 1 / test_rows
    return max(max(scores) - min(scores), least)


def curve_distance(ours: Sequence[Outcome], reference: Sequence[Outcome]) -> float:
    """The largest difference between the losses of the same step.

    Raises:
        ValueError: not as many steps.
    """
    return max(
        abs(mine - theirs)
        for one, other in zip(ours, reference, strict=True)
        for mine, theirs in zip(one.losses, other.losses, strict=True)
    )


def lie_apart(distance: float, first_loss: float) -> bool:
    """Whether two curves in float32 do not lie on each other."""
    return distance > CURVE_BOUND * first_loss


def against_noise(found: Comparison, *, exact: bool) -> Comparison:
    """With the verdict on a repeated run: a score not worse than the reference's by more than noise; `exact` runs in
    float32 have curves that lie on each other, too, or as near as the reference's own do that begin a bit apart.
    """
    behind = found.reference.score - found.ours.score
    behind = -behind if found.metric in LOWER_IS_BETTER else behind
    met, target = behind <= found.noise + 1e-9, "within noise"
    if exact and found.curve_distance is not None and found.first_loss:
        apart = lie_apart(found.curve_distance, found.first_loss)
        met = met and (not apart or found.curve_distance <= (found.reference_curve_distance or 0.0))
        target = f"{target}, curve {CURVE_TARGET}"
    return replace(found, target=target, verdict=_word(met=met))


def against_tuned(found: Comparison) -> Comparison:
    """With the verdict on our defaults."""
    met = found.ratio >= DEFAULTS_BOUND
    return replace(found, target=f"≥ {DEFAULTS_BOUND:g}x", verdict=_word(met=met))


def best(scores: Mapping[str, float], metric: str) -> str:
    """The name of the best score; the first of equals."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return max(scores, key=lambda name: sign * scores[name])


def lora_beside_full(found: Sequence[Comparison]) -> list[Comparison]:
    """Ours with LoRA beside ours with FULL, of every study that has both; no target."""
    by_name = {(line.study, line.method): line for line in found if line.reference_name}
    lines: list[Comparison] = []
    for study in dict.fromkeys(line.study for line in found):
        lora, full = by_name.get((study, "lora")), by_name.get((study, "full"))
        if lora is None or full is None:
            continue
        lower = lora.metric in LOWER_IS_BETTER
        first, second = (full, lora) if lower else (lora, full)
        ratio = better(first.ours.score, second.ours.score)
        lines.append(
            replace(
                lora,
                figure=f"{study}_lora_vs_full",
                reference_name="ours, FULL",
                reference=full.ours,
                ratio=ratio,
                ratio_minimum=ratio,
                ratio_maximum=ratio,
                noise=max(lora.noise, full.noise),
                curve_distance=None,
                first_loss=None,
                reference_curve_distance=None,
                target="",
                verdict="",
                note="",
            )
        )
    return lines


def _word(*, met: bool) -> str:
    return "met" if met else "missed"
