"""A TrainJob again, from its own record: on another base, with what the old base had decided left open."""

from __future__ import annotations

from finetuned_service.datasets.store import Dataset
from finetuned_service.errors import InvalidField, RerunRefused
from finetuned_service.jobs.methods import SETTINGS_OF, trains_beside_head
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.jobs.values import Job
from finetuned_service.vocabulary import Method, Task

_RATE, _HEAD_RATE = "optimization.learning_rate", "optimization.head_learning_rate"
BASE_DECIDES = (
    "lora.target_modules",
    "head.pooling",
    "ia3.target_modules",
    "ia3.feedforward_modules",
    "bottleneck.target_modules",
    "bottleneck.width",
    "layers.last",
    "layers.layers",
    _RATE,
    _HEAD_RATE,
    "data.max_row_tokens",
)
"""What `jobs/resolve.py` chooses from the base where it is not set; all else it fills in from the spec
itself or the data, so that it comes out the same on any base."""
METHOD_DECIDES = ("optimization.epochs", "optimization.max_steps", "optimization.checkpoint_interval_steps")
"""What it chooses from the method and the kind of rows, too; open where the method is."""
METHOD = "method"
_LISTS = ("target_modules", "layers.layers")


def defaulted_from_base(asked: TrainSpec, method: Method) -> tuple[str, ...]:
    """Which settings of a spec, as its caller wrote it, are the base's to decide; `method` is what trains."""
    method_named = METHOD in asked.model_fields_set
    others = set(SETTINGS_OF.values()) - {SETTINGS_OF[method]}
    decided = BASE_DECIDES if method_named else (*BASE_DECIDES, *METHOD_DECIDES)
    trained = asked.model_copy(update={"method": method})
    unset = (
        path
        for path in decided
        if path.partition(".")[0] not in others
        and _value(asked, path) in {None, ()}
        and not (method_named and _follows_from_rows(trained, path))
        and (path != _HEAD_RATE or not method_named or trains_beside_head(trained))
    )
    return tuple(unset) if method_named else (METHOD, *unset)


def spec_again(record: Job, base: str) -> TrainSpec:
    """The spec of a job of old, to be resolved on `base`; "" is the server's.

    Raises:
        InvalidField: the job was no TrainJob.
    """
    spec = record.spec
    if not isinstance(spec, TrainSpec):
        raise InvalidField.one(
            "rerun_of", f"is {record.name!r}, a Quantize run; only TrainJobs can be run again this way"
        )
    again = spec.model_copy(update={"base": base})
    if METHOD in record.defaulted_from_base:
        again = TrainSpec.model_validate(again.model_dump(exclude={METHOD}))
    for path in record.defaulted_from_base:
        # Records of older builds name it, too.
        fixed = METHOD not in record.defaulted_from_base and _follows_from_rows(spec, path)
        if path == METHOD or fixed:
            continue
        group, _, setting = path.partition(".")
        unset = () if path.endswith(_LISTS) else None
        settings = getattr(again, group).model_copy(update={setting: unset})
        again = again.model_copy(update={group: settings})
    options = spec.optimization
    if (
        trains_beside_head(spec)
        and options.head_learning_rate is None
        and not {METHOD, _RATE} & set(record.defaulted_from_base)
    ):
        # Heads had no rate of their own in older builds, and this one's was set.
        kept = again.optimization.model_copy(update={"head_learning_rate": options.learning_rate})
        again = again.model_copy(update={"optimization": kept})
    return again


def _follows_from_rows(spec: TrainSpec, path: str) -> bool:
    """The rate of a head over a base that encodes goes with its epochs and its rows, whatever the base."""
    return path == _RATE and spec.method is Method.HEAD and spec.task is not Task.TEXT_GENERATION


def refuse_changed(record: Job, rows: Dataset, held_out: Dataset | None) -> None:
    """Refuse datasets that have other content than when the job ran. What a job that never ran would have
    read is not known, and not compared.

    Raises:
        RerunRefused: naming the dataset and both digests.
    """
    if record.environment is None:
        return
    recorded = (record.environment.dataset_digest, record.environment.eval_dataset_digest)
    for digest, dataset in zip(recorded, (rows, held_out), strict=True):
        if digest and dataset is not None and dataset.digest != digest:
            raise RerunRefused(
                f"{dataset.name} has the digest {dataset.digest}; {record.name} was trained on {digest}. Upload "
                "those rows again under that name, or start a TrainJob of its own on the new ones",
                metadata={
                    "dataset": dataset.name,
                    "recorded_digest": digest,
                    "found_digest": dataset.digest,
                },
            )


def _value(spec: TrainSpec, path: str) -> object:
    group, _, setting = path.partition(".")
    return getattr(getattr(spec, group), setting)
