"""Alembic's entry: runs revisions on the connection, inside the transaction, that `upgrade.py` opened."""

from __future__ import annotations

from alembic import context

from finetuned_service.storage import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
)
context.run_migrations()
