"""The statements of one allocation in a transaction of its own, as the two competing services run them."""

import os

import sqlalchemy as sa

# Authenticates and locks in one round trip.
LOCK_BUSINESS = sa.text("""
    SELECT businesses.id, payout_balance, payouts_enabled
    FROM api_keys
    JOIN businesses ON businesses.id = api_keys.business_id
    WHERE digest = :digest AND kind = 'secret' AND revoked_at IS NULL
    FOR NO KEY UPDATE OF businesses
""")

DEBIT_BUSINESS = sa.text("""
    UPDATE businesses SET payout_balance = payout_balance - :amount, last_sequence = last_sequence + 1
    WHERE id = :business_id
    RETURNING payout_balance, last_sequence
""")

CREDIT_USER = sa.text("""
    INSERT INTO payout_users AS existing (business_id, id, email, hash_digest, balance)
    VALUES (:business_id, :id, :email, :hash_digest, :amount)
    ON CONFLICT (business_id, email) DO UPDATE
        SET balance = existing.balance + excluded.balance, updated_at = now()
    RETURNING id, balance
""")

WRITE_HISTORY = sa.text("""
    INSERT INTO payout_transactions (
        business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, sequence
    )
    VALUES (
        :business_id, :id, 'allocation', :payout_user_id, :amount, :payout_balance_after, :user_balance_after, :sequence
    )
""")

ENGINE_OPTIONS = {"isolation_level": "READ COMMITTED", "max_overflow": 0, "pool_timeout": 30}


def database_url() -> sa.URL:
    """Read where the database is; the system under test reads the same variable."""
    return sa.make_url(os.environ["PAYOUTS_DATABASE_URL"]).set(drivername="postgresql+psycopg")


def hash_secret() -> bytes:
    return os.environ["PAYOUTS_HASH_SECRET"].encode()
