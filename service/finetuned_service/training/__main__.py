"""`python -m finetuned_service.training TASK.json`: see `jobs/task.py` for what goes in and out."""

from __future__ import annotations

import sys
from collections.abc import Callable

from finetuned_service.jobs.process import ReportFunction, StopFlag, run_job
from finetuned_service.jobs.task import TrainTask


def _load() -> Callable[[TrainTask, ReportFunction, StopFlag], int]:
    # torch must not be imported before the process has its limits.
    from finetuned_service.training.run import run  # noqa: PLC0415 - see above

    return run


if __name__ == "__main__":
    sys.exit(
        run_job(
            sys.argv,
            TrainTask,
            _load,
            memory_remedy="Lower spec.optimization.micro_batch_rows or spec.data.max_row_tokens",
        )
    )
