"""Replies seen before: the same weights must give the same reply to the same request, whoever runs beside it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from finetuned import Reply, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Question:
    """What decides a reply beside the weights."""

    prompt: int
    """Its place among the prompts of this soak."""
    max_tokens: int
    temperature: float
    seed: int
    logprobs: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The first reply to a question."""

    text: str
    token_ids: tuple[int, ...]
    """Empty if it came with a batch, which tells no ids."""
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(slots=True)
class Known:
    """First replies by (digest of the adapter, or "" for the base; question), and what differed from them."""

    compared: int = 0
    differences: list[str] = field(default_factory=list[str])
    _answers: dict[tuple[str, Question], Answer] = field(default_factory=dict[tuple[str, Question], Answer])

    @property
    def pairs(self) -> int:
        return len(self._answers)

    @property
    def replies_per_question(self) -> float:
        """How many different texts a question has got, on average; 1 would mean that adapters change nothing."""
        texts: dict[Question, set[str]] = defaultdict(set)
        for (_, question), answer in self._answers.items():
            texts[question].add(answer.text)
        return sum(map(len, texts.values())) / max(1, len(texts))

    def check(self, question: Question, reply: Reply) -> None:
        """Compare a whole reply with the first one of its kind; a first one is kept."""
        digest = reply.served_by.adapter_digest
        found = Answer(reply.text, reply.token_ids, reply.logprobs)
        first = self._answers.get((digest, question))
        if first is None or (found.token_ids and not first.token_ids and found.text == first.text):
            self._answers[digest, question] = found
        if first is None:
            return
        self.compared += 1
        comparable = found.token_ids and first.token_ids
        if found != first if comparable else found.text != first.text:
            self._differs(digest, question, f"{found} after {first}")

    def check_beginning(self, question: Question, digest: str, token_ids: tuple[int, ...]) -> None:
        """Compare what came of a reply that was left before its end."""
        first = self._answers.get((digest, question))
        if first is None or not first.token_ids:
            return
        self.compared += 1
        if first.token_ids[: len(token_ids)] != token_ids:
            self._differs(digest, question, f"{token_ids} after {first.token_ids}")

    def _differs(self, digest: str, question: Question, what: str) -> None:
        self.differences.append(f"{digest or 'base'}, {question}: {what}")
