"""`python -m finetuned_service.quantization TASK.json`: the job process of a Quantize run."""

from __future__ import annotations

import sys
from collections.abc import Callable

from finetuned_service.jobs.process import ReportFunction, StopFlag, run_job
from finetuned_service.jobs.task import QuantizeTask


def _load() -> Callable[[QuantizeTask, ReportFunction, StopFlag], int]:
    # Imported here: torch must load under the limits.
    from transformers.utils import logging  # noqa: PLC0415

    from finetuned_service.quantization.run import run  # noqa: PLC0415

    logging.disable_progress_bar()  # standard error is a log
    return run


if __name__ == "__main__":
    sys.exit(
        run_job(
            sys.argv,
            QuantizeTask,
            _load,
            memory_remedy="Quantize a smaller base, or give the server's jobs a larger memory budget",
        )
    )
