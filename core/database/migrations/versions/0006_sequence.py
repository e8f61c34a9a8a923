"""A number for each row of a business's history, without gaps, in the order of commits.

Every writer holds the business's row, so the number that is taken there is the order. The index that lists by number
takes the place of the one that listed by time.

The rows that are there are numbered here, by time and id, while payouts wait: 42 s for a million on two busy cores.

Revision: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE businesses ADD COLUMN last_sequence bigint NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE payout_transactions ADD COLUMN sequence bigint")
    op.execute("""
        DROP INDEX ix_payout_transactions_business_id_created_at,
            ix_payout_transactions_payout_user_id_created_at,
            ix_payout_transactions_business_id_created_at_but_allocations
    """)
    op.execute("""
        UPDATE payout_transactions SET sequence = numbered.sequence
        FROM (
            SELECT business_id, id, row_number() OVER (PARTITION BY business_id ORDER BY created_at, id) AS sequence
            FROM payout_transactions
        ) AS numbered
        WHERE payout_transactions.business_id = numbered.business_id AND payout_transactions.id = numbered.id
    """)
    op.execute("""
        UPDATE businesses SET last_sequence = history.rows
        FROM (SELECT business_id, count(*) AS rows FROM payout_transactions GROUP BY business_id) AS history
        WHERE businesses.id = history.business_id
    """)
    op.execute("""
        CREATE UNIQUE INDEX uq_payout_transactions_business_id_sequence
        ON payout_transactions (business_id, sequence) WHERE amount > 0
    """)
    op.execute("""
        CREATE INDEX ix_payout_transactions_payout_user_id_sequence
        ON payout_transactions (payout_user_id, sequence) WHERE payout_user_id IS NOT NULL
    """)
    op.execute("""
        CREATE INDEX ix_payout_transactions_business_id_sequence_but_allocations
        ON payout_transactions (business_id, sequence) WHERE type <> 'allocation'
    """)
    # Sums are kept by number. Workers of version 0.1 find that nothing is left for them to sum.
    op.execute("DELETE FROM payout_day_sums")
    op.execute("DELETE FROM payout_day_sums_progress")
    op.execute("""
        ALTER TABLE payout_day_sums_progress
            ALTER COLUMN summed_until SET DEFAULT '9999-12-31 00:00:00+00',
            ADD CONSTRAINT ck_payout_day_sums_progress_summed_until
                CHECK (summed_until = '9999-12-31 00:00:00+00'),
            ADD COLUMN last_sequence bigint NOT NULL DEFAULT 0
    """)
    # Workers of version 0.1 write no number, and go on during an upgrade. Their statement updates the business's row
    # itself, so it can only be numbered afterwards, in the same transaction.
    op.execute("""
        CREATE FUNCTION number_payout_transaction() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            next_sequence bigint;
        BEGIN
            UPDATE businesses SET last_sequence = last_sequence + 1 WHERE id = NEW.business_id
            RETURNING last_sequence INTO next_sequence;
            UPDATE payout_transactions SET sequence = next_sequence
            WHERE business_id = NEW.business_id AND id = NEW.id AND sequence IS NULL;
            RETURN NULL;
        END
        $$
    """)
    op.execute("""
        CREATE TRIGGER number_payout_transaction AFTER INSERT ON payout_transactions
        FOR EACH ROW WHEN (NEW.sequence IS NULL) EXECUTE FUNCTION number_payout_transaction()
    """)
