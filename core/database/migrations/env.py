"""What Alembic runs: `core.database.schema` hands over an open transaction."""

from alembic import context

from core.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
