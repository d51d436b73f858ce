"""TRL's SFTTrainer with PEFT's LoRA on all linear modules.

Settings: `base`, `threads`, `batch_rows`, `learning_rate`, `packing` (its best-fit packing; else batches of
rows of like length), `max_length` of a packed sequence, `checkpointing`. Command: {"rows": FILE} trains one epoch of it with
fresh moments, and answers {"seconds", "tokens", "steps"}: from the first step's begin to the last one's end.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.peers.worker import Answer, Command, Settings, answer


class Clock(TrainerCallback):
    """When the first step began and the last one ended."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = time.perf_counter()


def start(settings: Settings) -> Answer:
    torch.set_num_threads(settings["threads"])
    model = AutoModelForCausalLM.from_pretrained(settings["base"], dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(settings["base"])
    for parameter in model.parameters():
        parameter.detach().sum()
    trainers: dict[str, tuple[Any, Clock, int]] = {}

    def prepare(path: str) -> tuple[Any, Clock, int]:
        rows = json.loads(Path(path).read_text())
        tokens = sum(len(row["input_ids"]) for row in rows)
        batching: dict[str, Any] = {
            "per_device_train_batch_size": settings["batch_rows"],
            "train_sampling_strategy": "group_by_length",
        }
        if settings["packing"]:
            # As many tokens in a step as so many rows have.
            step_tokens = settings["batch_rows"] * tokens / len(rows)
            batching = {
                "packing": True,
                "shuffle_dataset": True,
                "per_device_train_batch_size": max(1, round(step_tokens / settings["max_length"])),
            }
        clock = Clock()
        trainer = SFTTrainer(
            model=trainers[next(iter(trainers))][0].model if trainers else model,
            args=SFTConfig(
                output_dir=tempfile.mkdtemp(),
                num_train_epochs=1,
                max_length=settings["max_length"],
                learning_rate=settings["learning_rate"],
                lr_scheduler_type="cosine",
                completion_only_loss=True,
                bf16=True,
                use_cpu=True,
                activation_checkpointing=settings["checkpointing"],
                save_strategy="no",
                report_to=[],
                logging_steps=1,
                disable_tqdm=True,
                dataloader_pin_memory=False,
                **batching,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=None
            if trainers
            else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[clock],
        )
        return trainer, clock, tokens

    def train(command: Command) -> dict[str, object]:
        path = command["rows"]
        if path not in trainers:
            trainers[path] = prepare(path)
        trainer, clock, tokens = trainers[path]
        # It would keep the moments of the epoch before.
        trainer.optimizer = None
        trainer.train()
        return {
            "seconds": clock.ended - clock.began,
            "tokens": tokens,
            "steps": trainer.state.global_step,
        }

    return train


if __name__ == "__main__":
    answer(start)
