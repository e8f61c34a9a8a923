"""A fence for each business: what is resolved as never to be paid stays so, whatever the database's clock does.

Revision: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE businesses ADD COLUMN fence_us bigint NOT NULL DEFAULT 0")
    op.execute("CREATE INDEX ix_businesses_fence_us ON businesses (fence_us) WHERE fence_us > 0")
