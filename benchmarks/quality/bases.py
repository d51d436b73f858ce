"""The bases that the studies train on, each made once under build/."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from finetuned_service.bases.convert import convert_packaged, import_directory
from finetuned_service.bases.publish import building
from finetuned_service.vocabulary import WeightFormat
from transformers import AutoModelForCausalLM

from benchmarks.training.packed import store_packed
from examples.digits import pretrain

HOME = Path("build/bench/quality/bases")
SMOLLM2 = "smollm2-135m-instruct"


def digits(directory: Path) -> None:
    """A small ResNet that knows the digits 0 to 4; see examples/digits.py."""
    source = directory.with_name("digits-source")
    pretrain(source)
    import_directory(source, directory)
    shutil.rmtree(source)


def minilm(directory: Path) -> None:
    convert_packaged("all-minilm-l6-v2", directory)


def smollm2(directory: Path) -> None:
    """In bfloat16, as it is packaged."""
    convert_packaged(SMOLLM2, directory)


def smollm2_float32(directory: Path) -> None:
    """The same numbers in 32 bits, so that two curves differ by rounding of the last places alone."""
    narrow, source = base("smollm2"), directory.with_name("float32-source")
    model: Any = AutoModelForCausalLM.from_pretrained(narrow, dtype=torch.float32)
    model.save_pretrained(source)
    for file in narrow.glob("*token*"):
        shutil.copy(file, source)
    shutil.copy(narrow / "chat_template.jinja", source)
    import_directory(source, directory)
    shutil.rmtree(source)


def smollm2_nf4(directory: Path) -> None:
    """The base in 32 bits, packed in 4."""
    _packed(directory, WeightFormat.NF4)


def smollm2_int8(directory: Path) -> None:
    """The base in 32 bits, packed in 8."""
    _packed(directory, WeightFormat.INT8)


def _packed(directory: Path, weight_format: WeightFormat) -> None:
    source = base("smollm2-float32")
    with building(directory) as scratch:
        store_packed(source, scratch, weight_format)


BASES: Mapping[str, Callable[[Path], None]] = {
    make.__name__.replace("_", "-"): make
    for make in (digits, minilm, smollm2, smollm2_float32, smollm2_nf4, smollm2_int8)
}


def base(name: str) -> Path:
    """The directory of a base, made now if it is not there."""
    directory = HOME / name
    if not directory.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        BASES[name](directory)
    return directory.resolve()


def digest(directory: Path) -> str:
    """Of a base's tensors and configuration."""
    found: str = json.loads((directory / "base.json").read_text())["digest"]
    return found
