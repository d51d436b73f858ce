"""What the fake server makes of a TrainJob's spec: gaps filled as the service fills them, and its refusals.

Numbers are not checked, but for the rank of LORA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from finetuned.errors import InvalidField, NotFound, Unimplemented
from finetuned.testing._store import Store, check_name, lookup
from finetuned.testing._versions import resolve as resolve_version
from finetuned.v1 import base_service_pb2, common_pb2, dataset_service_pb2, job_pb2

_OF_TEXT_ENCODERS = ("ia3", "bottleneck", "layers", "full")
METHODS_OF_TASK: Mapping[str, tuple[str, ...]] = {
    "TEXT_GENERATION": ("lora", "qlora", "ia3", "bottleneck", "head", "layers", "full"),
    "TEXT_CLASSIFICATION": ("lora", "head", *_OF_TEXT_ENCODERS),
    "TOKEN_CLASSIFICATION": ("lora", "head", *_OF_TEXT_ENCODERS),
    "FEATURE_EXTRACTION": ("lora", *_OF_TEXT_ENCODERS),
    "IMAGE_CLASSIFICATION": ("lora", "head", "layers", "full"),
}
"""As the contract names their fields; the first that the base takes is the usual way."""

KINDS_OF_TASK: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "TEXT_GENERATION": {"SFT": ("PROMPT_COMPLETION", "CHAT", "TEXT"), "DPO": ("PREFERENCE",)},
    "TEXT_CLASSIFICATION": {"CLASSIFICATION": ("LABELLED_TEXT", "MULTI_LABEL_TEXT", "SCORED_TEXT")},
    "TOKEN_CLASSIFICATION": {"CLASSIFICATION": ("LABELLED_TOKENS",)},
    "FEATURE_EXTRACTION": {"CONTRASTIVE": ("PAIR", "SCORED_PAIR")},
    "IMAGE_CLASSIFICATION": {"CLASSIFICATION": ("LABELLED_IMAGE",)},
}
"""Kinds of rows by objective, the usual one first."""

GENERATION_FIGURES: Mapping[str, tuple[str, ...]] = {
    "SFT": ("exact_match", "loss"),
    "DPO": ("reward_accuracy", "reward_margin", "loss"),
}
FIGURES_OF_ROWS: Mapping[str, tuple[str, ...]] = {
    "LABELLED_TEXT": ("macro_f1", "accuracy", "loss"),
    "MULTI_LABEL_TEXT": ("macro_f1", "micro_f1", "exact_match", "loss"),
    "SCORED_TEXT": ("spearman", "pearson", "mean_absolute_error", "loss"),
    "LABELLED_TOKENS": ("entity_f1", "accuracy", "loss"),
    "LABELLED_IMAGE": ("accuracy", "macro_f1", "loss"),
    "PAIR": ("mrr_at_10", "recall_at_1", "recall_at_10"),
    "SCORED_PAIR": ("spearman", "pearson"),
}
"""What may decide a promotion, by what is held out; the first does where nobody says."""

_PACKED = {common_pb2.WEIGHT_FORMAT_INT8, common_pb2.WEIGHT_FORMAT_NF4}


def task_of(spec: job_pb2.TrainSpec) -> str:
    """Without its prefix."""
    return common_pb2.Task.Name(spec.task).removeprefix("TASK_")


def figures_of(spec: job_pb2.TrainSpec, held_out: dataset_service_pb2.Dataset) -> tuple[str, ...]:
    """What is measured of a version of a resolved spec on such rows; the usual one first."""
    if spec.task == common_pb2.TASK_TEXT_GENERATION:
        if held_out.row_kind == dataset_service_pb2.ROW_KIND_TEXT:
            return ("loss",)
        return GENERATION_FIGURES[common_pb2.Objective.Name(spec.objective).removeprefix("OBJECTIVE_")]
    return FIGURES_OF_ROWS[_kind(held_out)]


def resolve(store: Store, tenant: str, spec: job_pb2.TrainSpec) -> None:
    """Fill the gaps of a spec, `continue_from` aside; the caller holds the lock.

    Raises:
        Unimplemented: the task has no such method or objective.
        NotFound: the dataset or the base does not exist, or is another tenant's.
        InvalidField: what is set does not fit the rest.
    """
    spec.task = spec.task or common_pb2.TASK_TEXT_GENERATION
    _resolve_objective_asked(spec)
    _refuse_method(spec)
    check_name(spec.adapter, f"tenants/{tenant}/adapters/{{}}", "spec.adapter")
    rows = _dataset(store, tenant, spec.dataset, "spec.dataset")
    held_out = _dataset(store, tenant, spec.eval_dataset, "spec.eval_dataset") if spec.eval_dataset else rows
    _resolve_objective(spec, _kind(rows))
    _refuse_other_kind(spec, rows, held_out)
    base = named_base(store, tenant, spec.base)
    if spec.WhichOneof("method") is None:
        getattr(spec, _usual_method(store, spec, base)).SetInParent()
    _refuse_format(spec, base)
    spec.base = base.name
    _refuse_unread(spec)
    _resolve_settings(spec)
    _resolve_promotion(spec, held_out)


def named_base(store: Store, tenant: str, name: str) -> base_service_pb2.Base:
    """A shared base or one of the tenant's own; "" is the server's.

    Raises:
        NotFound: it does not exist, or is another tenant's.
    """
    name = name or store.resident
    owner, _ = check_name(name, "(?:tenants/{}/)?bases/{}", "spec.base")
    if owner not in {None, tenant}:
        raise NotFound(f"{name!r} does not exist or is not yours", metadata={"resource": name})
    return lookup(store.bases, name)


def unimplemented(feature: str, available: Iterable[str], of_task: str = "") -> Unimplemented:
    return Unimplemented(
        f"{feature}{of_task} is not available: it is in the contract but not in this build; available: "
        f"{', '.join(available)}",
        metadata={"feature": feature},
    )


def _dataset(store: Store, tenant: str, name: str, field: str) -> dataset_service_pb2.Dataset:
    check_name(name, "tenants/{}/datasets/{}", field)
    if not name.startswith(f"tenants/{tenant}/"):
        raise NotFound(f"{name!r} does not exist or is not yours", metadata={"resource": name})
    return lookup(store.datasets, name)


def _resolve_objective_asked(spec: job_pb2.TrainSpec) -> None:
    task = task_of(spec)
    objectives = KINDS_OF_TASK[task]
    asked = common_pb2.Objective.Name(spec.objective).removeprefix("OBJECTIVE_")
    if spec.objective and asked not in objectives:
        available = [f"OBJECTIVE_{objective}" for objective in objectives]
        raise unimplemented(f"OBJECTIVE_{asked} for TASK_{task}", available)


def _refuse_method(spec: job_pb2.TrainSpec) -> None:
    task = task_of(spec)
    allowed = METHODS_OF_TASK[task]
    method = spec.WhichOneof("method")
    if method is not None and method not in allowed:
        available = [f"METHOD_{name.upper()}" for name in allowed]
        raise unimplemented(f"METHOD_{method.upper()}", available, f" for TASK_{task}")
    if spec.lora.HasField("rank") and not 1 <= spec.lora.rank <= 256:
        raise InvalidField.one("spec.lora.rank", f"is {spec.lora.rank}; allowed: 1 to 256")


def _usual_method(store: Store, spec: job_pb2.TrainSpec, base: base_service_pb2.Base) -> str:
    """Of the weights that are continued, or the first of the task's that the base takes."""
    usual, name = "lora", spec.continue_from
    if "/jobs/" in name:
        usual = lookup(store.jobs, name).job.train.WhichOneof("method") or usual
    elif name:
        state, number = resolve_version(store, name, "spec.continue_from")
        usual = common_pb2.Method.Name(state.versions[number].method).removeprefix("METHOD_").lower()
    if usual not in {"lora", "qlora"}:
        return usual
    packed = base.weight_format in _PACKED and "qlora" in METHODS_OF_TASK[task_of(spec)]
    return "qlora" if packed else "lora"


def _resolve_objective(spec: job_pb2.TrainSpec, kind: str) -> None:
    objectives = KINDS_OF_TASK[task_of(spec)]
    fitting = [objective for objective, kinds in objectives.items() if kind in kinds]
    if not spec.objective:
        spec.MergeFrom(job_pb2.TrainSpec(objective=f"OBJECTIVE_{[*fitting, *objectives][0]}"))
    objective = common_pb2.Objective.Name(spec.objective).removeprefix("OBJECTIVE_")
    if kind not in objectives[objective]:
        raise InvalidField.one(
            "spec.dataset",
            f"{spec.dataset} holds {kind} rows; the task {task_of(spec)} with OBJECTIVE_{objective} trains on "
            f"{' or '.join(objectives[objective])} rows: choose another dataset",
        )


def _refuse_other_kind(
    spec: job_pb2.TrainSpec, rows: dataset_service_pb2.Dataset, held_out: dataset_service_pb2.Dataset
) -> None:
    """What is written, and vectors, are measured on other kinds of rows as well."""
    objective = common_pb2.Objective.Name(spec.objective).removeprefix("OBJECTIVE_")
    several = objective in {"SFT", "CONTRASTIVE"}
    allowed = KINDS_OF_TASK[task_of(spec)][objective] if several else (_kind(rows),)
    if _kind(held_out) not in allowed:
        raise InvalidField.one(
            "spec.eval_dataset",
            f"{held_out.name} holds {_kind(held_out)} rows; {rows.name} is evaluated on "
            f"{' or '.join(allowed)} rows: choose another dataset",
        )


def _kind(dataset: dataset_service_pb2.Dataset) -> str:
    return dataset_service_pb2.RowKind.Name(dataset.row_kind).removeprefix("ROW_KIND_")


def _refuse_format(spec: job_pb2.TrainSpec, base: base_service_pb2.Base) -> None:
    packed, quantized = base.weight_format in _PACKED, spec.WhichOneof("method") == "qlora"
    if quantized and not packed:
        raise InvalidField.one(
            "spec.qlora",
            f"is for bases stored as INT8 or NF4; {base.name} is not. Quantize it first and name the result in "
            "spec.base, or choose METHOD_LORA",
        )
    if packed and not quantized:
        raise InvalidField.one(
            "spec.base",
            f"is {base.name}, which is quantized: choose METHOD_QLORA, or the base it was made from",
        )


def _refuse_unread(spec: job_pb2.TrainSpec) -> None:
    """Settings of another task or objective than the job's."""
    read = {
        "dpo": spec.objective == common_pb2.OBJECTIVE_DPO,
        "classification": spec.objective == common_pb2.OBJECTIVE_CLASSIFICATION,
        "contrastive": spec.objective == common_pb2.OBJECTIVE_CONTRASTIVE,
    }
    for field, is_read in read.items():
        if spec.HasField(field) and not is_read:
            raise InvalidField.one(f"spec.{field}", "is set, and the job does not read it; leave it out")
    if spec.optimization.HasField("head_learning_rate") and not _trains_beside_head(spec):
        said = "is set, and no head trains beside other parameters: set learning_rate, or leave it out"
        raise InvalidField.one("spec.optimization.head_learning_rate", said)


def _trains_beside_head(spec: job_pb2.TrainSpec) -> bool:
    return spec.objective == common_pb2.OBJECTIVE_CLASSIFICATION and spec.WhichOneof("method") != "head"


def _resolve_settings(spec: job_pb2.TrainSpec) -> None:
    """The service's defaults, but for those that it chooses from the base and the number of rows."""
    contrastive = spec.objective == common_pb2.OBJECTIVE_CONTRASTIVE
    optimization, lora = (
        spec.optimization,
        spec.qlora.lora if spec.WhichOneof("method") == "qlora" else spec.lora,
    )
    _fill(optimization, batch_rows=32 if contrastive else 8, warmup_fraction=0.05, weight_decay=0.0)
    _fill(optimization, max_gradient_norm=1.0, seed=0, kept_checkpoints=2, learning_rate=1e-3)
    _fill(optimization, micro_batch_rows=optimization.batch_rows, checkpoint_interval_steps=5)
    optimization.schedule = optimization.schedule or job_pb2.LEARNING_RATE_SCHEDULE_COSINE
    _fill(spec.data, holdout_fraction=0.1, max_row_tokens=1024)
    spec.data.long_rows = spec.data.long_rows or job_pb2.LONG_ROWS_REJECT
    spec.evaluation.baseline.SetInParent()
    _fill(spec.evaluation, evaluations=4, early_stopping_patience=2)
    _fill(spec.evaluation, generation_rows=100, generation_max_tokens=128)
    if spec.WhichOneof("method") in {"lora", "qlora"}:
        _fill(lora, rank=16, dropout=0.0)
        _fill(lora, alpha=8.0 if lora.rank_stabilized else 2.0 * lora.rank)
    if spec.objective == common_pb2.OBJECTIVE_DPO:
        _fill(spec.dpo, beta=0.1, label_smoothing=0.0)
    if _trains_beside_head(spec):
        _fill(optimization, head_learning_rate=optimization.learning_rate)
    if contrastive:
        _fill(spec.contrastive, scale=20.0)
    if spec.objective == common_pb2.OBJECTIVE_CLASSIFICATION and not spec.classification.class_weights:
        words = spec.task == common_pb2.TASK_TOKEN_CLASSIFICATION or spec.classification.label_weights
        spec.classification.class_weights = (
            job_pb2.CLASS_WEIGHTS_NONE if words else job_pb2.CLASS_WEIGHTS_BALANCED
        )


def _fill(message: Any, **defaults: float) -> None:
    for field, value in defaults.items():
        if not message.HasField(field):
            setattr(message, field, value)


def _resolve_promotion(spec: job_pb2.TrainSpec, held_out: dataset_service_pb2.Dataset) -> None:
    if not spec.HasField("promote_if"):
        return
    if not spec.eval_dataset and spec.data.holdout_fraction == 0:
        raise InvalidField.one("spec.promote_if", "needs held-out rows to measure; give an eval_dataset")
    promotion, measured = spec.promote_if, figures_of(spec, held_out)
    promotion.metric = promotion.metric or measured[0]
    if promotion.metric not in measured:
        answers = spec.task == common_pb2.TASK_TEXT_GENERATION
        way = (
            common_pb2.Objective.Name(spec.objective)
            if answers
            else f"the task {task_of(spec).lower().replace('_', '-')} with such rows"
        )
        raise InvalidField.one(
            "spec.promote_if.metric", f"is {promotion.metric!r}; {way} measures {', '.join(measured)}"
        )
