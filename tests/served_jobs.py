"""Small TrainJobs through a real server."""

from __future__ import annotations

import time
from collections.abc import Callable

from finetuned import Client, EvaluationOptions, Job, Lora, Optimization

WAIT_SECONDS = 600.0
_POLL_SECONDS = 0.05


def start(
    client: Client, dataset: str, adapter: str, *, steps: int = 6, every: int = 2, **settings: object
) -> Job:
    return client.train(
        dataset=dataset,
        adapter=adapter,
        optimization=Optimization(max_steps=steps, batch_rows=4, checkpoint_interval_steps=every),
        evaluation=EvaluationOptions(evaluations=2, generation_rows=2, generation_max_tokens=4),
        **{"lora": Lora(rank=4), **settings},  # type: ignore[arg-type]
    )


def finished(client: Client, job: Job) -> Job:
    return client.jobs.wait(job.name, timeout_seconds=WAIT_SECONDS)


def eventually(holds: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Time that this process is held up does not count."""
    for _ in range(round(seconds / _POLL_SECONDS)):
        if holds():
            return
        time.sleep(_POLL_SECONDS)
    raise AssertionError("did not come true in time")
