"""Alembic migrations, run by `core.schema`."""
