"""Payout batches: a file's worth of allocations, funded when accepted.

Revision: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE payout_batches (
            business_id uuid NOT NULL,
            id uuid NOT NULL,
            status text NOT NULL,
            total integer NOT NULL,
            amount bigint NOT NULL,
            processed integer NOT NULL DEFAULT 0,
            allocated_amount bigint NOT NULL DEFAULT 0,
            idempotency_key text,
            request_digest bytea NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            finished_at timestamptz,
            CONSTRAINT pk_payout_batches PRIMARY KEY (business_id, id),
            CONSTRAINT ck_payout_batches_status
                CHECK (status IN ('queued', 'processing', 'completed', 'cancelled')),
            CONSTRAINT ck_payout_batches_processed CHECK (processed BETWEEN 0 AND total),
            CONSTRAINT ck_payout_batches_allocated_amount CHECK (allocated_amount BETWEEN 0 AND amount),
            CONSTRAINT ck_payout_batches_finished_at
                CHECK ((status IN ('completed', 'cancelled')) = (finished_at IS NOT NULL)),
            CONSTRAINT ck_payout_batches_completed
                CHECK ((status = 'completed') = (processed = total))
        )
    """)
    op.execute("""
        CREATE UNIQUE INDEX uq_payout_batches_business_id_idempotency_key
        ON payout_batches (business_id, idempotency_key) WHERE idempotency_key IS NOT NULL
    """)
    op.execute("CREATE INDEX ix_payout_batches_updated_at ON payout_batches (updated_at) WHERE finished_at IS NULL")
    op.execute("""
        CREATE TABLE payout_batch_items (
            business_id uuid NOT NULL,
            batch_id uuid NOT NULL,
            position integer NOT NULL,
            id uuid NOT NULL,
            email text COLLATE "C" NOT NULL,
            hash_digest bytea NOT NULL,
            amount bigint NOT NULL,
            reference text,
            CONSTRAINT pk_payout_batch_items PRIMARY KEY (business_id, batch_id, position),
            CONSTRAINT ck_payout_batch_items_amount CHECK (amount > 0)
        )
    """)
    op.execute("ALTER TABLE payout_transactions ADD COLUMN batch_id uuid")
