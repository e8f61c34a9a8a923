"""What integrators read back: keys with names, and a history that is found by time and by user.

Revision: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE api_keys ADD COLUMN name text NOT NULL DEFAULT ''")
    op.execute("""
        CREATE INDEX ix_payout_transactions_business_id_created_at
        ON payout_transactions (business_id, created_at) WHERE amount > 0
    """)
    op.execute("""
        CREATE INDEX ix_payout_transactions_payout_user_id_created_at
        ON payout_transactions (payout_user_id, created_at) WHERE payout_user_id IS NOT NULL
    """)
    op.execute("""
        CREATE INDEX ix_payout_transactions_business_id_created_at_but_allocations
        ON payout_transactions (business_id, created_at) WHERE type <> 'allocation'
    """)
