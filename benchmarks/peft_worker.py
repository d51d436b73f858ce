"""The peer of `benchmarks.serving`: plain transformers, and PEFT with one adapter a sequence.

Arguments: base directory, directory for adapters (made here if absent), their number, rank, new tokens,
prompt. Reads commands as JSON lines, answers each with its seconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_base(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()


def make_adapters(base: Path, directory: Path, count: int, rank: int) -> list[Path]:
    """Random adapters in bfloat16 whose B is not zero."""
    paths = [directory / f"bench-{i}" for i in range(count)]
    for seed, path in enumerate(paths):
        if path.exists():
            continue
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
        model = get_peft_model(load_base(base), config, autocast_adapter_dtype=False)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.01)
        model.save_pretrained(str(path))
        (path / "README.md").unlink(missing_ok=True)
    return paths


def main() -> None:
    base, directory, count, rank, new_tokens, prompt = sys.argv[1:]
    paths = make_adapters(Path(base), Path(directory), int(count), int(rank))
    model = PeftModel.from_pretrained(load_base(Path(base)), str(paths[0]), adapter_name=paths[0].name)
    for path in paths[1:]:
        model.load_adapter(str(path), adapter_name=path.name)
    model.eval()
    ids = AutoTokenizer.from_pretrained(base)(prompt, return_tensors="pt")["input_ids"]
    limits = GenerationConfig(
        max_new_tokens=int(new_tokens), min_new_tokens=int(new_tokens), do_sample=False, pad_token_id=2
    )
    for line in sys.stdin:
        command = json.loads(line)
        began = time.perf_counter()
        if command.get("load"):
            model.load_adapter(str(paths[0]), adapter_name="again")
            seconds = time.perf_counter() - began
            model.delete_adapter("again")
        elif "sequences" in command:
            rows = command["sequences"]
            batch = ids.expand(rows, -1)
            settings = {"generation_config": limits, "attention_mask": torch.ones_like(batch)}
            with torch.inference_mode():
                if command["mixed"]:
                    names = [paths[i % len(paths)].name for i in range(rows)]
                    model.generate(input_ids=batch, adapter_names=names, **settings)
                else:
                    with model.disable_adapter():
                        model.generate(input_ids=batch, **settings)
            seconds = time.perf_counter() - began
        else:
            seconds = 0.0
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
