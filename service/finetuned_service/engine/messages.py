"""What the RPC process and the engine process say to each other: plain frozen values, no torch.

Both directions travel in batches: one pipe message carries a tuple of commands, or all events of
one engine step (a message costs more than a token does).

    commands  RPC → engine   Submit, Cancel, SetResidency, Inspect, LeaveTime, Shutdown
    events    engine → RPC   Ready or StartFailed, then Started, Tokens, Encoded, Failed, Answer
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from finetuned_service.bases.lender import Lender
from finetuned_service.bases.shared_tensor import SharedTensor
from finetuned_service.vocabulary import Pooling


class Residency(StrEnum):
    """Where an adapter's weights are on this replica."""

    STORED = "STORED"
    HOST = "HOST"
    DEVICE = "DEVICE"


class FinishReason(StrEnum):
    """Why the engine ended a sequence."""

    END = "END"
    """The base's end-of-sequence token, or the grammar allows nothing more."""
    STOP = "STOP"
    """A stop token of the request. (Stop strings are found by the RPC process, which cancels.)"""
    LENGTH = "LENGTH"
    """max_new_tokens or the end of the context."""


@dataclass(frozen=True, slots=True)
class AdapterHandle:
    """One adapter version as the engine needs it."""

    digest: str
    """Content digest; the engine's only key for weights and KV."""
    directory: str
    """Where adapter_config.json and adapter_model.safetensors lie; immutable."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Validated by the RPC process."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy (the first of equal maxima)."""
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    seed: int = 0
    """With the same seed and the same batch-independent logits the same tokens come out."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int = 0
    """How many of the most likely tokens to tell per position, 0 tells none."""
    min_new_tokens: int = 0
    """Before, neither an end token nor a stop token can be chosen."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens of prompt and reply and multiplies negative ones."""
    presence_penalty: float = 0.0
    """Taken from the logits of the reply's tokens."""
    frequency_penalty: float = 0.0
    """Taken from the logits of the reply's tokens as often as they came."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), each id once."""
    grammar: str = ""
    """What the reply must be, as `text/grammar.py` writes it; empty is anything."""
    delta_tokens: int = 1
    """How many tokens an event waits for; the first comes at once, the last has what is left."""


@dataclass(frozen=True, slots=True)
class Encode:
    """What to tell of an input that is computed once, in one step, instead of being continued."""

    pooling: Pooling | None
    """How the vectors of its tokens become one; None tells of every token."""
    second_start: int = 0
    """Where the second text of a pair begins, for bases that tell the two apart; 0 for a single text."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image as the base takes it."""

    data: bytes
    """float32, little endian."""
    shape: tuple[int, int, int]
    """Channels, rows, columns."""


@dataclass(frozen=True, slots=True)
class Submit:
    """A sequence to compute. `request_id` is unique for the life of the engine process."""

    request_id: int
    prompt_token_ids: tuple[int, ...]
    adapter: AdapterHandle | None
    sampling: Sampling
    tenant: str = ""
    """Prompts of different tenants share no keys and values, nor the time that sharing saves. Service is
    shared fairly between tenants."""
    encode: Encode | None = None
    """For bases that encode; `sampling` then says nothing."""
    pixels: Pixels | None = None
    """For vision bases, whose prompt is one token that says nothing."""
    deadline_seconds: float | None = None
    """When the answer is of no use any more, by `time.monotonic`, which is one clock for all processes of a
    machine."""
    leader: int | None = None
    """The request with the same prompt, submitted before, whose keys and values this one waits for."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a sequence; its slot and KV are free before the next step. Unknown ids are ignored."""

    request_id: int


@dataclass(frozen=True, slots=True)
class SetResidency:
    """Bring an adapter to a tier. STORED frees it once no running sequence uses it."""

    call_id: int
    adapter: AdapterHandle
    residency: Residency
    pinned: bool = False
    kept: Residency | None = None
    """Where it is pinned, if not at `residency`: from there on upwards it may be evicted."""
    lowers: bool = False
    """Only down: an adapter that is not in memory stays out of it. To DEVICE it only says anew who pins it."""

    def after(self, later: SetResidency) -> SetResidency:
        """What is still to be done of this call when a later one for the same adapter came before its end: that one
        knows who pins it now. Of one that it frees, STORED, nothing is left to be done, whatever comes after.
        """
        if self.residency is Residency.STORED:
            return self
        if later.residency is Residency.STORED:
            return replace(self, residency=Residency.STORED, pinned=False, kept=None)
        return replace(self, pinned=later.pinned, kept=later.kept or later.residency)


@dataclass(frozen=True, slots=True)
class Inspect:
    """Ask for a Snapshot; `verify_base` recomputes the digest of the weights in memory (slow)."""

    call_id: int
    verify_base: bool = False


@dataclass(frozen=True, slots=True)
class LeaveTime:
    """Pause between steps for `share` of the time, 0 to below 1: jobs of this machine compute then."""

    share: float


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Finish running sequences for at most `grace_seconds`, fail the rest, exit."""

    grace_seconds: float


Command = Submit | Cancel | SetResidency | Inspect | LeaveTime | Shutdown


@dataclass(frozen=True, slots=True)
class Ready:
    """The base is in memory and requests may come."""

    base_digest: str
    context_tokens: int
    device: str
    path: str = ""
    """How the engine computes, for people."""
    shared: tuple[SharedTensor, ...] = ()
    """The base on a GPU, for job processes to open."""
    lender: Lender | None = None
    """The engine's process, where `shared` says anything."""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The engine cannot serve its base (`FinetunedError.to_wire`); the process ends."""

    error: dict[str, object]


@dataclass(frozen=True, slots=True)
class Started:
    """A sequence got its place in the batch."""

    request_id: int
    modules_changed: int
    """Modules of the base that the adapter changes for this sequence; 0 for the plain base."""
    queue_seconds: float
    load_seconds: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities at one position, at temperature 1, before top-k and top-p."""

    logprob: float
    top_token_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of a sequence; with `finish` set, its last event. A stop or end token is not included."""

    request_id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: FinishReason | None = None
    cached_tokens: int = 0
    """Set with the first token: how many of the prompt's came from the prefix cache."""
    prefill_seconds: float = 0.0
    """Set with the first token: from the place in the batch to it."""
    decode_seconds: float = 0.0
    """Set with `finish`: from the first token to the last."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an input was encoded to; its last event."""

    request_id: int
    data: bytes
    """float32, little endian: one row, or one for each token."""
    width: int
    """Numbers in a row."""
    seconds: float
    """From the place in the batch on."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A sequence ended with an error (`FinetunedError.to_wire`); its last event."""

    request_id: int
    error: dict[str, object]


@dataclass(frozen=True, slots=True)
class AdapterResidency:
    """One adapter that is not merely STORED."""

    digest: str
    residency: Residency
    pinned: bool
    running_sequences: int
    resident_bytes: int
    """Of all its copies."""
    modules: int
    device_bytes: int = 0
    """What of `resident_bytes` lies in the serving layout."""


@dataclass(frozen=True, slots=True)
class HistogramCounts:
    """How often values of each size came."""

    bounds: tuple[float, ...]
    """Rising; each closes its bucket from above."""
    counts: tuple[int, ...]
    """A bucket each, not cumulative, and last what exceeds all bounds."""
    total: float
    """Sum of the values."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the engine holds and does at one moment."""

    running_sequences: int
    waiting_sequences: int
    kv_tokens_used: int
    kv_tokens_capacity: int
    base_bytes: int
    kv_bytes: int
    adapters: tuple[AdapterResidency, ...] = ()
    base_digest: str = ""
    """Recomputed from memory if Inspect.verify_base, else empty."""
    counters: dict[str, float] = field(default_factory=dict[str, float])
    """Monotonic since start: steps, prefill_tokens, prefix_tokens_reused, decode_tokens, step_seconds, step_failures, adapter_loads,
    adapter_evictions, host_evictions, load_seconds, load_failures, adapter_drains, and deadlines_estimate,
    deadlines_queue and deadlines_running (sequences that ended for their deadline, by how far they came)."""
    histograms: dict[str, HistogramCounts] = field(default_factory=dict[str, HistogramCounts])
    """Monotonic since start: step_seconds, step_sequences, step_tokens, read_seconds (to HOST), fill_seconds
    (to DEVICE)."""
    waiting_adapters: tuple[str, ...] = ()
    """Digests of the adapters of waiting sequences, each once."""
    waiting_tenants: int = 0
    """Tenants with a sequence in the queue."""
    queue_age_seconds: float = 0.0
    """How long the sequence that waits longest has waited."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to SetResidency or Inspect: a snapshot, or an error (`FinetunedError.to_wire`)."""

    call_id: int
    snapshot: Snapshot | None
    error: dict[str, object] | None = None


Event = Ready | StartFailed | Started | Tokens | Encoded | Failed | Answer
