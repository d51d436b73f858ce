"""What the rows of a dataset hold, counted when it is stored."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Datasets that are there have no report."""
    op.add_column("datasets", sa.Column("report", sa.Text()))
