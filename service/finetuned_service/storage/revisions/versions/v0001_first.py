"""The tables of the first build."""

from __future__ import annotations

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing: a store of this version has its tables, a new one gets them as `schema.py` has them."""
