"""Priorities of jobs, and the time of workers that each tenant has had."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Jobs that were accepted before have the middle priority, and nobody has used anything."""
    op.add_column("jobs", sa.Column("priority", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("jobs", sa.Column("claim_time", sa.Float(), nullable=True))
    op.create_table(
        "tenant_job_time",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("used_seconds", sa.Float(), nullable=False),
        sa.Column("update_time", sa.Float(), nullable=False),
    )
