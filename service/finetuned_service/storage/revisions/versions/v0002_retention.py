"""When jobs ended, which job made a version, and since when no alias names it."""

from __future__ import annotations

import json
import time
from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """What no alias names counts from now: nobody could have seen it coming before."""
    op.add_column("jobs", sa.Column("end_time", sa.Float(), nullable=True))
    op.create_index("ix_jobs_end_time", "jobs", ["end_time"])
    op.add_column("adapter_versions", sa.Column("job", sa.String(63), nullable=True))
    op.create_index("ix_adapter_versions_job", "adapter_versions", ["job"])
    op.add_column("adapter_versions", sa.Column("unnamed_since", sa.Float(), nullable=True))
    op.create_index("ix_adapter_versions_unnamed_since", "adapter_versions", ["unnamed_since"])
    connection = op.get_bind()
    _fill_jobs(connection)
    _fill_versions(connection)


def _fill_jobs(connection: sa.Connection) -> None:
    set_end = sa.text("UPDATE jobs SET end_time = :end_time WHERE id = :id")
    for row in connection.execute(sa.text("SELECT id, document FROM jobs")).all():
        ended = json.loads(row.document).get("end_time")
        if ended is not None:
            seconds = datetime.fromisoformat(ended).timestamp()
            connection.execute(set_end, {"id": row.id, "end_time": seconds})


def _fill_versions(connection: sa.Connection) -> None:
    where = "WHERE tenant = :tenant AND adapter = :adapter AND version = :version"
    set_job = sa.text(f"UPDATE adapter_versions SET job = :job {where}")  # noqa: S608 - a constant
    rows = connection.execute(sa.text("SELECT tenant, adapter, version, manifest FROM adapter_versions"))
    for row in rows.all():
        made_by = json.loads(row.manifest).get("lineage", {}).get("job") or ""
        if made_by:
            key = {"tenant": row.tenant, "adapter": row.adapter, "version": row.version}
            connection.execute(set_job, {**key, "job": made_by.rsplit("/", 1)[-1]})
    connection.execute(
        sa.text(
            "UPDATE adapter_versions SET unnamed_since = :now WHERE NOT EXISTS (SELECT 1 FROM aliases"
            " WHERE aliases.tenant = adapter_versions.tenant AND aliases.adapter = adapter_versions.adapter"
            " AND adapter_versions.version IN (aliases.version, aliases.previous_version))"
        ),
        {"now": time.time()},
    )
