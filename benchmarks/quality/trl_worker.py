"""TRL's SFTTrainer and DPOTrainer with PEFT, in TRL's own environment: the reference of what language models learn.

Settings: none. Command: {"order": ORDER} is answered with an OUTCOME (`order.py`). An order without `tuned` is repeated,
batch by batch: TRL gets the rows as text that the chat template wrote, and must make of it the ids and the supervised
places that our run has. With `tuned` it trains as its users would, on conversations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.peers.worker import Answer, Command, Settings, answer
from benchmarks.quality.alone import Mark, alone
from benchmarks.quality.order import Order, Outcome
from benchmarks.quality.reference.answers import Answering
from benchmarks.quality.reference.batches import IGNORED, Row
from benchmarks.quality.reference.loops import scheduled
from benchmarks.quality.reference.model import GENERATION, begin, load, peft_config, peft_parameters
from benchmarks.quality.reference.preferences import gains
from benchmarks.quality.reference.trained import QUIET, Clock, Trained, outcome
from benchmarks.quality.reference.tuned import lora_config, tuned_arguments

PRELOADED = (LlamaForCausalLM,)
"""What transformers would import at the first use, in every child anew."""
ANSWERS = ("completion", "chosen", "rejected")
"""What a row has of answers."""


def recorded(trainer: type) -> type:
    """A trainer of TRL that keeps every step's loss, unrounded, in its `trained`."""

    class Recorded(trainer):
        trained: Trained

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            self.trained.losses.append(loss.item())
            return loss

    return Recorded


SFT, DPO = recorded(SFTTrainer), recorded(DPOTrainer)


def start(_settings: Settings) -> Answer:
    def handle(command: Command) -> Mapping[str, Any]:
        order = Order(**command["order"])
        return alone(lambda mark: _run(order, mark).as_json())

    return handle


def _run(order: Order, mark: Mark) -> Outcome:
    torch.set_num_threads(order.threads)
    base = Path(order.base)
    encoded = json.loads(Path(order.encoded).read_text())
    model = load(base, GENERATION)
    mark()
    trainer = (_tuned if order.tuned else _repeating)(order, model, encoded["train"])
    parameters = peft_parameters(trainer.model)
    trainer.train()
    mark()
    # In bfloat16 it has wrapped the model for mixed precision.
    learnt = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    if _prefers(order):
        predictions: dict[str, Any] = {"log_probabilities": gains(learnt, encoded["test"])}
    else:
        prompts = encoded["prompts"] if order.generates else []
        predictions = Answering(learnt, base, prompts).predictions(encoded["test"])
    return outcome(order, trainer.trained, parameters, model.dtype, predictions)


def _repeating(order: Order, model: Any, rows: Sequence[Row]) -> Any:
    """With the batches, the rates and the beginning of the order.

    Raises:
        ValueError: TRL makes other ids of a row, or supervises others.
    """
    options, places = order.spec["optimization"], [place for step in order.batches for place in step]
    tokenizer: Any = AutoTokenizer.from_pretrained(order.base)
    texts = [_written(tokenizer, row) for row in _raw(order)]
    trainer = _trainer(
        order,
        model,
        [texts[place] for place in places],
        peft_config(order.spec, GENERATION),
        max_length=None,
        train_sampling_strategy="sequential",
        max_steps=len(order.batches),
        per_device_train_batch_size=options["batch_rows"],
        learning_rate=options["learning_rate"],
        weight_decay=options["weight_decay"],
        max_grad_norm=options["max_gradient_norm"],
        **({"beta": order.spec["dpo"]["beta"]} if _prefers(order) else {}),
    )
    for place, made in zip(places, trainer.train_dataset, strict=True):
        if (found := _encoded(made)) != rows[place]:
            raise ValueError(f"row {place + 1} became {found} and is {rows[place]}")
    begin(peft_parameters(trainer.model), load_file(order.initial))
    trainer.create_optimizer()
    trainer.lr_scheduler = scheduled(trainer.optimizer, order.learning_rates, options["learning_rate"])
    return trainer


def _tuned(order: Order, model: Any, _rows: Sequence[Row]) -> Any:
    """As its users would, with the settings that are tried."""
    options = order.spec["optimization"]
    conversations = [
        {"prompt": [_turn("user", row["prompt"])]}
        | {name: [_turn("assistant", row[name])] for name in ANSWERS if name in row}
        for row in _raw(order)
    ]
    lora = lora_config(order.spec["lora"], "CAUSAL_LM")
    arguments = tuned_arguments(order.tuned, options["batch_rows"], options["seed"])
    return _trainer(order, model, conversations, lora, **arguments)


def _trainer(order: Order, model: Any, rows: Sequence[Row], peft: Any, **arguments: Any) -> Any:
    kind, config = (DPO, DPOConfig) if _prefers(order) else (SFT, SFTConfig)
    trained = Trained()
    trainer = kind(
        model=model,
        args=config(
            output_dir=order.directory,
            bf16=model.dtype is torch.bfloat16,
            # It would save memory and cost time.
            activation_checkpointing=False,
            **QUIET,
            **arguments,
        ),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=AutoTokenizer.from_pretrained(order.base),
        peft_config=peft,
        callbacks=[Clock(trained)],
    )
    trainer.trained = trained
    return trainer


def _raw(order: Order) -> list[Row]:
    return [json.loads(line) for line in Path(order.train).read_text().splitlines()]


def _prefers(order: Order) -> bool:
    return order.spec["objective"] == "DPO"


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _written(tokenizer: Any, row: Row) -> Row:
    """The same as text, an answer through its end: the template writes a line break behind that, which our run does
    not have.
    """
    asked = [_turn("user", row["prompt"])]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return {"prompt": prompt} | {name: row[name] + tokenizer.eos_token for name in ANSWERS if name in row}


def _encoded(made: Row) -> Row:
    """A row of TRL's as it is in a file of `encoded.py`."""
    if "input_ids" in made:
        return {"ids": made["input_ids"], "labels": made["labels"]}
    prompt = made["prompt_ids"]
    return {
        side: {"ids": prompt + made[f"{side}_ids"], "labels": [IGNORED] * len(prompt) + made[f"{side}_ids"]}
        for side in ("chosen", "rejected")
    }


if __name__ == "__main__":
    answer(start)
