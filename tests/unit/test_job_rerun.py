"""A job's record becomes a spec again: what was set stays, what the old base decided is open."""

from __future__ import annotations

import pytest
from finetuned_service.datasets.kinds import RowKind
from finetuned_service.errors import InvalidField
from finetuned_service.jobs.methods import BaseFacts
from finetuned_service.jobs.rerun import BASE_DECIDES, METHOD_DECIDES, defaulted_from_base, spec_again
from finetuned_service.jobs.resolve import resolve_train
from finetuned_service.jobs.specs import DataOptions, LoraSettings, Optimization, TrainSpec
from finetuned_service.jobs.values import Job
from finetuned_service.vocabulary import Method, Task
from tiny_jobs import quantize_job, train_job

OLD = BaseFacts(hidden_size=64, context_tokens=256, linear_modules=("q_proj", "v_proj"))
NEW = BaseFacts(hidden_size=512, context_tokens=200, linear_modules=("qkv_proj",))
HEAD_RATE = "optimization.head_learning_rate"


def record_of(kind: RowKind | None = None, **asked: object) -> Job:
    """A job as the store has it, with its spec resolved on the old base."""
    job = train_job(**({"method": Method.LORA} | asked))
    assert isinstance(job.spec, TrainSpec)
    resolved = resolve_train(job.spec, base=OLD, train_rows=100, kind=kind)
    defaulted = defaulted_from_base(job.spec, job.spec.method)
    changes = {"id": "j1", "spec": resolved, "defaulted_from_base": defaulted}
    return job.model_copy(update=changes)


def options_of(record: Job) -> Optimization:
    assert isinstance(record.spec, TrainSpec)
    return record.spec.optimization


def test_what_the_old_base_decided_is_decided_anew():
    record = record_of(optimization=Optimization(max_steps=7))
    of_lora = {path for path in BASE_DECIDES if path.partition(".")[0] in {"lora", "optimization", "data"}}
    assert set(record.defaulted_from_base) == of_lora - {HEAD_RATE}
    asked_for_new = train_job(optimization=Optimization(max_steps=7), lora=LoraSettings()).spec
    assert isinstance(asked_for_new, TrainSpec)
    expected = resolve_train(asked_for_new.model_copy(update={"base": "bases/new"}), base=NEW, train_rows=100)
    again = resolve_train(spec_again(record, "bases/new"), base=NEW, train_rows=100)
    assert again == expected
    assert again.lora.target_modules == ("qkv_proj",)


def test_what_was_set_stays():
    lora = LoraSettings(rank=3, target_modules=("v_proj", "q_proj"))
    rate, longest = Optimization(learning_rate=0.125, epochs=2.0), DataOptions(max_row_tokens=100)
    record = record_of(lora=lora, optimization=rate, data=longest)
    assert record.defaulted_from_base == ()
    assert spec_again(record, "bases/tiny") == record.spec


def test_on_the_same_base_it_is_the_same_spec():
    record = record_of(lora=LoraSettings(rank=3))
    assert resolve_train(spec_again(record, "bases/tiny"), base=OLD, train_rows=100) == record.spec
    answers = record_of(RowKind.CHAT, lora=LoraSettings(rank=3))
    again = resolve_train(spec_again(answers, "bases/tiny"), base=OLD, train_rows=100, kind=RowKind.CHAT)
    assert again == answers.spec
    assert answers.spec != record.spec


def test_all_that_a_base_decides_of_one_method_is_open():
    record = record_of(method=Method.IA3)
    opened = spec_again(record, "bases/new").ia3
    assert (opened.target_modules, opened.feedforward_modules) == ((), None)


def test_a_method_that_nobody_named_is_open_and_its_epochs_with_it():
    asked = train_job().spec
    assert isinstance(asked, TrainSpec)
    defaulted = defaulted_from_base(asked, Method.LORA)
    assert {"method", "lora.target_modules", *METHOD_DECIDES} <= set(defaulted)
    record = record_of().model_copy(update={"defaulted_from_base": defaulted})
    again = spec_again(record, "bases/new")
    assert "method" not in again.model_fields_set
    over_a_head = again.model_copy(update={"method": Method.HEAD, "task": Task.IMAGE_CLASSIFICATION})
    assert resolve_train(over_a_head, base=NEW, train_rows=100).optimization.epochs == 30.0
    # As many steps as were asked for, whatever the method.
    steps = train_job(optimization=Optimization(max_steps=7)).spec
    assert isinstance(steps, TrainSpec)
    assert "optimization.max_steps" not in defaulted_from_base(steps, Method.LORA)


def test_the_rate_of_a_head_over_rows_is_kept_with_its_epochs():
    asked = train_job(task=Task.TEXT_CLASSIFICATION, method=Method.HEAD).spec
    assert isinstance(asked, TrainSpec)
    assert "optimization.learning_rate" not in defaulted_from_base(asked, Method.HEAD)
    decoder = asked.model_copy(update={"task": Task.TEXT_GENERATION})
    assert "optimization.learning_rate" in defaulted_from_base(decoder, Method.HEAD)
    # A record of a build before that says that the rate is the base's.
    own = Optimization(learning_rate=1e-2, epochs=30.0, max_steps=900)
    record = record_of(task=Task.TEXT_CLASSIFICATION, method=Method.HEAD, optimization=own).model_copy(
        update={"defaulted_from_base": ("head.pooling", "optimization.learning_rate")}
    )
    again = spec_again(record, "bases/new").optimization
    assert (again.learning_rate, again.epochs) == (1e-2, 30.0)


def test_the_rate_of_a_head_beside_other_parameters_is_the_bases():
    tagging = {"task": Task.TOKEN_CLASSIFICATION, "method": Method.LORA}
    record = record_of(**tagging)
    assert HEAD_RATE in record.defaulted_from_base
    assert options_of(record).head_learning_rate is not None
    assert spec_again(record, "bases/new").optimization.head_learning_rate is None
    # Builds before had one rate for both: where that was set, it stays the head's.
    of_old = record_of(**tagging, optimization=Optimization(learning_rate=2e-5))
    options = options_of(of_old).model_copy(update={"head_learning_rate": None})
    of_old = of_old.model_copy(
        update={
            "spec": of_old.spec.model_copy(update={"optimization": options}),
            "defaulted_from_base": tuple(p for p in of_old.defaulted_from_base if p != HEAD_RATE),
        }
    )
    again = resolve_train(spec_again(of_old, "bases/new"), base=NEW, train_rows=100)
    assert (again.optimization.learning_rate, again.optimization.head_learning_rate) == (2e-5, 2e-5)
    # Where the base decides the method, there may be no such head.
    unnamed = of_old.model_copy(update={"defaulted_from_base": ("method", *of_old.defaulted_from_base)})
    assert spec_again(unnamed, "bases/new").optimization.head_learning_rate is None
    own = record_of(**tagging, optimization=Optimization(head_learning_rate=0.25))
    assert spec_again(own, "bases/new").optimization.head_learning_rate == 0.25


def test_modules_that_were_set_and_that_the_new_base_lacks_are_refused():
    record = record_of(lora=LoraSettings(target_modules=("q_proj",)))
    with pytest.raises(InvalidField, match="names 'q_proj'; the base's linear modules are qkv_proj"):
        resolve_train(spec_again(record, "bases/new"), base=NEW, train_rows=100)


def test_a_record_of_an_older_build_keeps_all_its_settings():
    record = record_of().model_copy(update={"defaulted_from_base": ()})
    assert spec_again(record, "bases/tiny") == record.spec


def test_a_quantize_run_is_refused():
    with pytest.raises(InvalidField, match=r"rerun_of: is .*, a Quantize run"):
        spec_again(quantize_job().model_copy(update={"id": "j1"}), "")
