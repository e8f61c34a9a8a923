"""Businesses, API keys, payout users and the history.

Revision: 0001
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE businesses (
            id uuid NOT NULL,
            name text NOT NULL,
            mode text NOT NULL,
            twin_id uuid NOT NULL,
            balance bigint NOT NULL DEFAULT 0,
            payout_balance bigint NOT NULL DEFAULT 0,
            reserved_balance bigint NOT NULL DEFAULT 0,
            payouts_enabled boolean NOT NULL DEFAULT false,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_businesses PRIMARY KEY (id),
            CONSTRAINT fk_businesses_twin_id FOREIGN KEY (twin_id) REFERENCES businesses (id),
            CONSTRAINT ck_businesses_mode CHECK (mode IN ('live', 'test')),
            CONSTRAINT ck_businesses_balance CHECK (balance >= 0),
            CONSTRAINT ck_businesses_payout_balance CHECK (payout_balance >= 0),
            CONSTRAINT ck_businesses_reserved_balance CHECK (reserved_balance >= 0)
        )
    """)
    op.execute("""
        CREATE TABLE api_keys (
            business_id uuid NOT NULL,
            id uuid NOT NULL,
            kind text NOT NULL,
            digest bytea NOT NULL,
            last4 text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            last_used_at timestamptz,
            revoked_at timestamptz,
            CONSTRAINT pk_api_keys PRIMARY KEY (business_id, id),
            CONSTRAINT fk_api_keys_business_id FOREIGN KEY (business_id) REFERENCES businesses (id),
            CONSTRAINT ck_api_keys_kind CHECK (kind IN ('secret', 'public'))
        )
    """)
    op.execute("CREATE UNIQUE INDEX ix_api_keys_digest ON api_keys (digest)")
    op.execute("""
        CREATE TABLE payout_users (
            business_id uuid NOT NULL,
            id uuid NOT NULL,
            email text COLLATE "C" NOT NULL,
            hash_digest bytea NOT NULL,
            balance bigint NOT NULL DEFAULT 0,
            status text NOT NULL DEFAULT 'active',
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_payout_users PRIMARY KEY (business_id, id),
            CONSTRAINT ck_payout_users_balance CHECK (balance >= 0),
            CONSTRAINT ck_payout_users_status CHECK (status IN ('active', 'inactive'))
        )
    """)
    op.execute("CREATE UNIQUE INDEX uq_payout_users_business_id_email ON payout_users (business_id, email)")
    op.execute("CREATE INDEX ix_payout_users_hash_digest ON payout_users (hash_digest)")
    op.execute("""
        CREATE TABLE payout_transactions (
            business_id uuid NOT NULL,
            id uuid NOT NULL,
            type text NOT NULL,
            payout_user_id uuid,
            amount bigint NOT NULL,
            payout_balance_after bigint NOT NULL,
            user_balance_after bigint,
            idempotency_key text,
            idempotency_attempt smallint NOT NULL DEFAULT 0,
            reversed_id uuid,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_payout_transactions PRIMARY KEY (business_id, id),
            CONSTRAINT ck_payout_transactions_type CHECK (type IN ('funding', 'allocation', 'reversal')),
            CONSTRAINT ck_payout_transactions_amount CHECK (amount > 0),
            CONSTRAINT ck_payout_transactions_payout_user_id
                CHECK ((type = 'funding') = (payout_user_id IS NULL)),
            CONSTRAINT ck_payout_transactions_reversed_id
                CHECK ((type = 'reversal') = (reversed_id IS NOT NULL))
        )
    """)
    op.execute("""
        CREATE UNIQUE INDEX uq_payout_transactions_idempotency
        ON payout_transactions (business_id, idempotency_key, idempotency_attempt)
        WHERE idempotency_key IS NOT NULL
    """)
    op.execute("""
        CREATE UNIQUE INDEX uq_payout_transactions_business_id_reversed_id
        ON payout_transactions (business_id, reversed_id) WHERE reversed_id IS NOT NULL
    """)
    op.execute("""
        CREATE TABLE claims (
            business_id uuid NOT NULL,
            id uuid NOT NULL,
            transaction_id uuid NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            withdrawn_at timestamptz,
            CONSTRAINT pk_claims PRIMARY KEY (business_id, id)
        )
    """)
    op.execute("CREATE INDEX ix_claims_business_id_transaction_id ON claims (business_id, transaction_id)")
