"""A reference names a payment, and pays once.

References of the batches that an earlier release accepted are kept too: what it paid is not paid again. The hot tables
change last, because of their locks.

Revision: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE payment_references (
            business_id uuid NOT NULL,
            reference text COLLATE "C" NOT NULL,
            attempt smallint NOT NULL,
            payment_id uuid NOT NULL,
            email text COLLATE "C" NOT NULL,
            amount bigint NOT NULL,
            batch_id uuid,
            CONSTRAINT pk_payment_references PRIMARY KEY (business_id, reference, attempt)
        )
    """)
    op.execute("""
        CREATE TABLE payout_batch_already_paid (
            business_id uuid NOT NULL,
            batch_id uuid NOT NULL,
            row integer NOT NULL,
            payment_id uuid NOT NULL,
            email text COLLATE "C" NOT NULL,
            amount bigint NOT NULL,
            reference text COLLATE "C" NOT NULL,
            CONSTRAINT pk_payout_batch_already_paid PRIMARY KEY (business_id, batch_id, row)
        )
    """)
    # A reference that was paid several times keeps all of its payments, the newest as attempt 0.
    op.execute("""
        INSERT INTO payment_references (business_id, reference, attempt, payment_id, email, amount, batch_id)
        SELECT item.business_id, btrim(item.reference),
            1 - row_number() OVER (PARTITION BY item.business_id, btrim(item.reference) ORDER BY item.id DESC),
            item.id, item.email, item.amount, item.batch_id
        FROM payout_batch_items AS item
        JOIN payout_batches AS batch ON batch.business_id = item.business_id AND batch.id = item.batch_id
        WHERE btrim(item.reference) <> '' AND (batch.status <> 'cancelled' OR item.position < batch.processed)
    """)
    op.execute("ALTER TABLE payout_batches ADD COLUMN already_paid integer NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE payout_batches ADD COLUMN api_key_id uuid")
    op.execute("ALTER TABLE businesses ADD COLUMN requires_keys boolean NOT NULL DEFAULT false")
    op.execute('ALTER TABLE payout_transactions ADD COLUMN reference text COLLATE "C"')
    op.execute("""
        UPDATE payout_transactions AS paid
        SET reference = named.reference
        FROM payment_references AS named
        WHERE paid.business_id = named.business_id AND paid.id = named.payment_id
    """)
