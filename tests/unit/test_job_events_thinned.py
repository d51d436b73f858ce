"""Jobs that tell more than is kept: what is said once stays, curves keep their whole range, cursors stay right."""

from __future__ import annotations

from itertools import pairwise

import pytest
from finetuned_service.jobs.events import Checkpoint, EvaluationFinished, Notice, Progress, StateChanged
from finetuned_service.jobs.queue import Ending, JobQueue
from finetuned_service.jobs.states import JobState
from finetuned_service.jobs.store import JobStore
from finetuned_service.jobs.thinning import Told, thinned
from finetuned_service.storage.pages import PageRequest
from finetuned_service.vocabulary import Metric
from tiny_jobs import NO_REQUEST, TENANT, train_job
from tiny_limits import stored_limits

MOST = 200
STEPS = 6000
LOSS = (Metric(name="loss", value=1.0, higher_is_better=False),)


@pytest.fixture
def store(database, tmp_path):
    return JobStore(database, stored_limits(tmp_path))


@pytest.fixture
def job(store):
    return store.create(train_job(), NO_REQUEST)


@pytest.fixture
def told(database, store, job):
    """All that a long job has told: a warning and a baseline at its start, evaluations now and then."""
    queue = JobQueue(database, max_events=MOST)
    _, lease = queue.claim("worker", 60.0)

    def tell(*bodies):
        queue.record(lease, lambda job: job, bodies)
        assert len(store.events(TENANT, job.id, 0, 10 * MOST)) <= MOST

    tell(Notice(severity="WARNING", text="early"), Progress(phase="preparing"))
    tell(Progress(phase="baseline"), EvaluationFinished(subject="baseline", metrics=LOSS))
    for step in range(10, STEPS + 1, 10):
        tell(*(Progress(phase="training", step=step - 9 + i, total_steps=STEPS) for i in range(10)))
        if step % 500 == 0:
            tell(EvaluationFinished(subject="adapter", step=step, metrics=LOSS), Checkpoint(step=step))
    queue.release(lease, Ending(JobState.SUCCEEDED))
    return store.events(TENANT, job.id, 0, 10 * MOST)


def steps_of(events):
    return [e.body.step for e in events if isinstance(e.body, Progress) and e.body.phase == "training"]


def test_what_is_said_once_stays(told):
    assert [e.body.text for e in told if isinstance(e.body, Notice)] == ["early"]
    assert [e.body.state for e in told if isinstance(e.body, StateChanged)] == [
        "QUEUED",
        "RUNNING",
        "SUCCEEDED",
    ]
    evaluations = [(e.body.subject, e.body.step) for e in told if isinstance(e.body, EvaluationFinished)]
    every = list(range(500, STEPS + 1, 500))
    assert evaluations == [("baseline", 0), *(("adapter", step) for step in every)]
    assert [e.body.step for e in told if isinstance(e.body, Checkpoint)] == every
    phases = [e.body.phase for e in told if isinstance(e.body, Progress)]
    assert phases[:3] == ["preparing", "baseline", "training"]


def test_the_curve_keeps_its_whole_range_and_is_equally_fine_all_along(told):
    steps = steps_of(told)
    assert (steps[0], steps[-1]) == (1, STEPS)
    assert len(steps) > MOST / 4
    # Half of those kept are spread over the older steps, in spans that are powers of two: twice as coarse at most, and
    # between the first of two spans lie two.
    assert max(b - a for a, b in pairwise(steps)) <= 4 * STEPS / (MOST / 2)
    assert steps[-40:] == list(range(STEPS - 39, STEPS + 1)), "of the newest all"


def test_cursors_and_pages_go_over_the_gaps(store, job, told):
    numbers = [event.number for event in told]
    assert numbers != list(range(1, len(numbers) + 1))
    assert store.last_event(TENANT, job.id)[0] == numbers[-1]
    for after in (1, numbers[10], numbers[10] + 1, numbers[-2], numbers[-1]):
        assert [e.number for e in store.events(TENANT, job.id, after, 10 * MOST)] == [
            n for n in numbers if n > after
        ]
    seen, token = [], ""
    while not seen or token:
        page = store.event_page(TENANT, job.id, PageRequest.parse(7, token))
        seen += [event.number for event in page.items]
        token = page.next_token
    assert seen == numbers


def test_evaluations_are_thinned_only_where_progress_is_not_enough():
    events = [
        Told(n, "evaluation" if n % 2 else "progress", "adapter" if n % 2 else "training")
        for n in range(1, 101)
    ]
    few = thinned(events, 40)
    assert len(few) >= 40
    assert all(n % 2 == 0 for n in few)
    many = thinned(events, 60)
    assert len(many) >= 60
    assert 1 not in many
    assert {n % 2 for n in many} == {0, 1}
    assert thinned(events, 100) == []
    assert thinned([Told(n, "notice") for n in range(9)], 1) == []


def test_each_phase_keeps_its_beginning():
    """An evaluation is of the curve if training was told before it."""
    phases = ["preparing", "training", "training", "preparing", "training", "training"]
    events = [Told(n, "progress", phase) for n, phase in enumerate(phases, start=64)]
    assert thinned(events, 2) == [66, 69]
