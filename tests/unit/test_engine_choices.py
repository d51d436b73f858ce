"""The tokens of a step, chosen together: each row's are its own, and so are its failures."""

from __future__ import annotations

import weakref
from collections.abc import Sequence as Rows

import torch
from finetuned_service.engine.choices import Choices, ChosenToken, DrawFunction
from finetuned_service.engine.draws import draw_tokens
from finetuned_service.engine.messages import AdapterHandle, Sampling, Submit
from finetuned_service.engine.runner import StepLogits
from finetuned_service.engine.sampling import greedy_tokens
from finetuned_service.engine.sequence import Sequence
from finetuned_service.errors import AdapterIncompatible, InvalidField

CPU = torch.device("cpu")
VOCABULARY = 300
ENDS = frozenset({0, 2})


def sequence(number: int, sampling: Sampling, adapter: AdapterHandle | None = None) -> Sequence:
    return Sequence(Submit(number, (3, 4), adapter, sampling), 100, 0.0, [3, 4])


def step(sequences: list[Sequence], logits: torch.Tensor) -> StepLogits:
    return StepLogits(logits, tuple(sequences), greedy_tokens(logits))


def random_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def drawn(rows: Rows[torch.Tensor], samplings: Rows[Sampling], uniforms: Rows[float]) -> list[int]:
    return draw_tokens(torch.stack(list(rows)), samplings, uniforms)


def begun(sequences: list[Sequence], draw: DrawFunction = drawn) -> Choices:
    choices = Choices(ENDS, CPU, draw)
    for one in sequences:
        choices.begin(one, None)
    return choices


MIXED = [
    Sampling(8),
    Sampling(8, temperature=1.0, seed=1),
    Sampling(8, temperature=0.7, top_p=0.9, seed=2, logprobs=3),
    Sampling(8, logit_bias=((5, 100.0),), logprobs=3),
    Sampling(8, temperature=1.0, top_k=5, seed=1, logit_bias=((6, 100.0),)),
    Sampling(8, logprobs=1),
]


def test_each_row_chooses_as_if_it_were_alone() -> None:
    sequences = [sequence(number, sampling) for number, sampling in enumerate(MIXED)]
    together, alone = begun(sequences), begun(sequences)
    for seed in range(10):
        logits = random_logits(len(MIXED), seed)
        chosen = together.choose(step(sequences, logits))
        assert chosen == [
            alone.choose(step([one], logits[row : row + 1]))[0] for row, one in enumerate(sequences)
        ]
        tokens = [token.token_id for token in chosen if isinstance(token, ChosenToken)]
        assert tokens[0] == int(logits[0].argmax())
        assert (tokens[3], tokens[4]) == (5, 6)
        counts = [len(token.logprobs) for token in chosen if isinstance(token, ChosenToken)]
        assert counts == [0, 0, 1, 1, 0, 1]


def test_what_is_not_finite_fails_alone() -> None:
    adapter = AdapterHandle("sha256:" + "0" * 64, "somewhere")
    sequences = [
        sequence(0, Sampling(8, temperature=1.0, seed=1), adapter),
        sequence(1, Sampling(8, temperature=1.0, seed=1, logprobs=2)),
    ]
    logits = random_logits(2)
    logits[0, 17] = float("nan")
    failed, drawn = begun(sequences).choose(step(sequences, logits))
    assert isinstance(failed, AdapterIncompatible)
    assert isinstance(drawn, ChosenToken)
    assert len(drawn.logprobs) == 1


def test_a_row_that_cannot_be_adjusted_fails_alone() -> None:
    class Broken:
        complete = drawn = True

        def scores(self, _logits: torch.Tensor) -> torch.Tensor:
            raise InvalidField.one("generate.constraint", "is too complex")

    sequences = [sequence(number, Sampling(8, temperature=1.0, seed=number)) for number in range(3)]
    choices, logits = begun(sequences), random_logits(3)
    expected = begun(sequences).choose(step(sequences, logits))
    choices._special[1] = Broken()  # type: ignore[assignment]  # all that is asked of it
    first, failed, last = choices.choose(step(sequences, logits))
    assert isinstance(failed, InvalidField)
    assert [first, last] == [expected[0], expected[2]]


def test_a_row_that_cannot_be_drawn_fails_alone() -> None:
    sequences = [sequence(number, Sampling(8, temperature=1.0, seed=number)) for number in range(3)]
    logits = random_logits(3)
    expected = begun(sequences).choose(step(sequences, logits))

    def draw(rows: Rows[torch.Tensor], samplings: Rows[Sampling], uniforms: Rows[float]) -> list[int]:
        if any(sampling.seed == 1 for sampling in samplings):
            raise RuntimeError("no")
        return drawn(rows, samplings, uniforms)

    first, failed, last = begun(sequences, draw).choose(step(sequences, logits))
    assert isinstance(failed, RuntimeError)
    assert [first, last] == [expected[0], expected[2]]


def test_what_rows_held_that_failed_together_is_free_when_each_is_tried_alone() -> None:
    sequences = [sequence(number, Sampling(8, temperature=1.0, seed=number)) for number in range(3)]
    held: list[weakref.ref[torch.Tensor]] = []

    def short_of_memory(
        rows: Rows[torch.Tensor], samplings: Rows[Sampling], uniforms: Rows[float]
    ) -> list[int]:
        if len(rows) > 1:
            sorted_logits = torch.stack(list(rows)).sort().values
            held.append(weakref.ref(sorted_logits))
            raise torch.OutOfMemoryError
        assert [reference() for reference in held] == [None]
        return drawn(rows, samplings, uniforms)

    logits = random_logits(3)
    chosen = begun(sequences, short_of_memory).choose(step(sequences, logits))
    assert chosen == begun(sequences).choose(step(sequences, logits))
    assert held
