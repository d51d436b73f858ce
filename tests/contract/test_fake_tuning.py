"""Jobs of both clients against the fake server: start, watch, wait, cancel, list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from both_clients import RETRIES, open_client, write_rows
from finetuned import (
    Baseline,
    BaselineExample,
    DataOptions,
    Deadlines,
    Dpo,
    EvaluationOptions,
    Head,
    Ia3,
    JobEvent,
    JobKind,
    JobState,
    LearningRateSchedule,
    LongRows,
    Lora,
    Method,
    Objective,
    Optimization,
    PromoteIf,
    Qlora,
    RetryPolicy,
    Task,
    WeightFormat,
)
from finetuned.errors import (
    AdapterIncompatible,
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    InvalidData,
    InvalidField,
    JobFailed,
    JobStateConflict,
    NotFound,
    OutOfRange,
    RequestIdReused,
    RerunRefused,
    ResourceInUse,
    Unavailable,
    Unimplemented,
    Violation,
)
from finetuned.testing import FakeServer
from finetuned.v1 import tuning_service_pb2
from finetuned.v1.tuning_service_pb2_grpc import TuningServiceStub

EVENTS = 10
"""Of a TrainJob of the fake server: queued, running, baseline, 4 steps, checkpoint, adapter, succeeded."""


@pytest.fixture(autouse=True)
def _rows(fake_server: FakeServer, tmp_path: Path) -> None:
    with open_client("sync", fake_server.endpoint) as client:
        client.datasets.upload(write_rows(tmp_path / "rows.jsonl"))


def numbers(events: list[JobEvent]) -> list[int]:
    return [event.number for event in events]


def test_train_sends_every_setting(client: Any, fake_server: FakeServer) -> None:
    lora = Lora(
        rank=4,
        alpha=8.0,
        dropout=0.1,
        target_modules=("q_proj",),
        rank_stabilized=True,
        decomposed=True,
        rank_pattern={"v_proj": 2},
        alpha_pattern={"v_proj": 3.0},
    )
    optimization = Optimization(
        epochs=1.5,
        max_steps=2,
        batch_rows=3,
        micro_batch_rows=1,
        learning_rate=1e-3,
        schedule=LearningRateSchedule.LINEAR,
        warmup_fraction=0.1,
        weight_decay=0.01,
        max_gradient_norm=0.0,
        seed=7,
        checkpoint_interval_steps=5,
        activation_checkpointing=False,
        kept_checkpoints=3,
    )
    data = DataOptions(holdout_fraction=0.2, max_row_tokens=64, long_rows=LongRows.DROP, train_on_prompt=True)
    evaluation = EvaluationOptions(
        evaluations=0,
        early_stopping_patience=3,
        generation_rows=5,
        generation_max_tokens=6,
        baseline=Baseline(instruction="Do.", examples=(BaselineExample("a", "b"),)),
    )
    promote_if = PromoteIf(alias="prod", metric="loss", minimum=0.5, better_than_current=True)
    job = client.train(
        dataset="rows",
        adapter="mine",
        eval_dataset="rows",
        base="fake",
        lora=lora,
        optimization=optimization,
        data=data,
        evaluation=evaluation,
        promote_if=promote_if,
        display_name="my job",
        priority="LOW",
    )
    assert job.priority == "LOW"
    assert job.state is JobState.QUEUED
    assert job.kind is JobKind.TRAIN
    assert job.display_name == "my job"
    spec = job.train
    assert spec is not None
    assert spec.dataset == spec.eval_dataset == "tenants/a/datasets/rows"
    assert spec.adapter == "tenants/a/adapters/mine"
    assert spec.base == "bases/fake"
    # The fake server gives back what it was sent.
    assert (spec.lora, spec.optimization, spec.data, spec.evaluation, spec.promote_if) == (
        lora,
        optimization,
        data,
        evaluation,
        promote_if,
    )


def test_a_job_has_the_method_that_was_chosen(client: Any) -> None:
    ia3 = Ia3(target_modules=("k_proj", "down_proj"), feedforward_modules=("down_proj",))
    job = client.train(dataset="rows", adapter="mine", ia3=ia3)
    assert (job.train.ia3, job.train.lora) == (ia3, None)
    assert client.jobs.wait(job.name).check().train_result is not None
    assert client.adapters.version("mine@1").method is Method.IA3
    with pytest.raises(ValueError, match="one method; given: lora, ia3"):
        client.train(dataset="rows", adapter="mine", lora=Lora(), ia3=ia3)
    with pytest.raises(Unimplemented, match=r"METHOD_IA3.*METHOD_HEAD"):
        client.train(dataset="rows", adapter="mine", task=Task.IMAGE_CLASSIFICATION, ia3=ia3)


def test_settings_that_are_not_given_are_not_sent(client: Any, fake_server: FakeServer) -> None:
    client.train(dataset="rows", adapter="mine")
    [[request]] = fake_server.requests("TrainJob")
    assert list(request.spec.optimization.ListFields()) == []
    assert list(request.spec.evaluation.ListFields()) == []
    assert request.request_id


def test_validate_only_gives_a_job_without_a_name(client: Any) -> None:
    job = client.train(dataset="rows", adapter="mine", validate_only=True)
    assert job.name == ""
    assert list(client.jobs.list()) == []


def test_watch_tells_every_event_once(client: Any) -> None:
    job = client.train(dataset="rows", adapter="mine")
    events = list(client.jobs.watch(job.name))
    assert numbers(events) == list(range(1, EVENTS + 1))
    assert events[-1].final
    assert [event.progress.loss for event in events if event.progress] == [2.0, 1.0, 2 / 3, 0.5]
    assert [event.evaluation.subject for event in events if event.evaluation] == ["baseline", "adapter"]
    assert numbers(client.jobs.watch(job.name, after_event=8)) == [9, 10]
    assert numbers(client.jobs.watch(job.name, after_event=EVENTS)) == []
    assert list(client.jobs.events(job.name, page_size=3)) == events


def test_watch_reconnects_from_the_last_event(client: Any, fake_server: FakeServer) -> None:
    job = client.train(dataset="rows", adapter="mine")
    fake_server.fail("WatchJob", times=3, after_messages=2)
    fake_server.fail("WatchJob", Unavailable("restarting", retry_after_seconds=0.001), times=2)
    assert numbers(client.jobs.watch(job.name)) == list(range(1, EVENTS + 1))
    cursors = [request.after_event for [request] in fake_server.requests("WatchJob")]
    assert cursors == [0, 2, 4, 6, 6, 6]


def test_watch_outlasts_more_failures_than_a_single_call_would(client: Any, fake_server: FakeServer) -> None:
    job = client.train(dataset="rows", adapter="mine")
    fake_server.fail("WatchJob", times=RETRIES.attempts + 1)
    assert numbers(client.jobs.watch(job.name)) == list(range(1, EVENTS + 1))


def test_watch_gives_up_on_a_server_that_stays_away(client: Any, fake_server: FakeServer) -> None:
    job = client.train(dataset="rows", adapter="mine")
    fake_server.fail("WatchJob", times=10_000)
    with pytest.raises(Unavailable):
        list(client.within(0.05).jobs.watch(job.name))


def test_watch_has_a_bound_if_asked_for(client: Any, fake_server: FakeServer) -> None:
    job = client.train(dataset="rows", adapter="mine")
    fake_server.fail("WatchJob", DeadlineExceeded("over"), times=10_000)
    with pytest.raises(DeadlineExceeded):
        list(client.jobs.watch(job.name, timeout_seconds=0.05))


def test_a_quiet_connection_is_opened_again(client: Any, fake_server: FakeServer) -> None:
    job = client.train(dataset="rows", adapter="mine")
    fake_server.fail("WatchJob", DeadlineExceeded("nothing happened"), times=2, after_messages=4)
    assert numbers(client.jobs.watch(job.name)) == list(range(1, EVENTS + 1))


def test_watch_says_that_events_were_trimmed_and_wait_goes_on(client: Any, fake_server: FakeServer) -> None:
    job = client.train(dataset="rows", adapter="mine")
    assert len(list(client.jobs.watch(job.name))) == EVENTS
    fake_server.trim_events(job.name, 6)
    with pytest.raises(OutOfRange) as refused:
        list(client.jobs.watch(job.name, after_event=2))
    assert refused.value.metadata == {"first_kept": "6"}
    assert numbers(client.jobs.watch(job.name)) == [6, 7, 8, 9, 10]

    other = client.train(dataset="rows", adapter="mine")
    seen: list[JobEvent] = []

    def trim(event: JobEvent) -> None:
        seen.append(event)
        if event.number == 2:  # what follows is lost while the connection is
            fake_server.trim_events(other.name, 5)

    fake_server.fail("WatchJob", after_messages=2)
    assert client.jobs.wait(other.name, on_event=trim).state is JobState.SUCCEEDED
    assert numbers(seen) == [1, 2, 5, 6, 7, 8, 9, 10]


def test_wait_gives_the_finished_job(client: Any) -> None:
    job = client.train(dataset="rows", adapter="mine", promote_if=PromoteIf(alias="prod", minimum=0.4))
    done = client.jobs.wait(job.name).check()
    assert done.state is JobState.SUCCEEDED
    assert {metric.name: metric.value for metric in done.metrics} == {"exact_match": 0.5, "loss": 1.5}
    assert {metric.name: metric.value for metric in done.baseline_metrics} == {
        "exact_match": 0.0,
        "loss": 2.0,
    }
    assert done.train_result is not None
    assert done.train_result.version == "tenants/a/adapters/mine/versions/1"
    assert done.train_result.promoted
    assert client.adapters.alias("mine@prod").version == done.train_result.version


def test_promotion_only_of_what_is_good_enough(client: Any) -> None:
    job = client.train(dataset="rows", adapter="mine", promote_if=PromoteIf(alias="prod", minimum=0.9))
    done = client.jobs.wait(job.name).check()
    assert not done.train_result.promoted
    with pytest.raises(NotFound):
        client.adapters.alias("mine@prod")


def test_wait_with_a_bound(client: Any, fake_server: FakeServer) -> None:
    job = client.train(dataset="rows", adapter="mine")
    fake_server.fail("WatchJob", DeadlineExceeded("over"), times=10_000)
    with pytest.raises(DeadlineExceeded):
        client.jobs.wait(job.name, timeout_seconds=0.05)


def test_a_failed_job_says_why(client: Any, fake_server: FakeServer) -> None:
    fake_server.fail_next_job(
        InvalidData("2 rows are too long", violations=[Violation("line 3", "has 900 tokens; allowed: 512")])
    )
    job = client.jobs.wait(client.train(dataset="rows", adapter="mine").name)
    assert job.state is JobState.FAILED
    with pytest.raises(JobFailed) as failed:
        job.check()
    assert failed.value.job == job.name
    assert failed.value.state == "FAILED"
    assert failed.value.reason == "INVALID_DATA"
    assert failed.value.violations == (Violation("line 3", "has 900 tokens; allowed: 512"),)
    assert "2 rows are too long" in failed.value.message


def test_cancel(client: Any) -> None:
    job = client.train(dataset="rows", adapter="mine")
    cancelled = client.jobs.cancel(job.name)
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.state_reason == "USER"
    with pytest.raises(JobFailed) as failed:
        cancelled.check()
    assert failed.value.state == "CANCELLED"
    with pytest.raises(JobStateConflict) as refused:
        client.jobs.cancel(job.name)
    assert refused.value.metadata == {"state": "CANCELLED"}


def test_pause_and_resume(client: Any) -> None:
    job = client.train(dataset="rows", adapter="mine")
    assert client.jobs.pause(job.name).state is JobState.PAUSED
    assert client.jobs.pause(job.name).state_reason == "USER"
    assert client.jobs.get(job.name).state is JobState.PAUSED
    assert client.jobs.resume(job.name).state is JobState.QUEUED
    while client.jobs.get(job.name).state is not JobState.RUNNING:
        pass
    assert client.jobs.pause(job.name).state is JobState.PAUSING
    with pytest.raises(JobStateConflict) as refused:
        client.jobs.resume(job.name)
    assert refused.value.metadata == {"state": "PAUSING"}
    assert client.jobs.get(job.name).state is JobState.PAUSING
    assert client.jobs.resume(job.name).state is JobState.QUEUED
    done = client.jobs.wait(job.name).check()
    assert done.last_event == EVENTS + 6
    for call in (client.jobs.pause, client.jobs.resume):
        with pytest.raises(JobStateConflict):
            call(job.name)


def test_a_job_shows_what_it_will_take_before_it_begins(client: Any) -> None:
    job = client.train(dataset="rows", adapter="mine", pause_after_estimate=True)
    assert (job.estimate.basis, job.estimate.duration_seconds) == ("ARITHMETIC", None)
    states = []
    waiting = client.jobs.wait(
        job.name,
        on_event=lambda event: (
            states.append((event.state.state, event.state.reason)) if event.state else None
        ),
    )
    assert waiting.waits_to_begin
    assert states[-2:] == [("PAUSING", "ESTIMATED"), ("PAUSED", "ESTIMATED")]
    assert waiting.estimate.basis == "MEASURED"
    # Its process has ended, and took what it took; how far off the estimate was is known at the end.
    assert waiting.usage.memory_bytes > 0
    assert waiting.usage.duration_seconds > 0
    assert (waiting.usage.memory_error, waiting.usage.duration_error) == (None, None)
    client.jobs.resume(job.name)
    done = client.jobs.wait(job.name).check()
    assert (done.usage.memory_error, done.usage.duration_error) == pytest.approx((0.1, 0.1))
    with pytest.raises(InvalidField):
        client.train(dataset="rows", adapter="mine", validate_only=True, pause_after_estimate=True)


def test_a_watch_of_a_paused_job_goes_on_when_it_does(client: Any) -> None:
    job = client.train(dataset="rows", adapter="mine")
    client.jobs.pause(job.name)
    states = []
    for event in client.jobs.watch(job.name):
        states += [event.state.state] if event.state else []
        if states[-1] is JobState.PAUSED:
            client.jobs.resume(job.name)
    assert states == ["QUEUED", "PAUSED", "QUEUED", "RUNNING", "SUCCEEDED"]


def test_continue_from(client: Any, fake_server: FakeServer) -> None:
    first = client.jobs.wait(client.train(dataset="rows", adapter="mine").name)
    job = client.train(dataset="rows", adapter="mine", continue_from="mine@default")
    assert job.train.continue_from == first.train_result.version
    client.jobs.wait(job.name).check()
    assert client.adapters.version("mine@2").lineage.parent_version == first.train_result.version
    with pytest.raises(NotFound):
        client.train(dataset="rows", adapter="mine", continue_from="mine@9")
    fake_server.change_base("bases/other")
    with pytest.raises(AdapterIncompatible):
        client.train(dataset="rows", adapter="mine", continue_from="mine@1")


def test_delete(client: Any) -> None:
    job = client.train(dataset="rows", adapter="mine")
    with pytest.raises(JobStateConflict):
        client.jobs.delete(job.name)
    client.jobs.wait(job.name)
    with pytest.raises(ResourceInUse) as refused:
        client.jobs.delete(job.name)
    assert refused.value.metadata == {"used_by": "tenants/a/adapters/mine/versions/1"}
    other = client.train(dataset="rows", adapter="mine")
    client.jobs.cancel(other.name)
    client.jobs.delete(other.name)
    with pytest.raises(NotFound):
        client.jobs.get(other.name)
    assert client.train(dataset="rows", adapter="mine").name not in {job.name, other.name}


def test_list_filters(client: Any) -> None:
    first = client.train(dataset="rows", adapter="mine")
    client.jobs.wait(first.name)
    second = client.train(dataset="rows", adapter="other")
    third = client.quantize("int8", "small")

    def names(**options: Any) -> list[str]:
        return [job.name for job in client.jobs.list(**options)]

    assert names() == [third.name, second.name, first.name]
    assert names(page_size=1) == [third.name, second.name, first.name]
    assert names(states=[JobState.SUCCEEDED]) == [first.name]
    assert names(kind=JobKind.QUANTIZE) == [third.name]
    assert names(adapter="other") == [second.name]


def test_quantize(client: Any) -> None:
    job = client.quantize(WeightFormat.NF4, "small", max_quality_drop=0.1, dataset="rows", base="fake")
    assert job.kind is JobKind.QUANTIZE
    done = client.jobs.wait(job.name).check()
    assert done.quantize.weight_format is WeightFormat.NF4
    assert done.quantize.max_quality_drop == 0.1
    assert done.quantize_result.base == "tenants/a/bases/small"
    assert done.quantize_result.report.quantized_bytes * 4 == done.quantize_result.report.source_bytes
    assert client.bases.get(done.quantize_result.base).weight_format is WeightFormat.NF4
    assert (done.estimate.basis, done.usage.memory_error, done.usage.duration_error) == (
        "ARITHMETIC",
        0.1,
        None,
    )
    with pytest.raises(AlreadyExists):
        client.quantize("int8", "small")
    with pytest.raises(InvalidField, match=r"spec\.base"):
        client.quantize("int8", "smaller", base=done.quantize_result.base)
    with pytest.raises(InvalidField, match=r"spec\.quantize_embeddings"):
        client.quantize("nf4", "smaller", quantize_embeddings=True)


def test_quantize_behind_its_gate_fails_with_the_report(client: Any) -> None:
    job = client.jobs.wait(client.quantize("nf4", "small", max_quality_drop=0.01).name)
    assert job.state is JobState.FAILED
    assert job.quantize_result.base == ""
    assert job.quantize_result.report.quantized_perplexity > 10
    with pytest.raises(NotFound):
        client.bases.get("tenants/a/bases/small")


def test_quantize_to_what_is_not_there(client: Any, fake_server: FakeServer) -> None:
    with pytest.raises(ValueError, match="INT3"):
        client.quantize("int3", "small")
    assert fake_server.calls("Quantize") == 0
    with pytest.raises(Unimplemented) as refused:
        client.quantize("fp4", "small")
    assert refused.value.metadata == {"feature": "WEIGHT_FORMAT_FP4"}


def test_refusals_of_train(client: Any) -> None:
    with pytest.raises(NotFound):
        client.train(dataset="none", adapter="mine")
    with pytest.raises(InvalidField) as refused:
        client.train(dataset="rows", adapter="mine", lora=Lora(rank=300))
    assert refused.value.violations == (Violation("spec.lora.rank", "is 300; allowed: 1 to 256"),)


def test_a_repeated_request_id_is_the_same_call(client: Any) -> None:
    job = client.train(dataset="rows", adapter="mine", request_id="once")
    assert client.train(dataset="rows", adapter="mine", request_id="once").name == job.name
    with pytest.raises(RequestIdReused):
        client.train(dataset="rows", adapter="other", request_id="once")


def test_a_job_whose_answer_was_lost_is_not_started_twice(client: Any, fake_server: FakeServer) -> None:
    fake_server.lose_answer("TrainJob")
    job = client.train(dataset="rows", adapter="mine")
    assert fake_server.calls("TrainJob") == 2
    assert [item.name for item in client.jobs.list()] == [job.name]


def test_deadlines_and_retries_are_settable(fake_server: FakeServer) -> None:
    once = RetryPolicy(attempts=1)
    with open_client("sync", fake_server.endpoint, retry=once, deadlines=Deadlines(read_seconds=3)) as client:
        fake_server.fail("GetJob")
        with pytest.raises(Unavailable):
            client.jobs.get("none")
        assert fake_server.calls("GetJob") == 1
        assert client.transport.deadlines.read_seconds == 3


def test_internal_faults_are_not_repeated(client: Any, fake_server: FakeServer) -> None:
    fake_server.fail("TrainJob", Internal("internal fault 1f", metadata={"fault_id": "1f"}))
    with pytest.raises(Internal) as failed:
        client.train(dataset="rows", adapter="mine")
    assert failed.value.metadata == {"fault_id": "1f"}
    assert fake_server.calls("TrainJob") == 1


def test_the_objective_follows_from_the_rows(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    client.datasets.upload(path, "pairs")
    job = client.jobs.wait(client.train(dataset="pairs", adapter="mine").name)
    assert (job.train.objective, job.train.dpo) == (Objective.DPO, Dpo(beta=0.1, label_smoothing=0.0))
    assert [metric.name for metric in job.metrics] == ["reward_accuracy", "reward_margin", "loss"]
    asked = client.train(
        dataset="pairs", adapter="mine", objective=Objective.DPO, dpo=Dpo(beta=0.3, label_smoothing=0.1)
    )
    assert asked.train.dpo == Dpo(beta=0.3, label_smoothing=0.1)
    assert client.train(dataset="rows", adapter="mine").train.objective is Objective.SFT
    for settings in ({"objective": Objective.DPO}, {"dpo": Dpo(beta=0.2)}):
        with pytest.raises(InvalidField):
            client.train(dataset="rows", adapter="mine", **settings)


def test_what_was_left_out_is_written_back(client: Any) -> None:
    spec = client.train(dataset="rows", adapter="mine", promote_if=PromoteIf(alias="prod")).train
    assert (spec.task, spec.objective, spec.base) == (Task.TEXT_GENERATION, Objective.SFT, "bases/fake")
    assert (spec.lora.rank, spec.lora.alpha) == (16, 32.0)
    assert (spec.optimization.batch_rows, spec.optimization.micro_batch_rows) == (8, 8)
    assert (spec.data.holdout_fraction, spec.evaluation.generation_rows) == (0.1, 100)
    assert spec.promote_if.metric == "exact_match"


def test_a_quantized_base_is_trained_with_qlora_and_no_other(client: Any) -> None:
    small = client.jobs.wait(client.quantize("nf4", "small").name).quantize_result.base
    with pytest.raises(InvalidField, match=r"spec\.qlora"):
        client.train(dataset="rows", adapter="mine", qlora=Qlora())
    with pytest.raises(InvalidField, match=r"spec\.base"):
        client.train(dataset="rows", adapter="mine", base=small, lora=Lora())
    unnamed = client.train(dataset="rows", adapter="mine", base=small)
    assert (unnamed.train.lora, unnamed.train.qlora.lora.rank) == (None, 16)
    # A rerun on another base chooses again.
    assert client.jobs.rerun(unnamed.name, base="fake").train.lora.rank == 16
    job = client.train(dataset="rows", adapter="mine", base=small, qlora=Qlora(lora=Lora(rank=4)))
    assert client.jobs.wait(job.name).check().train.qlora.lora.alpha == 8.0
    version = client.adapters.version("mine@1")
    assert (version.method, version.rank, version.base_digest) == (
        Method.QLORA,
        4,
        client.bases.get(small).digest,
    )


def test_each_task_has_its_methods_rows_and_figures(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(f'{{"text": "{n}", "label": "{"ab"[n % 2]}"}}\n' for n in range(10)))
    client.datasets.upload(path, "labelled")
    with pytest.raises(InvalidField, match="holds LABELLED_TEXT rows"):
        client.train(dataset="labelled", adapter="mine")
    with pytest.raises(Unimplemented, match="METHOD_HEAD for TASK_FEATURE_EXTRACTION"):
        client.train(dataset="rows", adapter="mine", task=Task.FEATURE_EXTRACTION, head=Head())
    job = client.train(dataset="labelled", adapter="mine", task=Task.TEXT_CLASSIFICATION)
    assert (job.train.head, job.train.lora.rank) == (None, 16)
    assert (job.data_report.train_rows, job.data_report.eval_rows) == (9, 1)
    done = client.jobs.wait(job.name).check()
    assert [metric.name for metric in done.metrics] == ["macro_f1", "accuracy", "loss"]
    assert (done.confusion.labels, done.confusion.rows) == (("a", "b"), ((2, 3), (3, 2)))
    assert done.baseline_confusion.rows == ((0, 5), (5, 0))
    told = [event.evaluation.confusion for event in client.jobs.events(job.name) if event.evaluation]
    assert told == [done.baseline_confusion, done.confusion]
    assert client.adapters.version("mine@1").task is Task.TEXT_CLASSIFICATION
    with pytest.raises(InvalidField, match=r"spec\.continue_from"):
        client.train(dataset="rows", adapter="mine", continue_from="mine@1")


def test_a_job_runs_again_on_the_data_it_had(client: Any, tmp_path: Path) -> None:
    job = client.jobs.wait(client.train(dataset="rows", adapter="mine").name)
    again = client.jobs.rerun(job.name)
    assert (again.rerun_of, again.train.optimization) == (job.name, job.train.optimization)
    client.jobs.cancel(again.name)
    client.datasets.delete("rows")
    client.datasets.upload(write_rows(tmp_path / "rows.jsonl", count=5), "rows")
    with pytest.raises(RerunRefused) as refused:
        client.jobs.rerun(job.name)
    assert refused.value.metadata["recorded_digest"] == job.environment.dataset_digest


def test_a_page_token_is_good_for_its_own_list(client: Any, fake_server: FakeServer) -> None:
    for _ in range(3):
        client.train(dataset="rows", adapter="mine")
    assert len(list(client.jobs.list(page_size=1))) == 3
    [first, second, _] = [request for [request] in fake_server.requests("ListJobs")]
    assert (first.page_token, bool(second.page_token)) == ("", True)
    with grpc.insecure_channel(fake_server.endpoint) as channel, pytest.raises(grpc.RpcError) as refused:
        TuningServiceStub(channel).ListJobs(
            tuning_service_pb2.ListJobsRequest(
                parent="tenants/a", page_token=second.page_token, kind=tuning_service_pb2.JOB_KIND_QUANTIZE
            )
        )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_figures_for_tensorboard(client: Any, fake_server: FakeServer, tmp_path: Path) -> None:
    job = client.train(dataset="rows", adapter="mine")
    with pytest.raises(JobStateConflict):
        client.jobs.tensorboard(job.name, tmp_path / "logs")
    client.jobs.wait(job.name)
    logs = client.jobs.tensorboard(job.name, tmp_path / "logs")
    directory = tmp_path / "logs" / job.name.rpartition("/")[2]
    assert (logs.directory, logs.files) == (str(directory), ("events.out.tfevents.000001",))
    written = (directory / logs.files[0]).read_bytes()
    assert len(written.splitlines()) == 4
    # Again: the files take the place of their older selves, and what breaks changes nothing.
    fake_server.fail("ExportTensorBoard", after_messages=1)
    with pytest.raises(Unavailable):
        client.jobs.tensorboard(job.name, tmp_path / "logs")
    assert client.jobs.tensorboard(job.name, tmp_path / "logs") == logs
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [directory.name]
    assert (directory / logs.files[0]).read_bytes() == written
    run = client.quantize("int8", "small")
    with pytest.raises(InvalidField, match="Quantize run"):
        client.jobs.tensorboard(run.name, tmp_path / "logs")


def test_a_job_measures_what_its_held_out_rows_measure(client: Any, tmp_path: Path) -> None:
    for name, row in (
        ("stars", {"text": "a", "score": 0.5}),
        ("pairs", {"anchor": "a", "positive": "b"}),
        ("labels", {"text": "a", "label": "x"}),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for _ in range(10)))
        client.datasets.upload(path, name)
    asked = {"adapter": "mine", "task": Task.TEXT_CLASSIFICATION, "lora": Lora()}
    job = client.train(dataset="stars", promote_if=PromoteIf(alias="prod"), **asked)
    assert job.train.promote_if.metric == "spearman"
    done = client.jobs.wait(job.name)
    assert [metric.name for metric in done.metrics] == ["spearman", "pearson", "mean_absolute_error", "loss"]
    assert [metric.higher_is_better for metric in done.metrics] == [True, True, False, False]
    with pytest.raises(InvalidField, match=r"metric: is 'macro_f1'; .* measures spearman, pearson"):
        client.train(dataset="stars", promote_if=PromoteIf(alias="prod", metric="macro_f1"), **asked)
    with pytest.raises(InvalidField, match=r"eval_dataset: .*labels holds LABELLED_TEXT rows"):
        client.train(dataset="stars", eval_dataset="labels", **asked)
    vectors = {"adapter": "near", "task": Task.FEATURE_EXTRACTION, "lora": Lora()}
    found = client.jobs.wait(client.train(dataset="pairs", **vectors).name)
    assert [metric.name for metric in found.metrics] == ["mrr_at_10", "recall_at_1", "recall_at_10"]
