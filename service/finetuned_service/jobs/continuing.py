"""A TrainJob that goes on from weights that are there: which they may be, and what they decide of its settings.

What this reads is an adapter's configuration; its tensors are compared with the model by the job process.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from finetuned_service.adapters.config_keys import CONFIG_FILE
from finetuned_service.adapters.files import stored_head
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.head import Head, Problem
from finetuned_service.adapters.layouts import parse_layout
from finetuned_service.adapters.layouts.head import HeadLayout
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.datasets.kinds import RowKind
from finetuned_service.errors import AdapterIncompatible, InvalidField, NotFound
from finetuned_service.jobs.methods import (
    SETTINGS_OF,
    BaseFacts,
    Stored,
    kind_of,
    resolve_method,
    stored_settings,
    trains_as_stored,
)
from finetuned_service.jobs.specs import Settings, TrainSpec
from finetuned_service.jobs.store import JobStore
from finetuned_service.jobs.task import LAST_GOOD
from finetuned_service.jobs.values import Job
from finetuned_service.names import AdapterSelector, ResourceName
from finetuned_service.vocabulary import DataReport, Method, Task

_FIELD = "spec.continue_from"
_SHOWN_LABELS = 5


@dataclass(frozen=True, slots=True)
class Start:
    """Weights to start from."""

    name: str
    """Of the version, or of the job whose last good checkpoint it is."""
    directory: Path
    base_digest: str
    method: Method
    task: Task


def find_start(
    tenant: str, name: str, registry: AdapterRegistry, store: JobStore, jobs_directory: Path
) -> Start:
    """What `continue_from` names: a version, by number or alias, or a job whose loss diverged.

    Raises:
        NotFound: it does not exist, or is another tenant's.
        InvalidField: it is something else, or a job that has kept no checkpoint.
    """
    if "/jobs/" in name:
        return _job(tenant, ResourceName.parse(name, "jobs", _FIELD), store, jobs_directory)
    selector = AdapterSelector.parse(name, _FIELD)
    if selector.tenant != tenant:
        raise NotFound.resource(name)
    version = registry.resolve(selector)
    manifest = version.manifest
    return Start(version.name, version.directory, manifest.base_digest, manifest.method, manifest.task)


def _job(tenant: str, name: ResourceName, store: JobStore, jobs_directory: Path) -> Start:
    if name.tenant != tenant:
        raise NotFound.resource(str(name))
    job = store.get(tenant, name.id)
    directory = jobs_directory / job.id / LAST_GOOD
    if not isinstance(job.spec, TrainSpec) or job.environment is None or not directory.is_dir():
        raise InvalidField.one(
            _FIELD,
            f"names {job.name}, which is {job.state} and has kept no checkpoint; jobs whose loss diverged do. "
            "Name the version that it made, or start from the base",
        )
    return Start(job.name, directory, job.environment.base_digest, job.spec.method, job.spec.task)


def directory_of(job: Job, spec: TrainSpec, registry: AdapterRegistry, jobs_directory: Path) -> Path | None:
    """Where the weights lie that an accepted job starts from; None if it starts from the base.

    Raises:
        NotFound: they have been deleted since.
    """
    if not spec.continue_from:
        return None
    if spec.continues_version:
        return registry.resolve(AdapterSelector.parse(spec.continue_from)).directory
    directory = jobs_directory / ResourceName.parse(spec.continue_from, "jobs").id / LAST_GOOD
    if not directory.is_dir():
        raise NotFound.resource(spec.continue_from)
    return directory


def continued(spec: TrainSpec, start: Start, base_digest: str, base_directory: Path) -> TrainSpec:
    """The spec with what the weights decide; what the caller has set otherwise is refused.

    Raises:
        AdapterIncompatible: they are of another base.
        InvalidField: they are of another method, task or shape.
    """
    if start.base_digest != base_digest:
        raise AdapterIncompatible(
            f"{_FIELD} names {start.name}, made for the base {start.base_digest}; this job trains on {base_digest}. "
            "Name its base in spec.base, or train on this one without continue_from",
            metadata={"adapter_base_digest": start.base_digest, "server_base_digest": base_digest},
        )
    if kind_of(start.method) is not kind_of(spec.method):
        raise InvalidField.one(
            _FIELD,
            f"names {start.name}, of method {start.method}; this job's is {spec.method}, which trains other "
            f"parameters. Use METHOD_{start.method}, or train without continue_from",
        )
    if start.task is not spec.task:
        raise InvalidField.one(
            _FIELD,
            f"names {start.name}, for the task {start.task}; this job's is {spec.task}. Set spec.task to {start.task}, "
            "or train without continue_from",
        )
    layout = parse_layout((start.directory / CONFIG_FILE).read_bytes())
    facts, geometry = BaseFacts.of_directory(base_directory), BaseGeometry.of_files(base_directory)
    with_head = _with_pooling(spec, start, layout.head)
    body = layout.body if isinstance(layout, HeadLayout) else layout
    made = _with_settings(with_head, start, stored_settings(body, facts, geometry)) if body else with_head
    if body and not trains_as_stored(body, resolve_method(made, facts), geometry):
        choosable = spec.method is not Method.FULL and not (
            spec.method is Method.HEAD and spec.task is Task.TEXT_GENERATION
        )
        raise InvalidField.one(
            f"spec.{SETTINGS_OF[spec.method]}",
            f"chooses other parameters of the base than {start.name} holds, and continuing keeps them. "
            + ("Leave it out, or train" if choosable else "Train")
            + " without continue_from",
        )
    return made.model_copy(update={"continue_from": start.name})


def refuse_other_head(start: Start, rows: RowKind, report: DataReport) -> None:
    """Say that the rows have other labels than the head to continue, or want another kind of answer.

    Raises:
        InvalidField: naming some of both.
    """
    head = stored_head(start.directory)
    if head is None:
        return
    problem = _PROBLEMS.get(rows, Problem.SINGLE_LABEL)
    if problem is not head.problem:
        raise InvalidField.one(
            "spec.dataset",
            f"holds {rows} rows, which want a head for {problem}; {start.name} has one for {head.problem}. Use rows "
            "of the same kind, or train without continue_from",
        )
    known = head.labels
    found = tuple(sorted({count.label for count in (*report.train_labels, *report.eval_labels)}))
    if found != known and found == tuple(sorted(known)):
        raise InvalidField.one(
            _FIELD,
            f"names {start.name}, whose head has the labels of the rows in another order than a TrainJob gives them; "
            "an older server has imported it so. Export it and import it again, which sorts them",
        )
    if found != known:
        raise InvalidField.one(
            "spec.dataset",
            f"has the labels {_some(found)}; {start.name} has {_some(known)}, and continuing keeps them in their "
            "order. Use rows with the same labels, or train without continue_from",
        )


_PROBLEMS = {
    RowKind.MULTI_LABEL_TEXT: Problem.MULTI_LABEL,
    RowKind.SCORED_TEXT: Problem.REGRESSION,
}
"""What a head is for over rows of each kind; the others have one label each."""


def _with_settings(spec: TrainSpec, start: Start, stored: Stored) -> TrainSpec:
    part = SETTINGS_OF[spec.method]
    wanted: Settings = getattr(spec, part)
    given = [key for key in wanted.model_fields_set if getattr(wanted, key) not in _UNSET]
    if spec.method is Method.LAYERS and given:
        # Several choices may come to the same parameters.
        return spec
    path = "spec.qlora.lora" if spec.method is Method.QLORA else f"spec.{part}"
    for key in sorted(stored.settings.keys() & set(given)):
        if not stored.agrees(key, getattr(wanted, key)):
            _refuse_other(f"{path}.{key}", getattr(wanted, key), stored.settings[key], start)
    return spec.model_copy(update={part: wanted.model_copy(update=dict(stored.settings))})


def _with_pooling(spec: TrainSpec, start: Start, head: Head | None) -> TrainSpec:
    if head is None or head.pooling is None:
        return spec
    given = spec.head.pooling
    if given not in {None, head.pooling}:
        _refuse_other("spec.head.pooling", given, head.pooling, start)
    return spec.model_copy(update={"head": spec.head.model_copy(update={"pooling": head.pooling})})


_UNSET = (None, (), {}, False)
"""What the contract cannot tell from what was left out."""


def _refuse_other(field: str, given: object, found: object, start: Start) -> NoReturn:
    shown = [str(v) if isinstance(v, StrEnum) else repr(v) for v in (given, found)]
    raise InvalidField.one(
        field, f"is {shown[0]}; {start.name} has {shown[1]}, and continuing keeps its shape. Leave it out"
    )


def _some(labels: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, labels[:_SHOWN_LABELS]))
    more = len(labels) - _SHOWN_LABELS
    return f"{shown} and {more} more" if more > 0 else shown or "none"
