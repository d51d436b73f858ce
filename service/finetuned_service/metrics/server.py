"""What the server counts where it happens: calls, and sequences as their callers see them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetuned_service.tenancy.limits import Limit

_CALL_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
_FIRST_TOKEN_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 20, 60)
_INTER_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2)
_WAIT_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class ServerMetrics:
    """`model` is "adapter" or "base"."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rpcs = Counter(
            "finetuned_rpcs", "Finished RPCs by method and status.", ["method", "code"], registry=registry
        )
        self.rpcs_running = Gauge(
            "finetuned_rpcs_running", "RPCs in progress by method.", ["method"], registry=registry
        )
        self.rpc_seconds = Histogram(
            "finetuned_rpc_seconds",
            "Time from the call to its last message.",
            ["method"],
            buckets=_CALL_SECONDS,
            registry=registry,
        )
        self.refusals = Counter(
            "finetuned_refusals",
            "RPCs that ended with an error, by its reason in error_reason.proto.",
            ["reason"],
            registry=registry,
        )
        self.quota_refusals = Counter(
            "finetuned_quota_refusals",
            "RPCs refused because of a limit of their tenant, by the limit.",
            ["limit"],
            registry=registry,
        )
        for limit in Limit:
            self.quota_refusals.labels(limit)  # at 0 from the start: a rate needs a first value
        self.sequences = Counter(
            "finetuned_sequences",
            "Sequences by the kind of model and by their end: end, stop, length, or left (by the caller), "
            "failed.",
            ["model", "finish"],
            registry=registry,
        )
        self.tokens = Counter(
            "finetuned_tokens",
            "Tokens of prompts that got a place in the batch, and of completions as they came.",
            ["kind", "model"],
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "finetuned_time_to_first_token_seconds",
            "Time from the arrival of the call to the first token of each of its sequences.",
            ["model"],
            buckets=_FIRST_TOKEN_SECONDS,
            registry=registry,
        )
        self.inter_token_seconds = Histogram(
            "finetuned_inter_token_seconds",
            "Time between new tokens of one sequence.",
            ["model"],
            buckets=_INTER_TOKEN_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "finetuned_queue_seconds",
            "Time that a sequence waited for a place in the batch, without the time of loading its adapter.",
            ["model"],
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self.adapter_wait_seconds = Histogram(
            "finetuned_adapter_wait_seconds",
            "Time that a sequence waited for its adapter to be loaded; 0 where it was there.",
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self.prefill_seconds = Histogram(
            "finetuned_prefill_seconds",
            "Time from the place in the batch to the first token.",
            ["model"],
            buckets=_FIRST_TOKEN_SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Histogram(
            "finetuned_sequence_prompt_tokens",
            "Tokens of the prompts of sequences that got a place in the batch.",
            buckets=_TOKENS,
            registry=registry,
        )
        self.completion_tokens = Histogram(
            "finetuned_sequence_completion_tokens",
            "Tokens of the completions of sequences, however they ended.",
            buckets=_TOKENS,
            registry=registry,
        )
