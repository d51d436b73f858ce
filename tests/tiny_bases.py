"""Tiny bases as the store has them: weights, tokenizer, manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetuned_service.bases.convert import import_directory
from finetuned_service.bases.manifest import read_manifest
from finetuned_service.jobs.specs import QuantizeSpec
from finetuned_service.jobs.task import QuantizeTask, TaskLimits
from tiny_models import save_tiny_base
from tiny_tokenizers import byte_level, write_tokenizer


def make_tiny_base(directory: Path, **settings: Any) -> Path:
    """Import a random Llama with a byte-level tokenizer; returns the base's directory.

    Args:
        directory: of the base; its source is made beside it.
        settings: see `tiny_models.save_tiny_base`.
    """
    source = directory.with_name(f"{directory.name}-source")
    save_tiny_base(source, **{"vocab_size": byte_level().get_vocab_size(), **settings})
    write_tokenizer(source)
    import_directory(source, directory)
    return directory


def make_quantize_task(base: Path, directory: Path, **settings: Any) -> QuantizeTask:
    """A task as the dispatcher writes it.

    Args:
        base: directory of the source.
        directory: the job's own.
        settings: of the spec; `text_path` of the task; `memory_budget_bytes` and `yield_to_serving` of
            its limits.
    """
    text_path = settings.pop("text_path", "")
    limits = TaskLimits(
        threads=1,
        memory_budget_bytes=settings.pop("memory_budget_bytes", 4_000_000_000),
        yield_to_serving=settings.pop("yield_to_serving", True),
    )
    return QuantizeTask(
        job_name="tenants/acme/jobs/j1",
        attempt=1,
        spec=QuantizeSpec(**{"base": "bases/tiny", "output_base_id": "small", **settings}),
        base_directory=str(base),
        base_digest=read_manifest(base).digest,
        text_path=str(text_path),
        work_directory=str(directory / "work"),
        output_directory=str(directory / "output"),
        limits=limits,
    )
