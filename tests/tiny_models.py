"""Random small models and adapters for tests: made by transformers and PEFT, saved as they save them.

A tiny base has the shape of a real one (grouped query attention, tied embeddings, gated feed-forward)
and weights large enough that its logits differ clearly from row to row. An adapter has a B that is not
zero, so that it changes what the base says.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetuned_service.adapters.files import BaseGeometry, check_adapter
from finetuned_service.engine.messages import AdapterHandle
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VOCABULARY = 97
CONTEXT_TOKENS = 256


def save_tiny_base(
    directory: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tied: bool = True,
    layers: int = 2,
    eos_token_id: int | None = 2,
    **overrides: Any,
) -> Path:
    """A random Llama with grouped query attention as config.json and model.safetensors.

    Args:
        directory: made if it does not exist.
        seed: of the weights.
        dtype: of the weights.
        tied: whether lm_head is the embedding.
        layers: of the decoder.
        eos_token_id: None for a base that never ends by itself.
        overrides: further fields of LlamaConfig.
    """
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": tied,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": eos_token_id,
        "pad_token_id": 0,
        **overrides,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):  # transformers begins with zeros
                    parameter.normal_(0.0, 0.1)
        model.to(dtype)
    model.save_pretrained(directory)
    return directory


def load_plain(directory: Path, dtype: torch.dtype | None = None) -> Any:
    """The base as transformers itself loads it: the oracle."""
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype or "auto", attn_implementation="eager"
    ).eval()


@dataclass(frozen=True, slots=True)
class TinyAdapter:
    """A saved adapter and how the engine is told of it."""

    directory: Path
    digest: str

    @property
    def handle(self) -> AdapterHandle:
        return AdapterHandle(self.digest, str(self.directory))


def save_tiny_adapter(
    directory: Path,
    base_directory: Path,
    *,
    seed: int,
    rank: int = 4,
    alpha: float = 8.0,
    target_modules: Sequence[str] = ALL_PROJECTIONS,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    modules_to_save: Sequence[str] = (),
    spread: float = 0.3,
) -> TinyAdapter:
    """A random LoRA adapter for the base, saved by PEFT.

    Args:
        directory: made if it does not exist.
        base_directory: of the base.
        seed: of A and B.
        rank: of all modules that rank_pattern does not name.
        alpha: of all modules that alpha_pattern does not name.
        target_modules: last parts of the names of modules.
        rank_pattern: see PEFT.
        alpha_pattern: see PEFT.
        use_rslora: see PEFT.
        use_dora: see PEFT; magnitudes are off by up to a fifth.
        modules_to_save: see PEFT; off by a twentieth.
        spread: standard deviation of A and B.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(target_modules),
        rank_pattern=dict(rank_pattern or {}),
        alpha_pattern=dict(alpha_pattern or {}),
        use_rslora=use_rslora,
        use_dora=use_dora,
        modules_to_save=list(modules_to_save) or None,
        task_type="CAUSAL_LM",
    )
    with peft_warnings_allowed():
        model = get_peft_model(load_plain(base_directory), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(0.8 + 0.4 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.normal_(0.0, spread, generator=generator)
            elif "modules_to_save" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                # PEFT keeps the base's dtype there, and has its updates in float32.
                parameter.data = (parameter.float() + 0.05 * noise).to(parameter.dtype)
    return _saved(model, directory, base_directory)


def save_tiny_ia3(
    directory: Path,
    base_directory: Path,
    *,
    seed: int,
    target_modules: Sequence[str] = ("k_proj", "v_proj", "down_proj"),
    feedforward_modules: Sequence[str] = ("down_proj",),
    modules_to_save: Sequence[str] = (),
) -> TinyAdapter:
    """A random IA3 adapter for the base, saved by PEFT; its gains lie between 0.5 and 1.5."""
    config = IA3Config(
        target_modules=list(target_modules),
        feedforward_modules=list(feedforward_modules),
        modules_to_save=list(modules_to_save) or None,
        task_type="CAUSAL_LM",
    )
    with peft_warnings_allowed():
        model = get_peft_model(load_plain(base_directory), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            elif "modules_to_save" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = (parameter.float() + 0.05 * noise).to(parameter.dtype)
    return _saved(model, directory, base_directory)


def _saved(model: Any, directory: Path, base_directory: Path) -> TinyAdapter:
    model.save_pretrained(str(directory))
    (directory / "README.md").unlink(missing_ok=True)
    return checked_adapter(directory, base_directory)


def checked_adapter(directory: Path, base_directory: Path) -> TinyAdapter:
    """An adapter whose files are there, once they are found to fit the base."""
    facts = check_adapter(directory, BaseGeometry.of_files(base_directory), max_rank=1024)
    return TinyAdapter(directory, facts.digest)


def load_peft(base_directory: Path, adapter: TinyAdapter | None, dtype: torch.dtype | None = None) -> Any:
    """The base with the adapter as PEFT applies it, both in `dtype`: the oracle."""
    base = load_plain(base_directory, dtype)
    if adapter is None:
        return base
    with peft_warnings_allowed():
        model = PeftModel.from_pretrained(base, str(adapter.directory), autocast_adapter_dtype=False)
        return model.to(base.dtype).eval()


@contextmanager
def peft_warnings_allowed() -> Generator[None]:
    """PEFT 0.21 asks transformers 5 for a property that it is about to remove, and has advice about tied heads."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning
        )
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


@torch.inference_mode()
def oracle_tokens(model: Any, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Greedy tokens of transformers' own generate for one prompt, alone; it never ends early."""
    output = model.generate(
        input_ids=torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
    )
    return output[0, len(prompt) :].tolist()


@torch.inference_mode()
def oracle_logits(model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """Logits `[T, vocabulary]` of one row by a plain forward."""
    return model(input_ids=torch.tensor([list(token_ids)])).logits[0].float()


def random_prompt(seed: int, tokens: int) -> tuple[int, ...]:
    """Token ids of a tiny base, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCABULARY, (tokens,), generator=generator).tolist())
