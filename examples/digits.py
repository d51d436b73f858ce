"""A small ResNet pretrained on the digits 0 to 4 of scikit-learn's bundled set, so that transfer to 5 to 9 is real.

    python -m examples.digits DIRECTORY

writes DIRECTORY/resnet-digits (what `finetuned base add` takes), and images of the digits 5 to 9 to learn and to
be measured on: DIRECTORY/train.jsonl and DIRECTORY/eval.jsonl. Seconds on one core, the same files at each run.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

SIDE = 32
EPOCHS = 6
BATCH = 64
IMAGES = {
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5],
    "image_std": [0.5],
}


def digits(kinds: Iterable[int]) -> tuple[list[bytes], list[int]]:
    """PNG files of 8 by 8 grey pixels, and the digit that each shows, in scikit-learn's order."""
    bundle = load_digits()
    files: list[bytes] = []
    labels: list[int] = []
    for values, label in zip(bundle.images, bundle.target, strict=True):
        if label in set(kinds):
            file = io.BytesIO()
            Image.fromarray(np.uint8(values * 15.9375)).save(file, format="png")
            files.append(file.getvalue())
            labels.append(int(label))
    return files, labels


def as_input(file: bytes) -> torch.Tensor:
    """`[1, 32, 32]`, as the base's own settings prepare it."""
    with Image.open(io.BytesIO(file)) as image:
        larger = np.asarray(image.resize((SIDE, SIDE), IMAGES["resample"]), dtype=np.float32)
    return torch.from_numpy((larger / 255 - 0.5) / 0.5)[None]


def pretrain(directory: Path, *, epochs: int = EPOCHS, seed: int = 0) -> float:
    """Train on 0 to 4 and save as transformers does; returns the share of held-out images that are right."""
    files, labels = digits(range(5))
    images, targets = torch.stack([as_input(file) for file in files]), torch.tensor(labels)
    torch.manual_seed(seed)
    order = torch.randperm(len(images))
    held_out, train = order[: len(order) // 5], order[len(order) // 5 :]
    config = ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=5,
    )
    model = ResNetForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(BATCH):
            loss = functional.cross_entropy(model(pixel_values=images[batch]).logits, targets[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        right = model(pixel_values=images[held_out]).logits.argmax(1) == targets[held_out]
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(IMAGES, indent=2) + "\n")
    return float(right.float().mean())


def write_rows(train: Path, held_out: Path, kinds: Iterable[int] = range(5, 10)) -> None:
    """Labelled images as a dataset has them; every fifth is held out."""
    rows = [
        json.dumps({"image": base64.b64encode(file).decode(), "label": str(label)}) + "\n"
        for file, label in zip(*digits(kinds), strict=True)
    ]
    train.write_text("".join(row for number, row in enumerate(rows) if number % 5))
    held_out.write_text("".join(rows[::5]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    share = pretrain(directory / "resnet-digits")
    write_rows(directory / "train.jsonl", directory / "eval.jsonl")
    print(f"digits 0 to 4, held out: {share:.1%} right")
    print(f"next: finetuned serve --base {directory}/resnet-digits")
    print(f"      finetuned dataset upload {directory}/train.jsonl --id digits")
    print("      finetuned train --task image-classification --dataset digits --adapter digits")


if __name__ == "__main__":
    main()
