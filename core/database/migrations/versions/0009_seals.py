"""What shows that the history was rewritten: seals, and triggers that refuse to change it.

Revision: 0009
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_APPEND_ONLY = ("payout_transactions", "main_transactions", "audit_log", "row_seals")


def upgrade() -> None:
    op.execute("""
        CREATE TABLE installation (
            is_here boolean NOT NULL DEFAULT true,
            id uuid NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_installation PRIMARY KEY (is_here),
            CONSTRAINT ck_installation_is_here CHECK (is_here)
        )
    """)
    op.execute("INSERT INTO installation (id) VALUES (uuidv7())")
    op.execute("""
        CREATE TABLE history_seals (
            business_id uuid NOT NULL,
            first_sequence bigint NOT NULL,
            last_sequence bigint NOT NULL,
            previous bytea NOT NULL,
            tags bytea NOT NULL,
            digest bytea NOT NULL,
            earliest timestamptz NOT NULL,
            latest timestamptz NOT NULL,
            sealed_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_history_seals PRIMARY KEY (business_id, first_sequence)
        )
    """)
    op.execute("ALTER TABLE history_seals ALTER COLUMN tags SET STORAGE EXTERNAL")
    op.execute("""
        CREATE TABLE row_seals (
            business_id uuid NOT NULL,
            number bigint NOT NULL,
            kind text NOT NULL,
            row_id uuid NOT NULL,
            state text NOT NULL,
            tag bytea NOT NULL,
            digest bytea NOT NULL,
            sealed_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_row_seals PRIMARY KEY (business_id, number)
        )
    """)
    op.execute("CREATE INDEX ix_row_seals_row ON row_seals (business_id, kind, row_id, number)")
    op.execute("""
        CREATE TABLE seal_progress (
            kind text NOT NULL,
            sealed_until timestamptz NOT NULL,
            CONSTRAINT pk_seal_progress PRIMARY KEY (kind)
        )
    """)
    # What was written lately is looked for by time; these indexes cost next to nothing where rows come in its order.
    for table in ("audit_log", "main_transactions", "claims", "payout_batches"):
        op.execute(f"CREATE INDEX ix_{table}_created_at ON {table} USING brin (created_at)")
    op.execute("CREATE INDEX ix_claims_withdrawn_at ON claims (withdrawn_at) WHERE withdrawn_at IS NOT NULL")
    op.execute("CREATE INDEX ix_payout_batches_finished_at ON payout_batches (finished_at)")
    # Up to which number rows were numbered after they were written: their order is not quite that of their balances.
    op.execute("ALTER TABLE businesses ADD COLUMN numbered_later bigint NOT NULL DEFAULT 0")
    op.execute("UPDATE businesses SET numbered_later = last_sequence WHERE last_sequence > 0")
    # Each funding has its origin in the main balance's history: a transfer, or money from outside.
    op.execute("ALTER TABLE main_transactions DROP CONSTRAINT ck_main_transactions_type")
    op.execute("""
        ALTER TABLE main_transactions ADD CONSTRAINT ck_main_transactions_type
        CHECK (type IN ('deposit', 'transfer', 'external'))
    """)
    op.execute("""
        INSERT INTO main_transactions (business_id, id, type, amount, balance_after, created_at)
        SELECT business_id, payout_transactions.id, 'external', amount, balance, payout_transactions.created_at
        FROM payout_transactions
        JOIN businesses ON businesses.id = business_id
        WHERE type = 'funding'
        ON CONFLICT DO NOTHING
    """)
    op.execute("""
        CREATE OR REPLACE FUNCTION number_payout_transaction() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
        DECLARE
            next_sequence bigint;
            before text := COALESCE(current_setting('payouts.rewrite_history', true), '');
        BEGIN
            UPDATE businesses SET last_sequence = last_sequence + 1, numbered_later = last_sequence + 1
            WHERE id = NEW.business_id
            RETURNING last_sequence INTO next_sequence;
            PERFORM set_config('payouts.rewrite_history', 'on', true);
            UPDATE payout_transactions SET sequence = next_sequence
            WHERE business_id = NEW.business_id AND id = NEW.id AND sequence IS NULL;
            PERFORM set_config('payouts.rewrite_history', before, true);
            RETURN NULL;
        END
        $$
    """)
    op.execute("""
        CREATE FUNCTION refuse_to_rewrite_history() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF current_setting('payouts.rewrite_history', true) IS DISTINCT FROM 'on' THEN
                RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP
                    USING ERRCODE = 'insufficient_privilege';
            END IF;
            RETURN NULL;
        END
        $$
    """)
    for table in _APPEND_ONLY:
        op.execute(f"""
            CREATE TRIGGER refuse_to_rewrite_history BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_rewrite_history()
        """)
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER refuse_to_rewrite_history")
