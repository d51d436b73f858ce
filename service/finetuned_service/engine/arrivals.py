"""Requests on their way to the scheduler: whose grammar is being made, or that wait for a shared prompt.

Of several samples of one prompt the first computes it and the others wait until it has, since keys and values
can be copied only once they are there. Pure logic, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

from finetuned_service.engine.sequence import Sequence


@final
class Arrivals:
    """Owns sequences before they are enqueued. Everything it returns is to be enqueued by the caller."""

    def __init__(
        self,
        begin_grammar: Callable[[int, str], None],
        find_enqueued: Callable[[int], Sequence | None],
        *,
        shares_prefixes: bool,
    ) -> None:
        """Args:
        begin_grammar: make a grammar ready for a request; `grammar_ready` follows.
        find_enqueued: a sequence that waits or runs in the scheduler.
        shares_prefixes: keys and values of prompts can be copied; without it nobody waits for a leader.
        """
        self._begin_grammar = begin_grammar
        self._find_enqueued = find_enqueued
        self._shares_prefixes = shares_prefixes
        self._unready: dict[int, Sequence] = {}
        """Their grammars are being made."""
        self._followers: dict[int, list[Sequence]] = {}
        """By the leader whose prompt they wait for."""

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._unready.values()
        for followers in self._followers.values():
            yield from followers

    def add(self, sequence: Sequence) -> list[Sequence]:
        """A request has come."""
        grammar = sequence.request.sampling.grammar
        if grammar:
            self._unready[sequence.request_id] = sequence
            self._begin_grammar(sequence.request_id, grammar)
            return []
        return self._follow(sequence)

    def find(self, request_id: int) -> Sequence | None:
        return next((sequence for sequence in self if sequence.request_id == request_id), None)

    def grammar_ready(self, request_id: int) -> list[Sequence]:
        """Its grammar is there; the request may be gone meanwhile."""
        sequence = self._unready.pop(request_id, None)
        return [] if sequence is None else self._follow(sequence)

    def prompt_computed(self, leader: Sequence) -> list[Sequence]:
        """The sequence has its first token."""
        return self._followers.pop(leader.request_id, [])

    def left(self, sequence: Sequence) -> list[Sequence]:
        """The sequence ended, here or in the scheduler; of those that waited for it one goes ahead."""
        self._unready.pop(sequence.request_id, None)
        for followers in self._followers.values():
            if sequence in followers:
                followers.remove(sequence)
        followers = self._followers.pop(sequence.request_id, [])
        if len(followers) > 1:
            self._followers[followers[0].request_id] = followers[1:]
        return followers[:1]

    def _follow(self, sequence: Sequence) -> list[Sequence]:
        leader = sequence.request.leader
        if leader is None or not self._shares_prefixes or not self._is_before_its_first_token(leader):
            return [sequence]
        self._followers.setdefault(leader, []).append(sequence)
        return []

    def _is_before_its_first_token(self, request_id: int) -> bool:
        if request_id in self._unready:
            return True
        enqueued = self._find_enqueued(request_id)
        return enqueued is not None and enqueued.first_token_seconds is None
