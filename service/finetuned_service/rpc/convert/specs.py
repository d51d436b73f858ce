"""Specs and filters of jobs, from the contract to our values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetuned.v1 import common_pb2 as common
from finetuned.v1 import job_pb2 as pb
from finetuned.v1 import tuning_service_pb2 as service

from finetuned_service.errors import InvalidField, Unimplemented
from finetuned_service.jobs.specs import (
    Baseline,
    BaselineExample,
    ClassificationOptions,
    ContrastiveOptions,
    DataOptions,
    DpoSettings,
    EvaluationOptions,
    LongRows,
    Optimization,
    PromoteIf,
    QuantizeSpec,
    Schedule,
    TrainSpec,
)
from finetuned_service.jobs.states import JobState, Priority
from finetuned_service.jobs.store import JobFilter
from finetuned_service.names import AdapterSelector
from finetuned_service.rpc.convert.common import checked, enum_name, given, optional
from finetuned_service.rpc.convert.methods import method_from_proto
from finetuned_service.vocabulary import ClassWeights, Objective, Task, WeightFormat


@dataclass(frozen=True, slots=True)
class _Usual:
    """How a task is trained in this build."""

    objectives: tuple[str, ...]
    batch_rows: int = 8
    """More where the rows of a batch are each other's negatives."""


_USUAL: Mapping[str, _Usual] = {
    "TEXT_GENERATION": _Usual(("SFT", "DPO")),
    "TEXT_CLASSIFICATION": _Usual(("CLASSIFICATION",)),
    "TOKEN_CLASSIFICATION": _Usual(("CLASSIFICATION",)),
    "IMAGE_CLASSIFICATION": _Usual(("CLASSIFICATION",)),
    "FEATURE_EXTRACTION": _Usual(("CONTRASTIVE",), batch_rows=32),
}


def train_spec_from_proto(spec: pb.TrainSpec) -> TrainSpec:
    """Read a spec, with every setting checked.

    Raises:
    InvalidField: a setting is not allowed.
    Unimplemented: a method, task or objective of later builds.
    """
    task = enum_name(common.Task, spec.task, "TASK_", "spec.task") or "TEXT_GENERATION"
    if task not in _USUAL:
        raise Unimplemented.feature(
            f"TASK_{task} in a TrainJob", ", ".join(f"TASK_{name}" for name in _USUAL)
        )
    usual = _USUAL[task]
    objective = enum_name(common.Objective, spec.objective, "OBJECTIVE_", "spec.objective")
    if objective not in {"", *usual.objectives}:
        raise Unimplemented.feature(
            f"OBJECTIVE_{objective} for TASK_{task}",
            ", ".join(f"OBJECTIVE_{name}" for name in usual.objectives),
        )
    return TrainSpec(
        dataset=spec.dataset,
        eval_dataset=spec.eval_dataset,
        adapter=spec.adapter,
        base=spec.base,
        task=Task[task],
        objective=Objective(objective) if objective else None,
        dpo=_dpo(spec.dpo) if spec.HasField("dpo") else None,
        **method_from_proto(spec, Task[task]),
        classification=_classification(spec.classification),
        contrastive=checked("spec.contrastive", ContrastiveOptions, **given(spec.contrastive, scale="scale")),
        optimization=_optimization(spec.optimization, usual),
        data=_data_options(spec.data),
        evaluation=_evaluation(spec.evaluation),
        promote_if=_promote_if(spec.promote_if) if spec.HasField("promote_if") else None,
        continue_from=spec.continue_from,
    )


def _dpo(dpo: pb.DpoSettings) -> DpoSettings:
    return checked("spec.dpo", DpoSettings, **given(dpo, beta="beta", label_smoothing="label_smoothing"))


def _classification(options: pb.ClassificationOptions) -> ClassificationOptions:
    weights = enum_name(
        pb.ClassWeights, options.class_weights, "CLASS_WEIGHTS_", "spec.classification.class_weights"
    )
    return checked(
        "spec.classification",
        ClassificationOptions,
        class_weights=ClassWeights(weights) if weights else None,
        label_weights=dict(options.label_weights),
    )


def _optimization(optimization: pb.Optimization, usual: _Usual) -> Optimization:
    schedule = enum_name(
        pb.LearningRateSchedule,
        optimization.schedule,
        "LEARNING_RATE_SCHEDULE_",
        "spec.optimization.schedule",
    )
    names = [f.name for f in optimization.DESCRIPTOR.fields if f.name != "schedule"]
    return checked(
        "spec.optimization",
        Optimization,
        schedule=Schedule(schedule or Schedule.COSINE),
        **({"batch_rows": usual.batch_rows} | given(optimization, **{name: name for name in names})),
    )


def _data_options(data: pb.DataOptions) -> DataOptions:
    long_rows = enum_name(pb.LongRows, data.long_rows, "LONG_ROWS_", "spec.data.long_rows")
    return checked(
        "spec.data",
        DataOptions,
        long_rows=LongRows(long_rows or LongRows.REJECT),
        train_on_prompt=data.train_on_prompt,
        **given(data, holdout_fraction="holdout_fraction", max_row_tokens="max_row_tokens"),
    )


def _evaluation(evaluation: pb.EvaluationOptions) -> EvaluationOptions:
    baseline = checked(
        "spec.evaluation.baseline",
        Baseline,
        instruction=evaluation.baseline.instruction,
        examples=tuple(
            BaselineExample(prompt=e.prompt, completion=e.completion) for e in evaluation.baseline.examples
        ),
    )
    names = ("evaluations", "early_stopping_patience", "generation_rows", "generation_max_tokens")
    return checked(
        "spec.evaluation",
        EvaluationOptions,
        baseline=baseline,
        **given(evaluation, **{name: name for name in names}),
    )


def _promote_if(promote_if: pb.PromoteIf) -> PromoteIf:
    return checked(
        "spec.promote_if",
        PromoteIf,
        alias=promote_if.alias,
        metric=promote_if.metric,
        minimum=optional(promote_if, "minimum"),
        better_than_current=promote_if.better_than_current,
    )


def quantize_spec_from_proto(spec: pb.QuantizeSpec) -> QuantizeSpec:
    """Read a spec, with every setting checked.

    Raises:
    InvalidField: a setting is not allowed.
    Unimplemented: a format of later builds.
    """
    name = enum_name(common.WeightFormat, spec.weight_format, "WEIGHT_FORMAT_", "spec.weight_format")
    if not name:
        raise InvalidField.one(
            "spec.weight_format", "is not set; allowed: WEIGHT_FORMAT_INT8, WEIGHT_FORMAT_NF4"
        )
    if name not in {"INT8", "NF4"}:
        raise Unimplemented.feature(f"WEIGHT_FORMAT_{name}", "WEIGHT_FORMAT_INT8, WEIGHT_FORMAT_NF4")
    return checked(
        "spec",
        QuantizeSpec,
        base=spec.base,
        output_base_id=spec.output_base_id,
        weight_format=WeightFormat(name),
        dataset=spec.dataset,
        max_quality_drop=optional(spec, "max_quality_drop"),
        quantize_embeddings=spec.quantize_embeddings,
    )


def priority_from_proto(priority: pb.JobPriority) -> Priority:
    name = enum_name(pb.JobPriority, priority, "JOB_PRIORITY_", "priority")
    return Priority(name) if name else Priority.NORMAL


def job_filter_from_proto(request: service.ListJobsRequest) -> JobFilter:
    states = [enum_name(pb.JobState, state, "JOB_STATE_", "states") for state in request.states]
    kind = enum_name(service.JobKind, request.kind, "JOB_KIND_", "kind").lower()
    adapter = AdapterSelector.parse(request.adapter, "adapter").adapter if request.adapter else ""
    return JobFilter(tuple(JobState(state) for state in states if state), kind, adapter)
