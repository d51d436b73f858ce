"""A random small GPT-2 and LoRA adapters for it, saved by transformers and PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from finetuned_service.adapters.files import check_adapter
from finetuned_service.adapters.geometry import BaseGeometry
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import CONTEXT_TOKENS, VOCABULARY, TinyAdapter, peft_warnings_allowed
from transformers import GPT2Config, GPT2LMHeadModel

ALL_LINEAR = ("c_attn", "c_proj", "c_fc")
SIZES: dict[str, Any] = {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": CONTEXT_TOKENS}


def save_tiny_gpt2(
    directory: Path, *, vocab_size: int = VOCABULARY, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Path:
    """With biases that are not zero and norms that are not one, unlike transformers' own beginning."""
    settings: dict[str, Any] = {
        **SIZES,
        "vocab_size": vocab_size,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **overrides,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".bias") or ".ln_" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.to(dtype).save_pretrained(directory)
    return directory


def load_plain_gpt2(directory: Path) -> Any:
    """As transformers itself loads it: the oracle."""
    return GPT2LMHeadModel.from_pretrained(directory, dtype="auto", attn_implementation="eager").eval()


def save_gpt2_adapter(
    directory: Path,
    base: Path,
    *,
    seed: int,
    rank: int = 4,
    use_dora: bool = False,
    modules_to_save: Sequence[str] = (),
) -> TinyAdapter:
    """A random LoRA or DoRA adapter on every linear module that is not saved whole, saved by PEFT with fan_in_fan_out."""
    config = LoraConfig(
        r=rank,
        lora_alpha=8,
        target_modules=[name for name in ALL_LINEAR if name not in modules_to_save],
        modules_to_save=list(modules_to_save) or None,
        use_dora=use_dora,
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    with peft_warnings_allowed():
        model = get_peft_model(load_plain_gpt2(base), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(0.8 + 0.4 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
            elif "modules_to_save" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(directory))
    (directory / "README.md").unlink(missing_ok=True)
    geometry = BaseGeometry.of_files(base)
    return TinyAdapter(directory, check_adapter(directory, geometry, max_rank=64).digest)


def load_gpt2_peft(base: Path, directory: Path) -> Any:
    """The base with an adapter's files as PEFT applies them, without a warning: the oracle."""
    with warnings.catch_warnings(), peft_warnings_allowed():
        warnings.filterwarnings("error", message=".*fan_in_fan_out.*")
        plain = load_plain_gpt2(base)
        return PeftModel.from_pretrained(plain, str(directory), autocast_adapter_dtype=False).eval()
