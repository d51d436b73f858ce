"""What the service knows of one adapter version beside its weights.

Kept in the store for each version; written as `manifest.json` into exports. It does not lie beside
the stored weights: two versions with the same weights, also of two tenants, share those files.
"""

from __future__ import annotations

from datetime import datetime

from finetuned_service.adapters.head import Head
from finetuned_service.vocabulary import Method, Metric, Task, Value


class Lineage(Value):
    """Where a version came from: a job and its data, or an import and its source."""

    job: str = ""
    dataset: str = ""
    dataset_digest: str = ""
    parent_version: str = ""
    source: str = ""


class AdapterManifest(Value):
    """Facts of one version; they never change."""

    name: str
    """`tenants/{tenant}/adapters/{adapter}/versions/{version}`."""
    digest: str
    base_digest: str
    base_root_digest: str
    base_verified: bool = True
    """False if an import accepted the base unverified."""
    method: Method
    task: Task
    metrics: tuple[Metric, ...] = ()
    lineage: Lineage = Lineage()
    parameters: int
    modules: int
    """Modules of the base that it changes."""
    rank: int = 0
    head: Head | None = None
    """What its head's outputs mean; None without one."""
    size_bytes: int
    create_time: datetime

    def metric(self, name: str) -> Metric | None:
        return next((metric for metric in self.metrics if metric.name == name), None)
