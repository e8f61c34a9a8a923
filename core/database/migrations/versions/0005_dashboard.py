"""What the dashboard needs: people, what they changed, the main balance's own history, and sums by day.

The hot tables get no index; what they gain is a column that needs no rewrite. Last, because of its lock.

Revision: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE accounts (
            id uuid NOT NULL,
            email text COLLATE "C" NOT NULL,
            password_hash text NOT NULL,
            password_changed_at timestamptz NOT NULL DEFAULT now(),
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_accounts PRIMARY KEY (id)
        )
    """)
    op.execute("CREATE UNIQUE INDEX uq_accounts_email ON accounts (email)")
    op.execute("""
        CREATE TABLE members (
            business_id uuid NOT NULL,
            account_id uuid NOT NULL,
            role text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_members PRIMARY KEY (business_id, account_id),
            CONSTRAINT fk_members_account_id FOREIGN KEY (account_id) REFERENCES accounts (id),
            CONSTRAINT ck_members_role CHECK (role IN ('viewer', 'admin'))
        )
    """)
    op.execute("CREATE INDEX ix_members_account_id ON members (account_id)")
    op.execute("""
        CREATE TABLE invitations (
            business_id uuid NOT NULL,
            id uuid NOT NULL,
            email text COLLATE "C" NOT NULL,
            role text NOT NULL,
            token_digest bytea NOT NULL,
            invited_by text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz NOT NULL,
            accepted_at timestamptz,
            CONSTRAINT pk_invitations PRIMARY KEY (business_id, id),
            CONSTRAINT ck_invitations_role CHECK (role IN ('viewer', 'admin'))
        )
    """)
    op.execute("""
        CREATE UNIQUE INDEX uq_invitations_business_id_email
        ON invitations (business_id, email) WHERE accepted_at IS NULL
    """)
    op.execute("CREATE UNIQUE INDEX uq_invitations_token_digest ON invitations (token_digest)")
    op.execute("""
        CREATE TABLE audit_log (
            business_id uuid NOT NULL,
            id uuid NOT NULL,
            actor text NOT NULL,
            account_id uuid,
            action text NOT NULL,
            subject text NOT NULL,
            details jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz NOT NULL DEFAULT now(),
            form_id uuid,
            CONSTRAINT pk_audit_log PRIMARY KEY (business_id, id)
        )
    """)
    op.execute("""
        CREATE UNIQUE INDEX uq_audit_log_business_id_form_id
        ON audit_log (business_id, form_id) WHERE form_id IS NOT NULL
    """)
    op.execute("""
        CREATE TABLE main_transactions (
            business_id uuid NOT NULL,
            id uuid NOT NULL,
            type text NOT NULL,
            amount bigint NOT NULL,
            balance_after bigint NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT pk_main_transactions PRIMARY KEY (business_id, id),
            CONSTRAINT ck_main_transactions_type CHECK (type IN ('deposit', 'transfer')),
            CONSTRAINT ck_main_transactions_amount CHECK (amount > 0),
            CONSTRAINT ck_main_transactions_balance_after CHECK (balance_after >= 0)
        )
    """)
    # Until now nothing wrote main balances; what an administrator wrote by hand is taken for a first deposit.
    op.execute("""
        INSERT INTO main_transactions (business_id, id, type, amount, balance_after)
        SELECT id, uuidv7(), 'deposit', balance, balance FROM businesses WHERE balance > 0
    """)
    op.execute("""
        CREATE TABLE payout_day_sums (
            business_id uuid NOT NULL,
            day date NOT NULL,
            type text NOT NULL,
            count bigint NOT NULL,
            amount numeric NOT NULL,
            CONSTRAINT pk_payout_day_sums PRIMARY KEY (business_id, day, type)
        ) WITH (fillfactor = 50)
    """)
    op.execute("""
        CREATE TABLE payout_day_sums_progress (
            business_id uuid NOT NULL,
            summed_until timestamptz NOT NULL,
            CONSTRAINT pk_payout_day_sums_progress PRIMARY KEY (business_id)
        ) WITH (fillfactor = 50)
    """)
    op.execute("ALTER TABLE businesses ADD COLUMN low_balance_threshold bigint")
