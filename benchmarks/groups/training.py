"""Serving beside a TrainJob: what streams and the job lose to each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from finetuned import DataOptions, EvaluationOptions, JobEvent, Optimization

from benchmarks.bench import Bench
from benchmarks.figures import Figure, compared
from benchmarks.groups.adapters import STREAMS, drawing
from benchmarks.ours import Ours
from benchmarks.streams import closed_loop_for

ROWS = Path("examples/redact/train.jsonl")
WINDOW_SECONDS = 40.0
QUICK_WINDOW_SECONDS = 12.0
START_SECONDS = 300.0
"""A job runs when the processors are idle: on a busy machine it may not begin for minutes."""


def training(bench: Bench) -> Iterator[Figure]:
    """8 closed-loop streams idle, then a job alone, with the streams, and with them at half load."""
    window = QUICK_WINDOW_SECONDS if bench.quick else WINDOW_SECONDS
    adapters = bench.adapters(STREAMS)
    idle, busy, half_gaps = [], [], []
    solo, beside, half = [], [], []
    with bench.server() as ours:
        ours.add(adapters)
        draw = drawing(bench, adapters)

        def serve(pause_share: float = 0.0) -> float:
            """Median inter-token time in ms."""
            return ours.run(
                closed_loop_for(ours.client, STREAMS, draw, window, pause_share=pause_share)
            ).gap_ms(0.5)

        serve()
        for run in range(bench.runs):
            idle.append(serve())
            with _job(ours, f"bench-{run}") as job:
                began = time.monotonic()
                time.sleep(window)
                solo.append(job.tokens_per_second(began))
                if not solo[-1]:
                    raise RuntimeError(
                        f"no step of the job alone ended within {window:.0f} s: something else keeps the "
                        "processors busy, and a job gets only what is idle"
                    )
                began = time.monotonic()
                busy.append(serve())
                beside.append(job.tokens_per_second(began))
                began = time.monotonic()
                half_gaps.append(serve(0.5))
                half.append(job.tokens_per_second(began))
    yield compared("inter_token_while_training_vs_idle", "ms", busy, "idle", idle)
    yield compared("training_while_serving_vs_solo", "tokens/s", beside, "solo", solo)
    yield compared("training_at_half_load_vs_solo", "tokens/s", half, "solo", solo)
    yield compared("inter_token_at_half_load_vs_idle", "ms", half_gaps, "idle", idle)


@dataclass(slots=True)
class _Job:
    """A running TrainJob, watched: when it had trained on how many tokens."""

    progress: list[tuple[float, int]] = field(default_factory=list)
    trains: threading.Event = field(default_factory=threading.Event)

    def take(self, event: JobEvent) -> None:
        if event.progress is not None and event.progress.tokens:
            self.progress.append((time.monotonic(), event.progress.tokens))
            self.trains.set()

    def tokens_per_second(self, since: float) -> float:
        """Tokens of the steps that ended since then, over the time until now."""
        before = max((tokens for when, tokens in self.progress if when < since), default=0)
        return (self.progress[-1][1] - before) / (time.monotonic() - since)


@contextmanager
def _job(ours: Ours, adapter: str) -> Iterator[_Job]:
    """A job that trains for longer than the block takes; cancelled at its end."""
    dataset = ours.calls.datasets.upload(ROWS, "bench-rows")
    started = ours.calls.train(
        dataset=dataset.name,
        adapter=adapter,
        optimization=Optimization(max_steps=100_000, batch_rows=4),
        data=DataOptions(holdout_fraction=0.02),
        evaluation=EvaluationOptions(evaluations=0, generation_rows=0),
    )
    job = _Job()
    watcher = threading.Thread(
        target=ours.calls.jobs.wait, args=(started.name,), kwargs={"on_event": job.take}, daemon=True
    )
    watcher.start()
    try:
        if not job.trains.wait(START_SECONDS):
            raise RuntimeError(f"{started.name} has not trained after {START_SECONDS:.0f} s")
        yield job
    finally:
        ours.calls.jobs.cancel(started.name)
        watcher.join(START_SECONDS)
