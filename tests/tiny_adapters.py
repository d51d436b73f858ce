"""A tiny Llama, and LoRA adapters of it as PEFT writes and reads them; A and B are random."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}


def tiny_llama(**settings: Any) -> LlamaForCausalLM:
    """Two layers, float32, the same weights at each call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(TINY | settings))).eval()


def peft_model(**settings: Any) -> Any:
    """The tiny Llama with a LoRA whose B is not zero; `settings` go to LoraConfig."""
    from peft import LoraConfig, get_peft_model

    defaults: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice about unusual settings, which are what is tested
        model = get_peft_model(tiny_llama(), LoraConfig(**(defaults | settings)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def save_adapter(model: Any, directory: Path) -> Path:
    """Write the two files of PEFT's layout (and its README); returns `directory`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT cannot look up the base's name without a network
        model.save_pretrained(directory)
    return directory


def read_adapter(directory: Path) -> Any:
    """What PEFT makes of the files, on the tiny Llama."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `peft_model`
        return PeftModel.from_pretrained(tiny_llama(), directory).eval()
