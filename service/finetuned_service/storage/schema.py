"""The tables. Documents are JSON of pydantic values; what is searched by stands in columns of its own.

Every change comes with a file in `revisions/versions` and the next `SCHEMA_VERSION`; `upgrade.py` brings
older stores up to it and refuses newer ones at start.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

SCHEMA_VERSION = 5

metadata = MetaData()

meta = Table("meta", metadata, Column("key", String(32), primary_key=True), Column("value", Text))

jobs = Table(
    "jobs",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("tenant", String(63), nullable=False),
    Column("id", String(63), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("adapter", String(63), nullable=False),
    Column("dataset_ids", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("first_event", BigInteger, nullable=False),
    Column("last_event", BigInteger, nullable=False),
    # The lease: who runs the job, until when, and under which epoch; a publication checks the epoch.
    Column("lease_owner", String(128), nullable=False),
    Column("lease_epoch", BigInteger, nullable=False),
    Column("lease_until", Float, nullable=False),
    # When it reached a final state; what retention counts from.
    Column("end_time", Float, index=True),
    # Storage that is kept free for the result while the job is not finished.
    Column("reserved_bytes", BigInteger, nullable=False, server_default="0"),
    # 0 is the lowest; `jobs/values.py` has their names.
    Column("priority", Integer, nullable=False, server_default="1"),
    # Since when a worker holds it; NULL while none does.
    Column("claim_time", Float),
    Index("jobs_by_tenant", "tenant", "sequence"),
)

# Time of workers that each tenant's jobs have had, as it stood at `update_time`; it fades (`jobs/shares.py`).
tenant_job_time = Table(
    "tenant_job_time",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("used_seconds", Float, nullable=False),
    Column("update_time", Float, nullable=False),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", String(63), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("time", Float, nullable=False),
    Column("body", Text, nullable=False),
    ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("id", String(63), primary_key=True),
    Column("digest", String(80), nullable=False, index=True),
    Column("row_kind", String(32), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("create_time", Float, nullable=False),
    Column("source", Text, nullable=False),
    # What its rows hold, counted when it was stored; NULL in those of older builds.
    Column("report", Text),
)

uploads = Table(
    "uploads",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("id", String(63), primary_key=True),
    Column("dataset_id", String(63), nullable=False),
    Column("create_time", Float, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("id", String(63), primary_key=True),
    Column("create_time", Float, nullable=False),
    # Version numbers are never used twice: the row of a deleted adapter stays, without versions.
    Column("last_version", Integer, nullable=False),
)

adapter_versions = Table(
    "adapter_versions",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("adapter", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", String(80), nullable=False, index=True),
    Column("method", String(16), nullable=False),
    Column("base_digest", String(80), nullable=False),
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
    Column("manifest", Text, nullable=False),
    # The id of the job that made it; that job's record is kept as long as the version.
    Column("job", String(63), index=True),
    # Since when no alias names it, also not as the version to go back to; NULL while one does.
    Column("unnamed_since", Float, index=True),
    ForeignKeyConstraint(["tenant", "adapter"], ["adapters.tenant", "adapters.id"], ondelete="CASCADE"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("adapter", String(63), primary_key=True),
    Column("alias", String(63), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("previous_version", Integer),
    Column("etag", Integer, nullable=False),
    Column("update_time", Float, nullable=False),
    ForeignKeyConstraint(
        ["tenant", "adapter", "version"],
        ["adapter_versions.tenant", "adapter_versions.adapter", "adapter_versions.version"],
    ),
)

requests = Table(
    "requests",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("request_id", String(128), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("resource", Text, nullable=False),
    Column("create_time", Float, nullable=False, index=True),
)
