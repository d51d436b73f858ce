"""Heads with their labels sorted, as TrainJobs make them: what is imported can then be continued and compared. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from finetuned_service.adapters.config_keys import CONFIG_FILE
from finetuned_service.adapters.files import WEIGHTS_FILE, AdapterFacts
from finetuned_service.adapters.head import CLASSIFIER, HEAD_KEY
from finetuned_service.adapters.layouts import PREFIX
from finetuned_service.digests import read_safetensors_header


def has_sorted_labels(facts: AdapterFacts) -> bool:
    """Whether a checked adapter has no head, or one whose outputs are in the order of their labels."""
    return facts.head is None or list(facts.head.labels) == sorted(facts.head.labels)


def sort_labels(directory: Path, facts: AdapterFacts) -> None:
    """Rewrite the files of a checked adapter: the outputs of its head in the order of their labels, to the last bit as
    they were. Nobody else may use the directory: what breaks here leaves it torn.
    """
    assert facts.head is not None, "what has no labels has them sorted"
    labels = facts.head.labels
    order = sorted(range(len(labels)), key=labels.__getitem__)
    config: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_bytes())
    config[HEAD_KEY]["labels"] = [labels[place] for place in order]
    (directory / CONFIG_FILE).write_text(json.dumps(config))
    head = f"{PREFIX}{CLASSIFIER}."
    own = [info for info in read_safetensors_header(directory / WEIGHTS_FILE) if info.name.startswith(head)]
    with (directory / WEIGHTS_FILE).open("r+b") as file:
        for info in own:
            file.seek(info.start)
            rows = np.frombuffer(file.read(info.end - info.start), np.uint8).reshape(len(labels), -1)
            file.seek(info.start)
            file.write(rows[order].tobytes())
