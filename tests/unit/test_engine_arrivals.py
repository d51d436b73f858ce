"""Which requests wait before the queue: for their grammar, and for the prompt of their first sample."""

from __future__ import annotations

from finetuned_service.engine.arrivals import Arrivals
from finetuned_service.engine.messages import Sampling, Submit
from finetuned_service.engine.sequence import Sequence


class Place:
    """Arrivals with what they need, and the ids of what they gave out."""

    def __init__(self, *, shares_prefixes=True):
        self.grammars = []
        self.enqueued = {}
        self.arrivals = Arrivals(
            lambda request_id, grammar: self.grammars.append((request_id, grammar)),
            self.enqueued.get,
            shares_prefixes=shares_prefixes,
        )

    def add(self, request_id, leader=None, grammar=""):
        sampling = Sampling(8, grammar=grammar)
        sequence = Sequence(Submit(request_id, (1, 2), None, sampling, leader=leader), 10, 0.0, [1, 2])
        return self.give_out(self.arrivals.add(sequence))

    def give_out(self, sequences):
        self.enqueued |= {sequence.request_id: sequence for sequence in sequences}
        return [sequence.request_id for sequence in sequences]

    def first_token(self, request_id):
        sequence = self.enqueued[request_id]
        sequence.first_token_seconds = 1.0
        return self.give_out(self.arrivals.prompt_computed(sequence))

    def leave(self, request_id):
        sequence = self.enqueued.pop(request_id, None) or self.arrivals.find(request_id)
        return self.give_out(self.arrivals.left(sequence))

    @property
    def waiting(self):
        return sorted(sequence.request_id for sequence in self.arrivals)


def test_a_plain_request_goes_on_at_once():
    place = Place()
    assert place.add(1) == [1]
    assert place.waiting == []


def test_samples_wait_until_the_first_has_computed_their_prompt():
    place = Place()
    assert [place.add(1), place.add(2, 1), place.add(3, 1)] == [[1], [], []]
    assert place.waiting == [2, 3]
    assert place.first_token(1) == [2, 3]
    assert place.waiting == []
    assert place.add(4, 1) == [4]


def test_where_nothing_can_be_shared_nobody_waits():
    place = Place(shares_prefixes=False)
    assert [place.add(1), place.add(2, 1)] == [[1], [2]]


def test_when_the_first_is_gone_the_next_goes_ahead():
    place = Place()
    place.add(1)
    for follower in (2, 3, 4):
        place.add(follower, 1)
    assert place.leave(1) == [2]
    assert place.waiting == [3, 4]
    assert place.leave(3) == []
    assert place.first_token(2) == [4]
    assert place.add(5, 1) == [5]


def test_a_request_with_a_grammar_waits_for_it():
    place = Place()
    assert place.add(1, grammar="g") == []
    assert place.grammars == [(1, "g")]
    assert [place.add(2, 1, grammar="g"), place.waiting] == [[], [1, 2]]
    assert place.give_out(place.arrivals.grammar_ready(1)) == [1]
    assert place.give_out(place.arrivals.grammar_ready(2)) == []
    assert place.waiting == [2]
    assert place.first_token(1) == [2]


def test_whoever_left_is_not_given_out():
    place = Place()
    place.add(1, grammar="g")
    assert place.leave(1) == []
    assert place.give_out(place.arrivals.grammar_ready(1)) == []
    place.add(2)
    place.add(3, 2)
    place.leave(3)
    assert place.first_token(2) == []
