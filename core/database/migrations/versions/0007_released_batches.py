"""Payout batches are paid once they are released, which what is answered 500 never is.

Those that exist are released, and so is what processes of the release before accept.

Revision: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE payout_batches ADD COLUMN released_at timestamptz DEFAULT now()")
