"""How a store of an older build becomes one of this build; read by Alembic, never imported."""
