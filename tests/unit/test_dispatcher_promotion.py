"""`promote_if`: when the alias moves, and the sentence that says why or why not."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from finetuned_service.adapters.manifest import AdapterManifest
from finetuned_service.adapters.versions import AdapterVersion
from finetuned_service.jobs.promotion import Promotion, decide
from finetuned_service.jobs.queue import Ending
from finetuned_service.jobs.specs import PromoteIf
from finetuned_service.jobs.states import JobState
from finetuned_service.jobs.task import TaskLimits, TrainFinished, TrainTask
from finetuned_service.names import AdapterSelector
from finetuned_service.vocabulary import Method, Metric, Task
from tiny_files import write_adapter
from tiny_jobs import TENANT, train_job
from tiny_worker import Workplace

BASE, OTHER_BASE = "sha256:" + "b" * 64, "sha256:" + "c" * 64


def exact(value: float) -> Metric:
    return Metric(name="exact_match", value=value, higher_is_better=True)


def loss(value: float) -> Metric:
    return Metric(name="loss", value=value, higher_is_better=False)


def version(letter: str, base_digest: str = BASE) -> AdapterVersion:
    manifest = AdapterManifest(
        name="tenants/acme/adapters/redact/versions/1",
        digest=f"sha256:{letter * 64}",
        base_digest=base_digest,
        base_root_digest=base_digest,
        method=Method.LORA,
        task=Task.TEXT_GENERATION,
        parameters=1,
        modules=1,
        size_bytes=1,
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return AdapterVersion("acme", "redact", 1, manifest, Path("/data/adapters") / (letter * 64))


def decided(
    wanted: PromoteIf | None,
    new: list[Metric],
    old: list[Metric] | None = None,
    *,
    measured: AdapterVersion | None = None,
    current: AdapterVersion | None = None,
) -> Promotion:
    task = TrainTask(
        job_name="tenants/acme/jobs/train-1",
        attempt=1,
        spec=train_job(promote_if=wanted).spec,
        base_directory="/data/bases/tiny",
        base_digest=BASE,
        train_path="",
        train_digest="",
        incumbent_directory=str(measured.directory) if measured else "",
        work_directory="",
        output_directory="",
        limits=TaskLimits(threads=1, memory_budget_bytes=1),
    )
    finished = TrainFinished(metrics=tuple(new), incumbent_metrics=tuple(old or ()))
    return decide(wanted, task, finished, current)


ANY = PromoteIf(alias="prod")
AT_LEAST = PromoteIf(alias="prod", minimum=0.5)
AT_MOST = PromoteIf(alias="prod", metric="loss", minimum=0.5)
BETTER = PromoteIf(alias="prod", better_than_current=True)
BETTER_LOSS = PromoteIf(alias="prod", metric="loss", better_than_current=True)
BOTH = PromoteIf(alias="prod", minimum=0.5, better_than_current=True)
OLD = version("a")


@pytest.mark.parametrize(
    ("wanted", "new", "moves", "why"),
    [
        (None, [exact(1.0)], False, ""),
        (ANY, [exact(0.0)], True, "prod moved: exact_match 0"),
        (ANY, [exact(0.12345), loss(9.0)], True, "prod moved: exact_match 0.1235"),
        (ANY, [], False, "not moved: exact_match was not measured"),
        (ANY, [loss(0.1)], False, "not moved: exact_match was not measured"),
        (ANY, [exact(math.nan)], False, "not moved: exact_match is nan"),
        (AT_LEAST, [exact(math.nan)], False, "not moved: exact_match is nan"),
        (AT_LEAST, [exact(math.inf)], False, "not moved: exact_match is inf"),
        (AT_LEAST, [exact(0.5)], True, "prod moved: exact_match 0.5"),
        (AT_LEAST, [exact(0.49)], False, "not moved: exact_match 0.49 is below 0.5"),
        (AT_MOST, [loss(0.5)], True, "prod moved: loss 0.5"),
        (AT_MOST, [loss(0.51)], False, "not moved: loss 0.51 is above 0.5"),
        (AT_MOST, [exact(1.0)], False, "not moved: loss was not measured"),
        (BETTER, [exact(0.1)], True, "prod moved: exact_match 0.1"),
        (BOTH, [exact(0.1)], False, "not moved: exact_match 0.1 is below 0.5"),
    ],
)
def test_without_a_current_version(wanted, new, moves, why):
    assert decided(wanted, new) == Promotion(moves, why)


@pytest.mark.parametrize(
    ("wanted", "new", "old", "moves", "why"),
    [
        (ANY, exact(0.1), exact(0.9), True, "prod moved: exact_match 0.1, the version before has 0.9"),
        (ANY, exact(0.1), None, True, "prod moved: exact_match 0.1"),
        (BETTER, exact(0.8), exact(0.7), True, "prod moved: exact_match 0.8, the version before has 0.7"),
        (BETTER, exact(0.7), exact(0.7), False, "does not beat 0.7 of the current version"),
        (BETTER, exact(0.6), exact(0.7), False, "not moved: exact_match 0.6 does not beat 0.7"),
        (BETTER, exact(0.8), None, False, "not moved: exact_match of the current version was not measured"),
        (BETTER, exact(0.8), loss(0.1), False, "exact_match of the current version was not measured"),
        (BETTER, exact(0.0), exact(math.nan), True, "prod moved: exact_match 0"),
        (BETTER_LOSS, loss(0.6), loss(0.7), True, "prod moved: loss 0.6, the version before has 0.7"),
        (BETTER_LOSS, loss(0.7), loss(0.7), False, "not moved: loss 0.7 does not beat 0.7"),
        (BETTER_LOSS, loss(0.8), loss(0.7), False, "not moved: loss 0.8 does not beat 0.7"),
        (BOTH, exact(0.6), exact(0.5), True, "prod moved"),
        (BOTH, exact(0.4), exact(0.3), False, "is below 0.5"),
        (BOTH, exact(0.6), exact(0.7), False, "does not beat"),
    ],
)
def test_beside_a_current_version(wanted, new, old, moves, why):
    found = decided(wanted, [new], [old] if old else [], measured=OLD, current=OLD)
    assert found.moves is moves
    assert why in found.why


@pytest.mark.parametrize(
    ("measured", "current"), [(OLD, version("d")), (OLD, None), (None, OLD)], ids=["moved", "deleted", "made"]
)
def test_an_alias_that_was_changed_meanwhile_stays_where_it_is(measured, current):
    found = decided(BETTER, [exact(0.9)], [exact(0.1)], measured=measured, current=current)
    assert not found.moves
    assert found.why.startswith("not moved: prod was changed while the job ran")
    assert decided(ANY, [exact(0.9)], [], measured=measured, current=current).moves


def test_another_version_with_the_same_weights_is_the_one_that_was_measured():
    assert decided(BETTER, [exact(0.9)], [exact(0.1)], measured=OLD, current=version("a")).moves


def test_a_version_of_another_base_cannot_be_beaten():
    current = version("d", OTHER_BASE)
    found = decided(BETTER, [exact(0.9)], current=current)
    assert found == Promotion(
        moves=False,
        why="not moved: prod points to a version of another base, which this job could not measure",
    )
    assert decided(ANY, [exact(0.9)], current=current).moves


# With the registry


@pytest.fixture
def place(tmp_path):
    place = Workplace(tmp_path)
    yield place
    place.close()


def version_of(place, alias: str) -> int | None:
    current = place.current(alias)
    return current.version if current else None


def test_the_better_version_goes_live_and_the_worse_does_not(place):
    wanted = PromoteIf(alias="prod", better_than_current=True)
    results = [
        place.run(train_job(promote_if=wanted), steps).result
        for steps in (
            "adapter=0.25,finished=0.5",
            "adapter=0.5,finished=0.8/0.5",
            "adapter=0.75,finished=0.7/0.8",
        )
    ]
    assert [result.promoted for result in results] == [True, True, False]
    assert results[2].promotion == "not moved: exact_match 0.7 does not beat 0.8 of the current version"
    assert (version_of(place, "prod"), version_of(place, "default")) == (2, 1)
    assert place.registry.alias(AdapterSelector(TENANT, "redact", alias="prod")).previous_version == 1


def test_the_task_names_the_version_to_beat(place):
    place.run(train_job(), "adapter=0.25,finished=0.5")
    submitted = place.submit(train_job(promote_if=PromoteIf(alias="default", better_than_current=True)))
    with place.dispatcher("note,gate,adapter=0.5,finished=0.8/0.5"):
        place.first_pid(submitted)
        task = TrainTask.model_validate_json(
            (place.directory / "jobs" / submitted.id / "task.json").read_bytes()
        )
        place.open_gate(submitted)
        place.reaches(submitted, JobState.SUCCEEDED)
    assert task.incumbent_directory == str(place.registry.directory_of(_digest(place, 1)))
    assert version_of(place, "default") == 2


def test_an_alias_that_moves_while_the_job_runs_is_left_alone(place):
    for fill in (0.25, 0.5):
        place.run(train_job(), f"adapter={fill},finished=0.5")
    prod = AdapterSelector(TENANT, "redact", alias="prod")
    place.registry.set_alias(prod, "tenants/acme/adapters/redact/versions/1", "")
    submitted = place.submit(train_job(promote_if=PromoteIf(alias="prod", better_than_current=True)))
    with place.dispatcher("note,gate,adapter=0.75,finished=0.9/0.5"):
        place.first_pid(submitted)
        place.registry.set_alias(prod, "tenants/acme/adapters/redact/versions/2", "")
        place.open_gate(submitted)
        job = place.reaches(submitted, JobState.SUCCEEDED)
    assert (job.result.promoted, version_of(place, "prod")) == (False, 2)
    assert job.result.promotion.startswith("not moved: prod was changed while the job ran")
    assert job.result.version.endswith("versions/3")


@pytest.mark.parametrize("deleted", [False, True])
def test_an_alias_that_moves_between_two_attempts_is_left_alone(place, deleted):
    """The second attempt may have kept what the first one measured, so it compares with the same version."""
    for fill in (0.25, 0.5, 0.75):
        place.run(train_job(), f"adapter={fill},finished=0.5")
    prod = AdapterSelector(TENANT, "redact", alias="prod")
    place.registry.set_alias(prod, "tenants/acme/adapters/redact/versions/2", "")
    submitted = place.submit(train_job(promote_if=PromoteIf(alias="prod", better_than_current=True)))
    steps = "note,once:stop,adapter=0.9,finished=0.9/0.5"
    with place.dispatcher(steps):
        place.first_pid(submitted)
    place.registry.set_alias(prod, "tenants/acme/adapters/redact/versions/3", "")
    if deleted:
        place.registry.delete_version(AdapterSelector(TENANT, "redact", version=2))
    with place.dispatcher(steps):
        job = place.reaches(submitted, JobState.SUCCEEDED)
    assert (job.result.promoted, version_of(place, "prod")) == (False, 3)
    assert "was changed while the job ran" in job.result.promotion


def test_another_attempt_beats_the_version_of_the_first(place):
    place.run(train_job(), "adapter=0.25,finished=0.5")
    wanted = PromoteIf(alias="default", better_than_current=True)
    job = place.run(train_job(promote_if=wanted), "once:crash,adapter=0.9,finished=0.9/0.5")
    assert (job.attempt, job.result.promoted, version_of(place, "default")) == (2, True, 2)


def test_the_first_version_is_promoted_to_the_default_that_it_becomes(place):
    job = place.run(train_job(promote_if=PromoteIf(alias="default")), "adapter=0.25,finished=0.5")
    assert (job.result.promoted, version_of(place, "default")) == (True, 1)
    assert place.registry.alias(AdapterSelector(TENANT, "redact")).previous_version is None


def test_a_promotion_that_fails_takes_the_version_with_it(place):
    job = place.run(train_job(promote_if=PromoteIf(alias="Not An Id")), "adapter=0.25,finished=0.5")
    assert (job.state, job.result, job.error["reason"]) == (JobState.FAILED, None, "INVALID_FIELD")
    assert place.current() is None
    after = place.run(train_job(), "adapter=0.25,finished=0.5")
    assert after.result.version.endswith("versions/1")


def test_version_alias_and_state_are_one_transaction_that_may_be_repeated(place):
    """A fault after everything was written, as late as it can come."""
    submitted = place.submit(train_job(promote_if=PromoteIf(alias="prod")))
    claimed, lease = place.queue.claim("worker", 60.0)
    task = place.assignments.task_for(claimed, place.directory / "jobs" / claimed.id)
    write_adapter(Path(task.output_directory))
    publish = place.publisher.train(claimed, task, TrainFinished(metrics=(exact(0.5),)))

    def fail(connection, job):
        publish(connection, job)
        assert place.registry.current_in(connection, TENANT, "redact", "prod").version == 1
        raise LookupError

    with pytest.raises(LookupError):
        place.queue.release(lease, Ending(JobState.SUCCEEDED, also=fail))
    assert (version_of(place, "default"), version_of(place, "prod")) == (None, None)
    assert place.job(submitted).state is JobState.RUNNING
    job = place.queue.release(lease, Ending(JobState.SUCCEEDED, also=publish))
    assert (job.result.promoted, version_of(place, "default"), version_of(place, "prod")) == (True, 1, 1)


def _digest(place, number: int) -> str:
    return place.registry.resolve(AdapterSelector(TENANT, "redact", version=number)).manifest.digest
