"""Images of a job are never all decoded at once: when it is checked, while it trains, when it is measured."""

from __future__ import annotations

import base64
import threading
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from finetuned_service.adapters.files import stored_digest
from finetuned_service.bases import images as decoding
from finetuned_service.bases.inputs import ImageInput
from finetuned_service.engine.messages import Encode, Encoded, Sampling, Submit
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import InvalidData
from finetuned_service.jobs.estimate import DECODED_IMAGES_BYTES, RUNTIME_BYTES, estimate_train
from finetuned_service.jobs.task import EXIT_FINISHED
from finetuned_service.training import encoded as encoding
from finetuned_service.training.encoded import encoded
from finetuned_service.training.heads import images
from finetuned_service.training.heads import run as head_run
from finetuned_service.training.heads.examples import read_head_data
from finetuned_service.training.heads.images import ImageShelf
from finetuned_service.training.preview import RowPreview
from finetuned_service.training.run import run
from finetuned_service.vocabulary import DataReport
from tiny_encoders import make_resnet_base, png, random_image
from training_tasks import Reports, make_task
from unit.test_training_heads import image_rows

FORM = ImageInput(channels=1, height=16, width=16, mean=(0.5,), std=(0.25,))
IMAGE_BYTES = 256
LORA: dict[str, Any] = {
    "task": "image-classification",
    "method": "LORA",
    "lora": {"rank": 2, "dropout": 0.2},
    "evaluation": {"evaluations": 2},
}


class Decoded(bytes):
    """A decoded image that counts how many of its kind are in memory."""

    alive: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __new__(cls, data: bytes) -> Self:
        Decoded.alive += 1
        Decoded.most = max(Decoded.most, Decoded.alive)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        Decoded.alive -= 1


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_resnet_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Decoded]:
    def fitted(*arguments: Any) -> bytes:
        return Decoded(decoding.fitted_image(*arguments))

    monkeypatch.setattr(images, "fitted_image", fitted)
    Decoded.alive = Decoded.most = 0
    return Decoded


class OneBase:
    """A catalog of one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, _: object) -> Path:
        return self._directory


def preview(base: Path, task: Any) -> DataReport:
    catalog: Any = OneBase(base)
    eval_path = Path(task.eval_path) if task.eval_path else None
    return RowPreview(catalog)(task.spec, Path(task.train_path), eval_path)


def test_a_job_is_checked_with_one_image_decoded_at_a_time(
    vision: Path, tmp_path: Path, counted: type[Decoded]
) -> None:
    rows = image_rows()
    report = preview(vision, make_task(tmp_path, vision, train=[*rows, rows[0]], **LORA))
    assert (report.train_rows + report.eval_rows, report.duplicate_rows + report.leaked_rows) == (41, 1)
    assert report.row_tokens.longest == 0
    assert (counted.most, counted.alive) == (1, 0)


def test_an_image_that_does_not_decode_is_named_by_its_line(vision: Path, tmp_path: Path) -> None:
    rows = image_rows()
    broken = base64.b64encode(random_image(0)[:60]).decode()
    task = make_task(tmp_path, vision, train=[*rows, {"image": broken, "label": "dark"}], **LORA)
    with pytest.raises(InvalidData, match=r"line 41 .*does not decode as image/png"):
        preview(vision, task)


def test_a_job_keeps_what_has_room(vision: Path, tmp_path: Path, counted: type[Decoded]) -> None:
    task = make_task(tmp_path, vision, train=image_rows(), **LORA)
    data = read_head_data(
        task.spec, vision, Path(task.train_path), None, decoded_bytes=3 * IMAGE_BYTES + IMAGE_BYTES // 2
    )
    assert (counted.most, counted.alive) == (4, 3)
    examples = (*data.train, *data.heldout)
    kept = [example.image.fitted is not None for example in examples if example.image]
    assert kept == [True] * 3 + [False] * 37
    for example in examples:
        assert example.image is not None
        example.image.pixels()
    assert (counted.most, counted.alive) == (4, 3)


@pytest.mark.parametrize("method", ["HEAD", "LORA"])
def test_decoded_again_or_kept_a_job_trains_to_the_same_bytes(
    vision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    digests: list[str] = []
    for room in (0, 5 * IMAGE_BYTES, DECODED_IMAGES_BYTES):
        monkeypatch.setattr(head_run, "read_head_data", partial(read_head_data, decoded_bytes=room))
        task = make_task(tmp_path / str(room), vision, train=image_rows(), **LORA | {"method": method})
        assert run(task, Reports(), threading.Event()) == EXIT_FINISHED
        digests.append(stored_digest(Path(task.output_directory)))
    assert len(set(digests)) == 1


@pytest.mark.parametrize("grey", [0, 1, 77, 255])
def test_numbers_are_those_of_an_image_prepared_at_once(grey: int) -> None:
    data = png([[grey, 255 - grey] * 10] * 20)
    prepared = decoding.prepare_image(data, None, FORM, "image")
    for room in (0, IMAGE_BYTES):
        pixels = ImageShelf(FORM, room).take(data).pixels()
        assert (pixels.data, pixels.shape) == (prepared.data, prepared.shape)


def test_requests_are_made_as_the_engine_has_room(vision: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(OfflineEngine):
        waiting = most = 0

        def deliver(self, *commands: Any) -> None:
            Watched.waiting += len(commands)
            Watched.most = max(Watched.most, Watched.waiting)
            super().deliver(*commands)

        def step(self) -> Any:
            events = super().step()
            Watched.waiting -= sum(isinstance(event, Encoded) for event in events)
            return events

    monkeypatch.setattr(encoding, "OfflineEngine", Watched)
    monkeypatch.setattr(encoding, "_RUNNING", 3)
    monkeypatch.setattr(encoding, "_AT_ONCE", 6)
    held = [ImageShelf(FORM, 0).take(random_image(seed)) for seed in range(20)]
    requests = (
        Submit(number, (0,), None, Sampling(1), encode=Encode(None), pixels=image.pixels())
        for number, image in enumerate(held)
    )
    found = encoded(vision, requests, 1)
    assert sorted(found) == list(range(20))
    assert (Watched.most, Watched.waiting) == (6, 0)
    assert encoded(vision, [], 1) == {}


def test_what_is_kept_decoded_counts_for_the_memory(vision: Path, tmp_path: Path) -> None:
    spec = make_task(tmp_path, vision, train=image_rows(), **LORA | {"method": "HEAD"}).spec

    def least_bytes(rows: int) -> int:
        report = DataReport(
            train_rows=rows,
            eval_rows=rows,
            train_tokens=rows,
            supervised_tokens=rows,
            mean_row_tokens=1.0,
            longest_row_tokens=1,
        )
        return estimate_train(spec, vision, report).memory_bytes - RUNTIME_BYTES

    assert least_bytes(1000) - least_bytes(0) == 2000 * IMAGE_BYTES
    assert least_bytes(10**6) - least_bytes(0) == DECODED_IMAGES_BYTES
