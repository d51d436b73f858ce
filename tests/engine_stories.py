"""Random stories for an engine: requests on a mix of adapters that arrive, share beginnings and are left, while
adapters are loaded, unloaded, pinned, and an alias moves from one version to the next.

A story is a list of plain values, so that a failing one can be read; `tell` plays it to an engine step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from finetuned_service.engine.messages import (
    Answer,
    Cancel,
    Failed,
    FinishReason,
    Residency,
    Sampling,
    SetResidency,
    Started,
    Submit,
    TokenLogprobs,
    Tokens,
)
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.errors import FinetunedError, ResourceExhausted, from_wire
from hypothesis import strategies as st
from tiny_models import TinyAdapter

MOST_STEPS = 5_000
"""After the last event: many times what 30 requests one after the other take."""
PINNABLE = 0
"""The adapter that stories pin: a small one, so that what is left has room for any other."""


@dataclass(frozen=True)
class Ask:
    """A request arrives. `model` is an adapter's index, None for the base, "live" for what the alias names."""

    model: int | str | None
    prompt: int
    new_tokens: int
    tenant: str = "acme"


@dataclass(frozen=True)
class Leave:
    """Whoever asked so many requests ago goes away, if the reply is not complete."""

    back: int


@dataclass(frozen=True)
class MoveAlias:
    """A new version goes live; requests on their way stay with theirs."""

    adapter: int


@dataclass(frozen=True)
class Move:
    """LoadAdapter or UnloadAdapter."""

    adapter: int
    residency: Residency
    pinned: bool = False


@dataclass(frozen=True)
class Steps:
    """The engine computes for a while before anything else happens."""

    count: int


Event = Ask | Leave | MoveAlias | Move | Steps


def stories(adapters: int, prompts: int, most_tokens: int) -> st.SearchStrategy[list[Event]]:
    """Of up to 30 events.

    Args:
        adapters: how many there are.
        prompts: how many there are.
        most_tokens: of a reply.
    """
    adapter = st.integers(0, adapters - 1)
    models = st.one_of(adapter, adapter, st.none(), st.just("live"))
    ask = st.builds(
        Ask,
        models,
        st.integers(0, prompts - 1),
        st.integers(1, most_tokens),
        st.sampled_from(["acme", "globex"]),
    )
    others = st.one_of(
        st.builds(Leave, st.integers(1, 4)),
        st.builds(MoveAlias, adapter),
        st.builds(Move, adapter, st.sampled_from(Residency)),
        st.just(Move(PINNABLE, Residency.DEVICE, pinned=True)),
        st.just(Move(PINNABLE, Residency.STORED)),
        st.builds(Steps, st.integers(1, 6)),
    )
    return st.lists(st.one_of(ask, ask, others), min_size=4, max_size=30)


@dataclass
class Told:
    """One request of a story and what became of it."""

    ask: Ask
    adapter: int | None
    """The version that it means, fixed as it arrives."""
    submit: Submit
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason | None = None
    error: FinetunedError | None = None
    left: bool = False

    @property
    def ended(self) -> bool:
        return self.left or self.finish is not None or self.error is not None


@dataclass
class Telling:
    """A story in progress."""

    engine: OfflineEngine
    adapters: Sequence[TinyAdapter]
    prompts: Sequence[tuple[int, ...]]
    logprobs: int
    told: list[Told] = field(default_factory=list)
    live: int = 0
    calls: set[int] = field(default_factory=set)

    def happen(self, number: int, event: Event) -> None:
        match event:
            case Ask():
                adapter = self.live if event.model == "live" else event.model
                handle = None if adapter is None else self.adapters[adapter].handle
                sampling = Sampling(event.new_tokens, ignore_eos=True, logprobs=self.logprobs)
                submit = Submit(number, self.prompts[event.prompt], handle, sampling, event.tenant)
                self.told.append(Told(event, adapter, submit))
                self.engine.deliver(submit)
            case Leave(back=back):
                if back <= len(self.told) and not self.told[-back].ended:
                    self.told[-back].left = True
                    self.engine.deliver(Cancel(self.told[-back].submit.request_id))
            case MoveAlias(adapter=adapter):
                self.live = adapter
            case Move():
                self.calls.add(number)
                handle = self.adapters[event.adapter].handle
                self.engine.deliver(SetResidency(number, handle, event.residency, pinned=event.pinned))
            case Steps(count=count):
                for _ in range(count):
                    self.step()

    @property
    def busy(self) -> bool:
        return bool(self.calls) or not all(one.ended for one in self.told)

    def step(self) -> None:
        """One step, unless nothing is to be done: the engine would wait for the next command."""
        if not self.busy:
            return
        by_id = {one.submit.request_id: one for one in self.told}
        for event in self.engine.step():
            match event:
                case Tokens() | Failed() if by_id[event.request_id].left:
                    raise AssertionError("an event of a request that was cancelled before this step")
                case Tokens():
                    by_id[event.request_id].token_ids.extend(event.token_ids)
                    by_id[event.request_id].logprobs.extend(event.logprobs)
                    by_id[event.request_id].finish = event.finish
                case Failed():
                    by_id[event.request_id].error = from_wire(event.error)
                case Answer():
                    # No room beside what is running is a fair answer to LoadAdapter; nothing else is.
                    assert event.error is None or isinstance(from_wire(event.error), ResourceExhausted)
                    self.calls.remove(event.call_id)
                case Started():
                    pass


def tell(
    engine: OfflineEngine,
    story: Sequence[Event],
    adapters: Sequence[TinyAdapter],
    prompts: Sequence[tuple[int, ...]],
    logprobs: int = 0,
) -> list[Told]:
    """Play the story to its end; afterwards the engine holds nothing for anybody."""
    telling = Telling(engine, adapters, prompts, logprobs)
    for number, event in enumerate(story):
        telling.happen(number, event)
    for _ in range(MOST_STEPS):
        telling.step()
    assert not telling.busy, "somebody waits for ever"
    snapshot = engine.inspect()
    assert (snapshot.running_sequences, snapshot.waiting_sequences, snapshot.kv_tokens_used) == (0, 0, 0)
    assert all(adapter.running_sequences == 0 for adapter in snapshot.adapters)
    return telling.told
