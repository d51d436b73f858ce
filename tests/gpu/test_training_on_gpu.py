"""What a trainer does otherwise on a GPU: its generators, its memory, its repeatability."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from finetuned_service.jobs.task import EXIT_FAILED, EXIT_FINISHED, Failed
from safetensors.torch import load_file
from training_tasks import counting_rows, make_base, make_task, parse_reports, start_process

pytestmark = pytest.mark.gpu

SETTINGS = {
    "train": counting_rows(0, 13),
    "data": {"holdout_fraction": 0},
    "lora": {"rank": 4, "dropout": 0.3},
    "optimization": {
        "max_steps": 6,
        "batch_rows": 6,
        "micro_batch_rows": 2,
        "learning_rate": 1e-2,
        "checkpoint_interval_steps": 1,
        "kept_checkpoints": 6,
    },
}


def finished(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_two_processes_compute_the_same_bits_and_one_goes_on_where_it_was_killed(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base = make_base(tmp_path / "base", dtype=dtype)
    tasks = [
        make_task(tmp_path / name, base, **SETTINGS).model_copy(update={"device": "cuda"})
        for name in ("first", "second")
    ]
    found = []
    for name, task in zip(("first", "second"), tasks, strict=True):
        code, out = finished(start_process(task, tmp_path / name))
        assert code == EXIT_FINISHED, out[-2000:]
        found.append(load_file(Path(task.output_directory) / "adapter_model.safetensors"))
    assert {name for name in found[0] if not torch.equal(found[0][name], found[1][name])} == set()

    # From the middle: what comes after is thrown away.
    shutil.rmtree(tasks[1].output_directory)
    work = Path(tasks[1].work_directory, "checkpoints")
    for step in (4, 5, 6):
        shutil.rmtree(work / f"step-{step:08}")
    code, out = finished(start_process(tasks[1].model_copy(update={"attempt": 2}), tmp_path / "second"))
    assert code == EXIT_FINISHED, out[-2000:]
    again = load_file(Path(tasks[1].output_directory) / "adapter_model.safetensors")
    assert {name for name in again if not torch.equal(again[name], found[0][name])} == set()
    assert b"goes on from the checkpoint after step 3" in out


def test_a_budget_of_the_gpu_is_kept_and_the_refusal_lets_the_batch_be_halved(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    task = make_task(tmp_path / "small", base, **SETTINGS)
    limits = task.limits.model_copy(update={"device_budget_bytes": 1 << 20})
    task = task.model_copy(update={"device": "cuda", "limits": limits})
    code, out = finished(start_process(task, tmp_path / "small"))
    assert code == EXIT_FAILED
    (failed,) = parse_reports(out).of(Failed)
    assert failed.error["reason"] == "NO_ROOM"
    assert "device_memory_bytes" in failed.error["metadata"]
    assert "the GPU has no more memory" in failed.error["message"]
