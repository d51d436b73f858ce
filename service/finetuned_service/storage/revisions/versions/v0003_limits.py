"""How much storage an adapter version takes, and an unfinished job keeps for its result."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Jobs that were accepted before keep nothing: there was nobody to refuse others for them."""
    op.add_column("jobs", sa.Column("reserved_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column(
        "adapter_versions", sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default="0")
    )
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT tenant, adapter, version, manifest FROM adapter_versions"))
    set_size = sa.text(
        "UPDATE adapter_versions SET size_bytes = :size_bytes"
        " WHERE tenant = :tenant AND adapter = :adapter AND version = :version"
    )
    for row in rows.all():
        key = {"tenant": row.tenant, "adapter": row.adapter, "version": row.version}
        connection.execute(set_size, {**key, "size_bytes": int(json.loads(row.manifest)["size_bytes"])})
