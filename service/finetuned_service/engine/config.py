"""What the engine process is started with; torch-free, sent to it as its first message."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024
READY_KV_TOKENS = 3072
"""A server's `ready_kv_tokens`: 32 sequences of 96 tokens, or three prompts of 1,024."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and limits of one engine. Everything it holds is bounded by what stands here."""

    base_directory: str
    """config.json and model.safetensors (and base.json) of the one base it holds."""
    threads: int = 1
    """Compute threads."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:N`, or `auto`: a GPU where torch finds one."""
    compute: str = "auto"
    """`native`, `plain`, or `auto`: native where this machine and this base allow it."""
    cache_directory: str = ""
    """Where the compiled native path is kept; empty is `finetuned` in the user's cache directory."""
    max_running_sequences: int = 32
    """Sequences in one batch."""
    max_queued_sequences: int = 256
    """Sequences that may wait for a place; kept by the client, which refuses more."""
    max_tenant_queue_share: float = 0.75
    """Of the places in batch and queue, how many one tenant may have while it is alone; see `queue_places.py`."""
    max_prefill_tokens: int = 0
    """Prompt tokens computed in one step beside the decoding sequences; 0 is what suits the device."""
    kv_capacity_tokens: int = 32_768
    """Tokens of all running sequences together."""
    kept_prefixes: int = 256
    """Ended sequences whose keys and values stay, while nobody needs their room, for prompts that begin alike."""
    ready_kv_tokens: int = 0
    """For whose keys and values memory is made ready before it is used, on a CPU: see `lazy_pages.PagesAhead`."""
    device_budget_bytes: int = 256 * MIB
    """Adapters in the serving layout."""
    host_budget_bytes: int = 256 * MIB
    """Adapters read, checked and converted, ready to be copied into the serving layout."""
    verify_base: bool = False
    """Compute the digest of the weights in memory at start and refuse to start if base.json has another."""
    log_format: str = "console"
    """`console` or `json`, as in the settings."""
    log_level: str = "info"
    """The least severe log lines shown."""
