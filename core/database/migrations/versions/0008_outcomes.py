"""What was answered 500 is never paid, whatever clocks and processes do afterwards.

A business gets a fence: no allocation whose deadline is at or before it is paid. Payout batches are paid once they are
released, which what is answered 500 never is; those that exist are released, and so is what processes of the release
before accept.

Revision: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE businesses ADD COLUMN fence_us bigint NOT NULL DEFAULT 0")
    op.execute("CREATE INDEX ix_businesses_fence_us ON businesses (fence_us) WHERE fence_us > 0")
    op.execute("ALTER TABLE payout_batches ADD COLUMN released_at timestamptz DEFAULT now()")
