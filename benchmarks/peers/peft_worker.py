"""PEFT's `generate(adapter_names=...)` for adapters, and plain transformers for the base.

Settings: `base`, `threads`. Adapters are loaded when a row first asks for them, and stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.peers.worker import Generate, Row, Settings, serve


def start(settings: Settings) -> Generate:
    torch.set_num_threads(settings["threads"])
    directory = settings["base"]
    # Two models: the layers that PEFT puts in would slow the base down even when they are disabled.
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    adapted: Any = None
    loaded: dict[str, str] = {}

    def load(adapter: str) -> str:
        nonlocal adapted
        if adapter not in loaded:
            name = Path(adapter).name
            if adapted is None:
                plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
                adapted = PeftModel.from_pretrained(plain, adapter, adapter_name=name).eval()
            else:
                adapted.load_adapter(adapter, adapter_name=name)
            loaded[adapter] = name
        return loaded[adapter]

    @torch.inference_mode()
    def generate(rows: Sequence[Row], new_tokens: int) -> int:
        ids = torch.tensor([row.token_ids for row in rows])
        limits = GenerationConfig(
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=2
        )
        arguments: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "generation_config": limits,
        }
        names = [load(row.adapter) for row in rows if row.adapter is not None]
        model = base
        if names:
            model, arguments["adapter_names"] = adapted, names
        output = model.generate(**arguments)
        return (output.shape[1] - ids.shape[1]) * len(rows)

    return generate


if __name__ == "__main__":
    serve(start)
