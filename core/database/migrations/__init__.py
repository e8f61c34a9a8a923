"""Alembic migrations, run by `core.database.schema`."""
