"""A TrainJob that goes on from weights that are there: which they may be, and what they decide of its settings.

What this reads is an adapter's configuration; its tensors are compared with the model by the job process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuned_service.adapters.config_keys import CONFIG_FILE
from finetuned_service.adapters.files import stored_head
from finetuned_service.adapters.geometry import linear_shapes
from finetuned_service.adapters.head import Head
from finetuned_service.adapters.layouts import Layout, parse_layout
from finetuned_service.adapters.layouts.head import HeadLayout
from finetuned_service.adapters.layouts.ia3 import VECTOR
from finetuned_service.adapters.layouts.lora import LoraLayout
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.adapters.site_ops import ScaleInput
from finetuned_service.bases.manifest import WEIGHTS_FILE
from finetuned_service.errors import AdapterIncompatible, InvalidField, NotFound, Unimplemented
from finetuned_service.jobs.methods import SETTINGS_OF
from finetuned_service.jobs.specs import Settings, TrainSpec
from finetuned_service.jobs.store import JobStore
from finetuned_service.jobs.task import LAST_GOOD
from finetuned_service.jobs.values import Job
from finetuned_service.names import AdapterSelector, ResourceName
from finetuned_service.vocabulary import DataReport, Method

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
    return Start(version.name, version.directory, manifest.base_digest, manifest.method)


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
    return Start(job.name, directory, job.environment.base_digest, job.spec.method)


def directory_of(job: Job, spec: TrainSpec, registry: AdapterRegistry, jobs_directory: Path) -> Path | None:
    """Where the weights lie that an accepted job starts from; None if it starts from the base.

    Raises:
        NotFound: they have been deleted since.
    """
    if not spec.continue_from:
        return None
    if "/jobs/" not in spec.continue_from:
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
        Unimplemented: a method whose weights cannot be continued yet.
    """
    if start.base_digest != base_digest:
        raise AdapterIncompatible(
            f"{_FIELD} names {start.name}, made for the base {start.base_digest}; this job trains on {base_digest}. "
            "Name its base in spec.base, or train on this one without continue_from",
            metadata={"adapter_base_digest": start.base_digest, "server_base_digest": base_digest},
        )
    if start.method is not spec.method:
        raise InvalidField.one(
            _FIELD, f"names {start.name}, of method {start.method}; this job's is {spec.method}. Use the same"
        )
    shapes = {Method.LORA: _lora, Method.IA3: _ia3, Method.HEAD: _head}
    if spec.method not in shapes:
        raise Unimplemented.feature(f"continue_from for METHOD_{spec.method}", ", ".join(shapes))
    head = stored_head(start.directory)
    if (head.task if head else spec.task) is not spec.task:
        raise InvalidField.one(
            _FIELD, f"names {start.name}, for the task {head.task if head else ''}; this job's is {spec.task}"
        )
    modules = linear_shapes(base_directory / WEIGHTS_FILE)
    found = shapes[spec.method](start, spec, modules)
    wanted = getattr(spec, SETTINGS_OF[spec.method])
    _refuse_other_settings(wanted, found, f"spec.{SETTINGS_OF[spec.method]}", start.name)
    settings = wanted.model_copy(update=found)
    return spec.model_copy(update={SETTINGS_OF[spec.method]: settings, "continue_from": start.name})


def refuse_other_labels(spec: TrainSpec, start: Start, report: DataReport) -> None:
    """Say that the rows have other labels than the head to continue.

    Raises:
        InvalidField: naming some of both.
    """
    head = stored_head(start.directory)
    if head is None:
        return
    known = head.labels
    found = tuple(sorted({count.label for count in (*report.train_labels, *report.eval_labels)}))
    if found != known:
        raise InvalidField.one(
            "spec.dataset",
            f"has the labels {_some(found)}; {start.name} has {_some(known)}, and continuing keeps them in their "
            "order. Use rows with the same labels, or train without continue_from",
        )


Found = dict[str, Any]
"""Settings of a method, as the weights have them."""


def _lora(start: Start, spec: TrainSpec, modules: Iterable[str]) -> Found:
    layout = _layout(start)
    if not isinstance(layout, LoraLayout):
        raise InvalidField.one(_FIELD, f"names {start.name}, whose files are not LoRA's; train without it")
    config = layout.config
    targets = _short({module for module in modules if config.targets(module)}, modules)
    return {
        "rank": config.rank,
        "alpha": config.alpha,
        "rank_stabilized": config.rank_stabilized,
        "decomposed": config.decomposed,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "target_modules": targets,
    }


def _ia3(start: Start, spec: TrainSpec, modules: Iterable[str]) -> Found:
    layout = _layout(start)
    targeted = {module for module in modules if layout.targets(module)}
    feedforward = {
        module
        for module in targeted
        if any(isinstance(op, ScaleInput) for op in layout.ops(module, (VECTOR,)))
    }
    return {
        "target_modules": _short(targeted, modules),
        "feedforward_modules": _short(feedforward, modules),
    }


def _head(start: Start, spec: TrainSpec, modules: Iterable[str]) -> Found:
    head = _head_of(start)
    if head.task is not spec.task:
        raise InvalidField.one(
            _FIELD, f"names {start.name}, for the task {head.task}; this job's is {spec.task}"
        )
    return {"pooling": head.pooling} if head.pooling else {}


def _head_of(start: Start) -> Head:
    head = stored_head(start.directory)
    if head is None:
        raise InvalidField.one(_FIELD, f"names {start.name}, which has no head; train without it")
    return head


def _layout(start: Start) -> Layout:
    """What it does to the base; a head beside it is not looked at."""
    layout = parse_layout((start.directory / CONFIG_FILE).read_bytes())
    return layout.body if isinstance(layout, HeadLayout) and layout.body is not None else layout


def _short(chosen: set[str], modules: Iterable[str]) -> tuple[str, ...]:
    """The last parts of the chosen modules' names where all of such a name are chosen, else full names."""
    last = {module.rpartition(".")[2] for module in chosen}
    whole = {module for module in modules if module.rpartition(".")[2] in last} == chosen
    return tuple(sorted(last if whole else chosen))


def _refuse_other_settings(wanted: Settings, found: Found, field: str, name: str) -> None:
    """What was set, and not to what it would be anyway, must be as the weights are."""
    for key, value in found.items():
        given = getattr(wanted, key)
        given = tuple(sorted(set(given))) if isinstance(given, tuple) else given
        if key in wanted.model_fields_set and given not in (None, (), {}, False) and given != value:
            raise InvalidField.one(
                f"{field}.{key}",
                f"is {given!r}; {name} has {value!r}, and continuing keeps its shape. Leave it out",
            )


def _some(labels: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, labels[:_SHOWN_LABELS]))
    more = len(labels) - _SHOWN_LABELS
    return f"{shown} and {more} more" if more > 0 else shown or "none"
