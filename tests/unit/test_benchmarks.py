"""The instrument itself: figures, targets, results that stay, and peers that are stopped out of turn."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

# benchmarks/ is run from the repository's root, not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from finetuned_service.training.model import load_model
from packed_oracle import pack
from tiny_bases import make_tiny_base
from tiny_tokenizers import write_tokenizer
from unit.test_training_model import spec

from benchmarks.figures import compared, quantile, single, take_turns
from benchmarks.groups import GROUPS
from benchmarks.peers.process import PeerFailed, Sequences, running
from benchmarks.prompts import Prompt
from benchmarks.report import save
from benchmarks.targets import TARGETS, verdict
from benchmarks.training.estimate import estimate_figure
from benchmarks.training.groups import GROUPS as TRAINING_GROUPS
from benchmarks.training.memory import peak
from benchmarks.training.rows import RowFactory
from benchmarks.training.weights import frozen_tensors, weight_bytes

WORKER = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    command = json.loads(line)
    tokens = len(command["rows"]) * command["new_tokens"] - %d
    print(json.dumps({"seconds": 2.0, "tokens": tokens}), flush=True)
while True:
    pass
"""
WORK = Sequences([Prompt("a", (1,)), Prompt("b", (2,))], [None, Path("adapter")], 8)


def test_ratios_are_taken_within_a_run():
    figure = compared("x_vs_y", "tokens/s", [10.0, 30.0, 20.0], "y", [5.0, 10.0, 40.0])
    assert (figure.value, figure.peer, figure.ratio) == (20.0, 10.0, 2.0)
    assert (figure.ratio_minimum, figure.ratio_maximum, figure.runs) == (0.5, 3.0, 3)


def test_each_takes_its_turn_after_a_warm_up():
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = take_turns(3, {"a": lambda: measure("a"), "b": lambda: measure("b")})
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert found == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.75, 3.0), (0.99, 4.0), (0.0, 1.0)])
def test_quantile(share: float, expected: float):
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == expected


def test_verdicts():
    assert verdict(compared("mixed_8_vs_vllm", "tokens/s", [49.0], "vllm", [10.0])) == ("≥ 5x", "missed")
    assert verdict(compared("mixed_8_vs_vllm", "tokens/s", [50.0], "vllm", [10.0])) == ("≥ 5x", "met")
    assert verdict(single("mixed_8_vs_vllm", "tokens/s", [50.0])) == ("≥ 5x", "no peer")
    assert verdict(single("cold_adapter_extra_ttft_ms", "ms", [30.1])) == ("≤ 30", "missed")
    assert verdict(single("first_ever_start_seconds", "s", [1.0])) == ("", "")


def test_results_measured_before_stay(tmp_path: Path):
    path = tmp_path / "serving.json"
    save(path, [single("a", "ms", [1.0]), single("b", "ms", [2.0])], 0.0)
    save(path, [single("b", "ms", [3.0])], 1.5)
    found = {entry["figure"]: entry for entry in json.loads(path.read_text())}
    assert [(name, entry["value"], entry["busy_cores_before"]) for name, entry in found.items()] == [
        ("a", 1.0, 0.0),
        ("b", 3.0, 1.5),
    ]
    assert all(entry["machine"] and entry["time"] for entry in found.values())


def test_a_peer_out_of_turn_is_stopped(tmp_path: Path):
    with running("fake", [sys.executable, "-c", WORKER % 0], {}, {}, tmp_path / "log") as peer:
        process = psutil.Process(peer.pids[0])
        assert _stops(process)
        assert peer.seconds(WORK) == 2.0
        assert _stops(process)
    assert not process.is_running()


def test_a_peer_that_generates_less_is_not_compared(tmp_path: Path):
    with (
        pytest.raises(PeerFailed, match="fake made 15 tokens instead of 16"),
        running("fake", [sys.executable, "-c", WORKER % 1], {}, {}, tmp_path / "log") as peer,
    ):
        peer.seconds(WORK)


def test_a_peer_that_cannot_start_names_its_log(tmp_path: Path):
    with (
        pytest.raises(PeerFailed, match=r"fake ended with code 3; see .*log"),
        running("fake", [sys.executable, "-c", "import sys; sys.exit(3)"], {}, {}, tmp_path / "log"),
    ):
        pass


def test_estimates_are_off_by_the_median_of_the_jobs_and_at_most_by_the_worst():
    found = estimate_figure("estimate_time_error", {"one": 0.1, "two": -0.4, "three": 0.2})
    assert (found.value, found.maximum, found.runs) == (0.2, 0.4, 3)
    assert found.note == "one +10%, two -40%, three +20%"
    assert verdict(found) == ("≤ 0.3", "met")
    with pytest.raises(RuntimeError, match="nothing to compare for two"):
        estimate_figure("estimate_time_error", {"one": 0.1, "two": None})


def test_every_target_is_of_a_figure_that_is_told_of():
    told = (Path(__file__).resolve().parents[2] / "benchmarks/README.md").read_text()
    assert [name for name in TARGETS if f"`{name}`" not in told] == []
    assert [name for name in (*GROUPS, *TRAINING_GROUPS) if f"`{name}`" not in told] == []


def test_training_rows_are_alike_in_every_run_and_as_long_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    write_tokenizer(tmp_path / "base")
    made = []
    for run in ("first", "second"):
        factory = RowFactory(tmp_path / "base", tmp_path / run)
        made.append([factory.short(4), factory.uneven(9, 700), factory.full(2, 64)])
    for rows, again in zip(*made, strict=True):
        assert rows.path.read_text() == again.path.read_text()
        found = json.loads(rows.path.read_text())
        lengths = [len(row["input_ids"]) for row in found]
        assert (rows.rows, rows.tokens) == (len(found), sum(lengths))
        assert (rows.shortest, rows.longest) == (min(lengths), max(lengths))
        assert rows.supervised_tokens == sum(sum(row["completion_mask"]) for row in found)
    _, uneven, full = made[0]
    assert full.shortest == full.longest == 64
    assert 2 * uneven.shortest < uneven.longest <= 700


GROWS = """
import sys
print(flush=True)
sys.stdin.readline()
held = bytearray(b"x") * 50_000_000
print(flush=True)
sys.stdin.readline()
"""


def test_peak_is_what_is_held_above_the_beginning():
    with subprocess.Popen(
        [sys.executable, "-c", GROWS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        with peak(process.pid) as measured:
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()
            measured.sample()
        process.stdin.write("\n")
    assert 45e6 < measured.above < 80e6


@pytest.mark.parametrize(("weight_format", "embeddings"), [("NF4", False), ("INT8", False), ("INT8", True)])
def test_weights_are_counted_where_they_lie_and_stored_ones_stay_mapped(
    tmp_path: Path, weight_format: str, *, embeddings: bool
):
    source = make_tiny_base(tmp_path / "tiny", dtype=torch.bfloat16)
    packed = pack(source, tmp_path / "packed", weight_format, embeddings=embeddings)
    model = load_model(packed, spec(lora={"rank": 2, "alpha": 2.0, "target_modules": ("q_proj", "up_proj")}))
    weights = list(frozen_tensors(model))
    for tensor in weights:
        tensor.detach().float().sum()  # pages count once they are read
    file = packed / "model.safetensors"
    found, size = weight_bytes(weights, file), file.stat().st_size
    assert 0.9 * size < found.mapped_bytes < size + 4096
    # Beside the file: frequencies of positions and offsets of scales, and the head of packed embeddings.
    head_bytes = model.head.nbytes if embeddings else 0
    assert 0 < found.private_bytes - head_bytes < 500
    assert found.total_bytes == found.mapped_bytes + found.private_bytes
    copy = torch.ones(1000)
    again = weight_bytes([*weights, copy, copy[:], weights[0]], file)
    assert again.private_bytes - found.private_bytes == copy.nbytes


def _stops(process: psutil.Process) -> bool:
    """A signal is delivered at once, but not before the kernel gets to it."""
    deadline = time.monotonic() + 10.0
    while process.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.001)
    return process.status() == psutil.STATUS_STOPPED
