"""Jobs for tests, as `jobs/submit.py` would make them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from finetuned_service.jobs.specs import QuantizeSpec, TrainSpec
from finetuned_service.jobs.states import JobState
from finetuned_service.jobs.values import Job
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.vocabulary import WeightFormat

TENANT = "acme"
NO_REQUEST = RequestKey.of(TENANT, "", b"")


def train_job(*, tenant: str = TENANT, adapter: str = "redact", dataset: str = "rows", **spec: Any) -> Job:
    """A TrainJob that is not stored yet; `spec` are further fields of TrainSpec."""
    return Job(
        tenant=tenant,
        id="",
        state=JobState.QUEUED,
        create_time=datetime.now(UTC),
        spec=TrainSpec(
            dataset=f"tenants/{tenant}/datasets/{dataset}",
            adapter=f"tenants/{tenant}/adapters/{adapter}",
            base="bases/tiny",
            **spec,
        ),
    )


def quantize_job(*, tenant: str = TENANT, output_base_id: str = "tiny-int8", **spec: Any) -> Job:
    """A Quantize run that is not stored yet; `spec` are further fields of QuantizeSpec."""
    return Job(
        tenant=tenant,
        id="",
        state=JobState.QUEUED,
        create_time=datetime.now(UTC),
        spec=QuantizeSpec(
            base="bases/tiny", output_base_id=output_base_id, weight_format=WeightFormat.INT8, **spec
        ),
    )
