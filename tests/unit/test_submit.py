"""TrainJob and Quantize calls before they are jobs: resolved, checked, and nothing left of a refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.memory import served_bytes
from finetuned_service.bases.family import width_of
from finetuned_service.bases.manifest import describe_base, read_config, write_manifest
from finetuned_service.errors import (
    AlreadyExists,
    FinetunedError,
    InvalidData,
    InvalidField,
    NotFound,
    QuotaExceeded,
    RequestIdReused,
    ResourceExhausted,
)
from finetuned_service.jobs.estimate import RUNTIME_BYTES, Budget
from finetuned_service.jobs.events import EstimateBasis
from finetuned_service.jobs.methods import adapter_elements
from finetuned_service.jobs.specs import (
    DataOptions,
    DpoSettings,
    LoraSettings,
    Optimization,
    PromoteIf,
    QuantizeSpec,
    TrainSpec,
)
from finetuned_service.jobs.states import JobState
from finetuned_service.jobs.store import JobFilter
from finetuned_service.jobs.submit import Submission
from finetuned_service.jobs.usual import default_learning_rate
from finetuned_service.names import BaseName
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import PageRequest
from finetuned_service.vocabulary import DataReport, Method, Objective, Task, WeightFormat
from tiny_files import write_base
from tiny_jobs import NO_REQUEST, TENANT
from tiny_worker import Workplace

REPORT = DataReport(
    train_rows=9,
    eval_rows=1,
    train_tokens=180,
    supervised_tokens=90,
    mean_row_tokens=20.0,
    longest_row_tokens=30,
)
ROWS = "tenants/acme/datasets/rows"
SPEC = TrainSpec(dataset=ROWS, adapter="tenants/acme/adapters/redact")


class Rows:
    """Reads no rows; remembers which it was asked to read."""

    def __init__(self) -> None:
        self.asked: list[tuple[TrainSpec, Path, Path | None]] = []
        self.refusal: InvalidData | None = None
        self.report = REPORT

    def __call__(self, spec: TrainSpec, train: Path, heldout: Path | None) -> DataReport:
        self.asked.append((spec, train, heldout))
        if self.refusal is not None:
            raise self.refusal
        return self.report


@pytest.fixture
def place(tmp_path):
    place = Workplace(tmp_path, unfinished_jobs=2)
    yield place
    place.close()


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def submission(place, rows) -> Submission:
    return Submission(
        store=place.store,
        datasets=place.datasets,
        bases=place.bases,
        registry=place.registry,
        jobs_directory=place.directory / "jobs",
        resident_base=BaseName("tiny"),
        report=rows,
        max_rank=64,
        adapter_room_bytes=100_000,
    )


@pytest.fixture
def add_base(place):
    def add(name: str, weight_format: WeightFormat) -> None:
        parsed = BaseName.parse(name)
        directory = write_base(place.bases.path(parsed))
        write_manifest(
            directory, describe_base(directory, name=parsed, weight_format=weight_format, source="a test")
        )

    return add


def train(submission, spec=SPEC, *, request=NO_REQUEST, validate_only=False, tenant=TENANT):
    return submission.train(tenant, spec, "mine", request, validate_only=validate_only)


def quantize(submission, *, validate_only=False, request=NO_REQUEST, **changes):
    fields = {"output_base_id": "small", "weight_format": WeightFormat.INT8} | changes
    return submission.quantize(TENANT, QuantizeSpec(**fields), "mine", request, validate_only=validate_only)


def stored(place) -> list[str]:
    return [job.id for job in place.store.list(TENANT, JobFilter(), PageRequest()).items]


# TrainJob


def test_a_train_job_is_queued_with_everything_written_back(submission, place, rows):
    job = train(submission)
    assert place.job(job) == job
    assert (job.state, job.display_name, job.data_report) == (JobState.QUEUED, "mine", REPORT)
    spec = job.spec
    assert spec.base == "bases/tiny"
    assert spec.lora.target_modules == ("q_proj", "up_proj")
    assert None not in {
        spec.lora.alpha,
        spec.optimization.epochs,
        spec.optimization.max_steps,
        spec.optimization.micro_batch_rows,
        spec.optimization.learning_rate,
        spec.optimization.checkpoint_interval_steps,
        spec.data.max_row_tokens,
    }
    ((read, training, heldout),) = rows.asked
    assert (training, heldout) == (place.datasets.get(TENANT, "rows").path, None)
    # Read with all that decides which rows there are; the steps follow from them.
    steps = {"optimization": spec.optimization}
    assert (read.optimization.seed, read.model_copy(update=steps)) == (spec.optimization.seed, spec)


@pytest.mark.parametrize(
    ("asked", "epochs", "steps", "rate"),
    [
        ({"epochs": 2, "batch_rows": 4}, 2.0, 20, 1.5),
        ({"max_steps": 20, "batch_rows": 4}, 2.0, 20, 1.5),
        # As often as few answers are seen.
        ({"batch_rows": 4}, 6.0, 60, 1.5),
        ({"epochs": 100, "batch_rows": 4}, 100.0, 1000, 1.0),
    ],
)
def test_steps_epochs_and_rate_follow_from_the_rows_that_are_left(
    submission, place, rows, asked, epochs, steps, rate
):
    """Of 400 rows 360 are too long and dropped."""
    file = place.directory / "many.jsonl"
    file.write_text("".join(f'{{"prompt": "{i}", "completion": "b"}}\n' for i in range(400)))
    place.datasets.import_file(TENANT, "many", file.as_uri(), NO_REQUEST)
    rows.report = REPORT.model_copy(update={"train_rows": 40, "dropped_rows": 360})
    spec = TrainSpec.model_validate(
        {**SPEC.model_dump(exclude_unset=True), "optimization": asked, "data": {"long_rows": "DROP"}}
    )
    long = spec.model_copy(update={"dataset": "tenants/acme/datasets/many"})
    found = train(submission, long).spec.optimization
    usual = default_learning_rate(4)
    assert (found.epochs, found.max_steps) == (epochs, steps)
    assert found.learning_rate == float(f"{rate * usual:.1e}")


def test_the_estimate_follows_from_steps_and_rows(submission):
    job = train(submission, SPEC.model_copy(update={"optimization": Optimization(max_steps=5, batch_rows=4)}))
    assert (job.estimate.steps, job.estimate.tokens) == (5, 5 * 4 * 20)
    assert (job.estimate.basis, job.estimate.duration_seconds) == (EstimateBasis.ARITHMETIC, None)


def test_the_least_memory_is_that_of_runtime_numbers_that_train_and_layers(submission, place):
    job = train(submission)
    base = place.bases.path(BaseName("tiny"))
    layers, width = len(BaseGeometry.of_files(base).layers), width_of(read_config(base))
    trained = adapter_elements(job.spec, base)
    longest = min(30, job.spec.data.max_row_tokens)
    expected = RUNTIME_BYTES + trained * 4 * 4 + layers * width * longest * 2
    assert job.estimate.memory_bytes == expected
    assert job.estimate.base_memory_bytes == (base / "model.safetensors").stat().st_size


def test_an_adapter_may_be_as_large_as_the_engine_has_room_for(submission, place):
    name = BaseName("tiny")
    elements = adapter_elements(train(submission, validate_only=True).spec, place.bases.path(name))
    needed_bytes = served_bytes(elements, place.bases.get(name))
    train(replace(submission, adapter_room_bytes=needed_bytes), validate_only=True)
    with pytest.raises(InvalidField, match="makes an adapter of"):
        train(replace(submission, adapter_room_bytes=needed_bytes - 1), validate_only=True)


@pytest.mark.parametrize("validate_only", [True, False])
def test_what_cannot_fit_is_refused_and_leaves_nothing(submission, place, validate_only):
    small = replace(submission, job_budget=Budget(RUNTIME_BYTES))
    with pytest.raises(ResourceExhausted, match=r"at least 280 MB .*; allowed: 280 MB") as refused:
        small.train(TENANT, SPEC, "mine", NO_REQUEST, validate_only=validate_only)
    assert refused.value.metadata["memory_budget_bytes"] == str(RUNTIME_BYTES)
    assert int(refused.value.metadata["memory_bytes"]) > RUNTIME_BYTES
    assert place.store.list(TENANT, JobFilter(), PageRequest()).items == ()


def test_on_a_gpu_what_trains_is_compared_with_the_gpu_s_memory(submission, place):
    host = train(submission).estimate
    trained_bytes = host.memory_bytes - RUNTIME_BYTES
    enough = Budget(RUNTIME_BYTES, trained_bytes, on_device=True)
    estimate = train(replace(submission, job_budget=enough), validate_only=True).estimate
    assert (estimate.memory_bytes, estimate.device_memory_bytes) == (RUNTIME_BYTES, trained_bytes)
    assert estimate.device_memory_budget_bytes == trained_bytes
    less = replace(submission, job_budget=replace(enough, device_bytes=trained_bytes - 1))
    jobs = stored(place)
    with pytest.raises(
        ResourceExhausted, match=r"at least .* MB of GPU memory.*\(job_device_bytes\)"
    ) as refused:
        train(less)
    assert refused.value.metadata == {
        "least_device_memory_bytes": str(trained_bytes),
        "device_memory_budget_bytes": str(trained_bytes - 1),
    }
    assert stored(place) == jobs
    # A CPU's jobs have nothing to do with it.
    assert train(replace(less, job_budget=Budget(0, 1)), validate_only=True).estimate.device_memory_bytes == 0


def test_a_job_like_it_tells_what_a_new_one_will_take(submission, place):
    done = train(
        submission, SPEC.model_copy(update={"optimization": Optimization(max_steps=5, batch_rows=4)})
    )
    with place.dispatcher("used=900000000,adapter=0.25,finished=0.5"):
        done = place.reaches(done, JobState.SUCCEEDED)
    longer = SPEC.model_copy(update={"optimization": Optimization(max_steps=10, batch_rows=4)})
    estimate = submission.train(TENANT, longer, "", NO_REQUEST, validate_only=True).estimate
    assert (estimate.basis, estimate.memory_bytes) == (EstimateBasis.EARLIER_JOB, 900_000_000)
    assert estimate.duration_seconds == pytest.approx(2 * done.usage.duration_seconds)
    larger = SPEC.model_copy(update={"optimization": Optimization(max_steps=10, batch_rows=8)})
    estimate = submission.train(TENANT, larger, "", NO_REQUEST, validate_only=True).estimate
    assert estimate.basis is EstimateBasis.ARITHMETIC, "with other batches it is another job"
    longest = SPEC.model_copy(update={"optimization": Optimization(max_steps=16, batch_rows=4)})
    estimate = submission.train(TENANT, longest, "", NO_REQUEST, validate_only=True).estimate
    assert estimate.basis is EstimateBasis.ARITHMETIC, "of a trial little was training"


@pytest.fixture
def add_rows(place):
    def add(dataset_id: str, content: str) -> str:
        path = place.directory / f"{dataset_id}.jsonl"
        path.write_text(content)
        place.datasets.import_file(TENANT, dataset_id, path.as_uri(), NO_REQUEST)
        return f"tenants/{TENANT}/datasets/{dataset_id}"

    return add


def test_rows_that_the_task_cannot_use_are_refused(submission, place, rows, add_rows):
    labelled = add_rows("labelled", '{"text":"a","label":"x"}\n')
    spec = SPEC.model_copy(update={"dataset": labelled})
    with pytest.raises(InvalidField) as refused:
        train(submission, spec)
    assert refused.value.message == (
        "spec.dataset: tenants/acme/datasets/labelled holds LABELLED_TEXT rows; the task text-generation "
        "with OBJECTIVE_SFT trains on PROMPT_COMPLETION or CHAT or TEXT rows: choose another dataset, or the task text-classification"
    )
    with pytest.raises(InvalidField, match=r"spec.eval_dataset: .* is evaluated on PROMPT_COMPLETION"):
        train(submission, SPEC.model_copy(update={"eval_dataset": labelled}))
    with pytest.raises(InvalidField, match="quality is measured on PROMPT_COMPLETION or CHAT or TEXT rows"):
        quantize(submission, dataset=labelled)
    assert (stored(place), rows.asked) == ([], [])


PREFERENCES = '{"prompt":"a","chosen":"b","rejected":"c"}\n'


@pytest.mark.parametrize("wanted", [None, Objective.DPO])
def test_preferences_are_trained_on_by_dpo(submission, add_rows, wanted):
    spec = SPEC.model_copy(
        update={
            "dataset": add_rows("preferences", PREFERENCES),
            "objective": wanted,
            "promote_if": PromoteIf(alias="prod", metric=""),
        }
    )
    resolved = train(submission, spec).spec
    assert (resolved.objective, resolved.dpo) == (Objective.DPO, DpoSettings(beta=0.1))
    assert resolved.promote_if.metric == "reward_accuracy"
    # Of answers in a run that is not short, which has the usual rate.
    answers = train(submission, SPEC.model_copy(update={"optimization": Optimization(max_steps=1000)})).spec
    assert resolved.optimization.learning_rate == pytest.approx(
        answers.optimization.learning_rate / 10, rel=0.05
    )


@pytest.mark.parametrize(
    ("dataset", "change", "said"),
    [
        (
            "rows",
            {"objective": Objective.DPO},
            "spec.dataset: .* with OBJECTIVE_DPO trains on PREFERENCE rows: choose another dataset, or the task text",
        ),
        ("preferences", {"objective": Objective.SFT}, "or the task text-generation with OBJECTIVE_DPO"),
        ("preferences", {"eval_dataset": ROWS}, "spec.eval_dataset: .* is evaluated on PREFERENCE rows"),
        ("rows", {"dpo": DpoSettings()}, "spec.dpo: is set, and the objective is OBJECTIVE_SFT"),
        (
            "rows",
            {"objective": Objective.CONTRASTIVE},
            "spec.objective: is OBJECTIVE_CONTRASTIVE; .* OBJECTIVE_DPO",
        ),
        (
            "preferences",
            {"data": DataOptions(train_on_prompt=True)},
            "spec.data.train_on_prompt: is on; OBJECTIVE_DPO compares answers",
        ),
        (
            "preferences",
            {"promote_if": PromoteIf(alias="prod", metric="exact_match")},
            "spec.promote_if.metric: is 'exact_match'; OBJECTIVE_DPO measures reward_accuracy",
        ),
        (
            "rows",
            {"promote_if": PromoteIf(alias="prod", metric="reward_margin")},
            "spec.promote_if.metric: is 'reward_margin'; OBJECTIVE_SFT measures exact_match, loss",
        ),
    ],
)
def test_what_does_not_fit_the_objective_is_refused(submission, place, rows, add_rows, dataset, change, said):
    add_rows("preferences", PREFERENCES)
    spec = SPEC.model_copy(update={"dataset": f"tenants/acme/datasets/{dataset}", **change})
    with pytest.raises(InvalidField, match=said):
        train(submission, spec)
    assert (stored(place), rows.asked) == ([], [])


def test_rows_of_an_evaluation_are_of_the_same_kind(submission, add_rows):
    spec = SPEC.model_copy(
        update={
            "task": Task.TEXT_CLASSIFICATION,
            "dataset": add_rows("labelled", '{"text":"a","label":"x"}\n'),
            "eval_dataset": add_rows("scored", '{"text":"a","score":1}\n'),
        }
    )
    with pytest.raises(InvalidField, match=r"holds SCORED_TEXT rows; .* is evaluated on LABELLED_TEXT rows"):
        train(submission, spec)


@pytest.mark.parametrize(
    ("trained", "held", "said"),
    [
        (["x", "y"], ["x"], "tenants/acme/datasets/held lacks the label 'y', so nothing would tell"),
        (["x"], ["x", "y", "z"], "has the labels 'y', 'z', which no training row has"),
    ],
)
def test_labels_that_one_side_lacks_are_refused_before_any_row_is_read(
    submission, place, rows, add_rows, trained, held, said
):
    def dataset(dataset_id: str, labels: list[str]) -> str:
        lines = [json.dumps({"text": f"{dataset_id} {label}", "label": label}) for label in labels]
        return add_rows(dataset_id, "\n".join(lines))

    spec = SPEC.model_copy(
        update={
            "task": Task.TEXT_CLASSIFICATION,
            "dataset": dataset("trained", trained),
            "eval_dataset": dataset("held", held),
        }
    )
    with pytest.raises(InvalidField, match=said) as refused:
        train(submission, spec)
    assert refused.value.violations[0].field == "spec.eval_dataset"
    assert (stored(place), rows.asked) == ([], [])


def test_an_evaluation_dataset_leaves_all_rows_for_training(submission, place, rows):
    spec = SPEC.model_copy(
        update={"eval_dataset": "tenants/acme/datasets/held-out", "data": DataOptions(holdout_fraction=0.5)}
    )
    train(submission, spec)
    ((_, training, heldout),) = rows.asked
    assert training == place.datasets.get(TENANT, "rows").path
    assert heldout == place.datasets.get(TENANT, "held-out").path


def test_validate_only_says_what_it_would_be_and_stores_nothing(submission, place):
    request = RequestKey.of(TENANT, "r1", b"body")
    job = train(submission, validate_only=True, request=request)
    assert (job.name, job.data_report, job.spec.base) == ("", REPORT, "bases/tiny")
    assert stored(place) == []
    assert place.store.made_by(request) is None


def test_the_bases_of_the_tenant_and_the_shared_ones_can_be_trained_on(submission, add_base):
    add_base("tenants/acme/bases/own", WeightFormat.BF16)
    job = train(submission, SPEC.model_copy(update={"base": "tenants/acme/bases/own"}))
    assert job.spec.base == "tenants/acme/bases/own"


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"dataset": "tenants/acme/datasets/absent"}, NotFound, "datasets/absent"),
        ({"dataset": "tenants/other/datasets/rows"}, NotFound, "tenants/other/datasets/rows"),
        ({"dataset": "rows"}, InvalidField, "spec.dataset"),
        ({"dataset": ""}, InvalidField, "spec.dataset"),
        ({"eval_dataset": "tenants/acme/datasets/absent"}, NotFound, "datasets/absent"),
        ({"eval_dataset": "tenants/other/datasets/rows"}, NotFound, "tenants/other/datasets/rows"),
        ({"eval_dataset": "rows"}, InvalidField, "spec.eval_dataset"),
        ({"adapter": "tenants/other/adapters/redact"}, InvalidField, "spec.adapter"),
        ({"adapter": "tenants/acme/adapters/redact/versions/1"}, InvalidField, "spec.adapter"),
        ({"adapter": "tenants/acme/adapters/redact/aliases/prod"}, InvalidField, "spec.adapter"),
        ({"adapter": "redact"}, InvalidField, "spec.adapter"),
        ({"base": "bases/absent"}, NotFound, "bases/absent"),
        ({"base": "tenants/other/bases/secret"}, NotFound, "tenants/other/bases/secret"),
        ({"base": "tiny"}, InvalidField, "spec.base"),
        (
            {"lora": LoraSettings(rank=65)},
            InvalidField,
            "spec.lora.rank: is 65; this server serves ranks of 1 to 64",
        ),
        (
            {"lora": LoraSettings(rank_pattern={"q_proj": 65})},
            InvalidField,
            "spec.lora.rank_pattern.q_proj: is 65; this server serves",
        ),
        (
            {"base": "bases/int8", "method": Method.LORA},
            InvalidField,
            "stored as INT8; METHOD_LORA trains.*choose METHOD_QLORA",
        ),
        ({"base": "bases/fp16"}, InvalidField, "stored as FP16; METHOD_LORA trains.*choose another base"),
        (
            {"method": Method.QLORA},
            InvalidField,
            "spec.qlora: is for bases stored as INT8 or NF4; bases/tiny is FP32",
        ),
        ({"promote_if": PromoteIf(alias="Not An Id")}, InvalidField, "spec.promote_if.alias"),
        (
            {"promote_if": PromoteIf(alias="prod"), "data": DataOptions(holdout_fraction=0)},
            InvalidField,
            "spec.promote_if",
        ),
    ],
)
def test_a_refused_train_job_leaves_nothing(submission, place, add_base, change, error, said):
    add_base("tenants/other/bases/secret", WeightFormat.BF16)
    add_base("bases/int8", WeightFormat.INT8)
    add_base("bases/fp16", WeightFormat.FP16)
    for validate_only in (False, True):
        with pytest.raises(error, match=said):
            train(submission, SPEC.model_copy(update=change), validate_only=validate_only)
    assert stored(place) == []


def test_a_quantized_base_is_trained_with_qlora_where_no_method_is_named(submission, place, add_base):
    add_base("bases/int8", WeightFormat.INT8)
    job = train(submission, SPEC.model_copy(update={"base": "bases/int8"}))
    assert job.spec.method is Method.QLORA
    assert "method" in job.defaulted_from_base
    _, told = place.store.events(TENANT, job.id, 0, 10)
    assert told.body.text == (
        "METHOD_QLORA trains, since none was named and METHOD_LORA does not train on bases/int8: it is stored as INT8"
    )


def test_rows_that_cannot_be_trained_on_leave_nothing(submission, place, rows):
    rows.refusal = InvalidData("line 3 is too long")
    with pytest.raises(InvalidData):
        train(submission)
    assert stored(place) == []


def test_a_full_queue_is_refused_before_rows_are_read(submission, place, rows):
    for _ in range(2):
        train(submission)
    rows.asked.clear()
    for validate_only in (False, True):
        with pytest.raises(QuotaExceeded, match="2 jobs are used and 1 more wanted; allowed: 2"):
            train(submission, validate_only=validate_only)
        assert rows.asked == []
        with pytest.raises(QuotaExceeded):
            quantize(submission, validate_only=validate_only)
    assert len(stored(place)) == 2


def test_validate_only_checks_the_room_for_the_result_and_reserves_none(tmp_path, submission):
    place = Workplace(tmp_path, storage_bytes=1000)
    small = replace(submission, store=place.store)
    for validate_only in (False, True):
        for call in (train, quantize):
            with pytest.raises(QuotaExceeded, match="storage_bytes of tenants/acme"):
                call(small, validate_only=validate_only)
    place.close()
    for _ in range(3):
        assert train(submission, validate_only=True).name == ""
        assert quantize(submission, validate_only=True).name == ""


def test_a_repeated_call_gives_its_job_whatever_has_changed(submission, place, rows):
    request = RequestKey.of(TENANT, "r1", b"body")
    first = train(submission, request=request)
    train(submission)
    place.datasets.delete(TENANT, "rows")
    rows.asked.clear()
    assert train(submission, request=request) == first
    assert rows.asked == []
    with pytest.raises(RequestIdReused):
        train(submission, request=RequestKey.of(TENANT, "r1", b"else"))


# Quantize


def test_a_quantize_run_is_queued_with_its_base_written_back(submission, place):
    job = quantize(submission)
    assert place.job(job) == job
    assert (job.state, job.spec.base, job.display_name) == (JobState.QUEUED, "bases/tiny", "mine")


def test_quantize_validate_only_stores_nothing(submission, place):
    assert quantize(submission, validate_only=True).name == ""
    assert stored(place) == []


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"output_base_id": "Not An Id"}, InvalidField, "spec.output_base_id"),
        ({"output_base_id": ""}, InvalidField, "spec.output_base_id"),
        ({"output_base_id": "taken"}, AlreadyExists, "tenants/acme/bases/taken exists"),
        ({"base": "bases/absent"}, NotFound, "bases/absent"),
        ({"base": "tenants/other/bases/secret"}, NotFound, "tenants/other/bases/secret"),
        ({"base": "bases/int8"}, InvalidField, "spec.base: is bases/int8, INT8 already"),
        ({"dataset": "tenants/acme/datasets/absent"}, NotFound, "datasets/absent"),
        ({"dataset": "tenants/other/datasets/rows"}, NotFound, "tenants/other/datasets/rows"),
        (
            {"weight_format": WeightFormat.NF4, "quantize_embeddings": True},
            InvalidField,
            "spec.quantize_embeddings",
        ),
    ],
)
def test_a_refused_quantize_run_leaves_nothing(submission, place, add_base, change, error, said):
    add_base("tenants/other/bases/secret", WeightFormat.BF16)
    add_base("tenants/acme/bases/taken", WeightFormat.BF16)
    add_base("bases/int8", WeightFormat.INT8)
    with pytest.raises(error, match=said) as refusal:
        quantize(submission, **change)
    assert isinstance(refusal.value, FinetunedError)
    assert stored(place) == []


def test_names_of_other_tenants_bases_are_free(submission, add_base):
    add_base("tenants/other/bases/small", WeightFormat.BF16)
    assert quantize(submission).spec.output_base_id == "small"


def test_a_repeated_quantize_gives_its_job(submission):
    request = RequestKey.of(TENANT, "r1", b"body")
    assert quantize(submission, request=request) == quantize(submission, request=request)
