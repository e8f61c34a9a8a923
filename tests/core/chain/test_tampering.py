"""What somebody changes with SQL is found, and the row is named, also after the workers have sealed more."""

import re
from typing import Any

import pytest
import sqlalchemy as sa

from core.chain.proof import prove
from core.chain.sealer import seal_all
from core.database.connection import Database
from core.ids import IdKind, format_id
from core.ledger.day_sums import forget_sums
from tests.core.builders import HASH_SECRET, allocate, allocation_of, run_sql
from tests.core.chain.conftest import World, find_places

TXN, USR, BIZ, BAT, KEY = (
    IdKind.TRANSACTION,
    IdKind.PAYOUT_USER,
    IdKind.BUSINESS,
    IdKind.BATCH,
    IdKind.API_KEY,
)

# (what is done, with which statements, which ids are named)
CHANGES: list[tuple[str, str, list[tuple[IdKind | str, str]]]] = [
    (
        "an amount, the user's balance and the business's, together",
        """
        UPDATE payout_transactions SET amount = amount + 5, payout_balance_after = payout_balance_after - 5,
            user_balance_after = user_balance_after + 5 WHERE id = :kept;
        UPDATE payout_users SET balance = balance + 5 WHERE id = :a;
        UPDATE businesses SET payout_balance = payout_balance - 5 WHERE id = :business;
        UPDATE payout_day_sums SET amount = amount + 5 WHERE type = 'allocation' AND business_id = :business
        """,
        [(TXN, "kept")],
    ),
    (
        "a row given to another user, with its money",
        """
        UPDATE payout_transactions SET payout_user_id = :b WHERE id = :kept;
        UPDATE payout_users SET balance = balance - 30 WHERE id = :a;
        UPDATE payout_users SET balance = balance + 30 WHERE id = :b
        """,
        [(TXN, "kept")],
    ),
    (
        "an e-mail",
        """
        UPDATE payout_users SET email = 'thief@example.com' WHERE id = :a
        """,
        [(USR, "a")],
    ),
    (
        "a hash",
        """
        UPDATE payout_users SET hash_digest = sha256('thief') WHERE id = :a
        """,
        [(USR, "a"), (TXN, "kept")],
    ),
    (
        "the e-mails and hashes of two users exchanged",
        """
        UPDATE payout_users SET email = 'x' WHERE id = :a;
        UPDATE payout_users SET email = 'a@example.com', hash_digest = (SELECT hash_digest FROM payout_users
            WHERE id = :a) WHERE id = :b AND hash_digest IS NOT NULL;
        UPDATE payout_users SET email = 'b@example.com' WHERE id = :a
        """,
        [(USR, "a"), (TXN, "other")],
    ),
    (
        "a user's running balance",
        """
        UPDATE payout_transactions SET user_balance_after = 31 WHERE id = :kept
        """,
        [(TXN, "kept")],
    ),
    (
        "the business's running balance",
        """
        UPDATE payout_transactions SET payout_balance_after = 1 WHERE id = :kept
        """,
        [(TXN, "kept")],
    ),
    (
        "an idempotency key removed",
        """
        UPDATE payout_transactions SET idempotency_key = NULL WHERE id = :kept
        """,
        [(TXN, "kept")],
    ),
    (
        "an attempt counted up",
        """
        UPDATE payout_transactions SET idempotency_attempt = 7 WHERE id = :kept
        """,
        [(TXN, "kept")],
    ),
    (
        "a time moved within the day",
        """
        UPDATE payout_transactions SET created_at = created_at + interval '1 microsecond' WHERE id = :kept
        """,
        [(TXN, "kept")],
    ),
    (
        "a reversal that undoes another allocation",
        """
        UPDATE payout_transactions SET reversed_id = :other WHERE reversed_id = :taken
        """,
        [],
    ),
    (
        "a batch taken off its rows",
        """
        UPDATE payout_transactions SET batch_id = NULL WHERE batch_id = :paid
        """,
        [(BAT, "paid")],
    ),
    (
        "a row deleted and all balances corrected",
        """
        DELETE FROM payout_transactions WHERE id = :kept;
        DELETE FROM payout_day_sums WHERE business_id = :business;
        DELETE FROM payout_day_sums_progress WHERE business_id = :business;
        UPDATE payout_users SET balance = balance - 30 WHERE id = :a;
        UPDATE businesses SET payout_balance = payout_balance + 30 WHERE id = :business
        """,
        [(BIZ, "business")],
    ),
    (
        "a row deleted, the later ones numbered anew and all balances corrected",
        """
        DELETE FROM payout_transactions WHERE id = :kept;
        UPDATE payout_transactions SET sequence = -sequence WHERE business_id = :business AND sequence > 2;
        UPDATE payout_transactions SET sequence = -sequence - 1 WHERE business_id = :business AND sequence <
            0;
        UPDATE payout_users SET balance = balance - 30 WHERE id = :a;
        UPDATE businesses SET payout_balance = payout_balance + 30, last_sequence = last_sequence - 1 WHERE
            id = :business
        """,
        [(TXN, "taken")],
    ),
    (
        "the last row cut off, with its seal",
        """
        DELETE FROM payout_transactions WHERE business_id = :business AND sequence = (SELECT last_sequence
            FROM businesses WHERE id = :business);
        DELETE FROM history_seals WHERE business_id = :business
        """,
        [(BIZ, "business")],
    ),
    (
        "a row without a number",
        """
        ALTER TABLE payout_transactions DISABLE TRIGGER number_payout_transaction;
        INSERT INTO payout_transactions (business_id, id, type, payout_user_id, amount,
            payout_balance_after, user_balance_after) VALUES (:business, :new, 'allocation', :a, 1, 0, 0);
        ALTER TABLE payout_transactions ENABLE TRIGGER number_payout_transaction
        """,
        [(TXN, "new")],
    ),
    (
        "a row of long ago at the end",
        """
        INSERT INTO payout_transactions (business_id, id, type, payout_user_id, amount,
            payout_balance_after, user_balance_after, created_at, sequence) SELECT :business, :new,
            'allocation', :a, 1, 0, 0, now() - interval '1 day', last_sequence + 1 FROM businesses WHERE id =
            :business
        """,
        [(TXN, "new")],
    ),
    (
        "a batch deleted, that paid",
        """
        DELETE FROM payout_batch_items WHERE batch_id = :paid;
        DELETE FROM payout_batches WHERE id = :paid
        """,
        [(BAT, "paid")],
    ),
    (
        "a batch deleted, that paid nothing",
        """
        DELETE FROM payout_batch_items WHERE batch_id = :cancelled;
        DELETE FROM payout_batches WHERE id = :cancelled
        """,
        [(BAT, "cancelled")],
    ),
    (
        "a batch's amount and its row's",
        """
        UPDATE payout_batch_items SET amount = 10 WHERE batch_id = :cancelled;
        UPDATE payout_batches SET amount = 10 WHERE id = :cancelled
        """,
        [(BAT, "cancelled")],
    ),
    (
        "a cancelled batch begun anew",
        """
        UPDATE payout_batches SET status = 'queued', finished_at = NULL WHERE id = :cancelled;
        UPDATE businesses SET reserved_balance = reserved_balance + 9, payout_balance = payout_balance - 9
            WHERE id = :business
        """,
        [(BAT, "cancelled")],
    ),
    (
        "the e-mail of a paid row of a batch",
        """
        UPDATE payout_batch_items SET email = 'thief@example.com' WHERE batch_id = :paid AND position = 0
        """,
        [(BAT, "paid")],
    ),
    (
        "the e-mail of a row of a batch that is not paid yet",
        """
        UPDATE payout_batch_items SET email = 'thief@example.com' WHERE batch_id = :open AND position = 2
        """,
        [(BAT, "open")],
    ),
    (
        "a funding out of nothing",
        """
        INSERT INTO payout_transactions (business_id, id, type, amount, payout_balance_after, sequence)
            SELECT :business, :new, 'funding', 1000, payout_balance + 1000, last_sequence + 1 FROM businesses
            WHERE id = :business;
        UPDATE businesses SET payout_balance = payout_balance + 1000, last_sequence = last_sequence + 1
            WHERE id = :business
        """,
        [(TXN, "new")],
    ),
    (
        "a replay deleted",
        """
        DELETE FROM claims WHERE id = :standing
        """,
        [(TXN, "standing")],
    ),
    (
        "a replay that stands for another payment",
        """
        UPDATE claims SET transaction_id = :other WHERE id = :standing
        """,
        [(TXN, "standing")],
    ),
    (
        "the withdrawal of a replay undone",
        """
        UPDATE claims SET withdrawn_at = NULL WHERE id = :withdrawn
        """,
        [(TXN, "withdrawn")],
    ),
    (
        "a line of the audit log deleted",
        """
        DELETE FROM audit_log WHERE id = :line
        """,
        [("audit_log", "line")],
    ),
    (
        "a line of the audit log changed",
        """
        UPDATE audit_log SET actor = 'somebody else' WHERE id = :line
        """,
        [("audit_log", "line")],
    ),
    (
        "a line of long ago written into the audit log",
        """
        INSERT INTO audit_log (business_id, id, actor, action, subject, created_at) VALUES (:business, :new,
            'x', 'y', '', now() - interval '1 day')
        """,
        [("audit_log", "new")],
    ),
    (
        "a revocation undone",
        """
        UPDATE api_keys SET revoked_at = NULL WHERE id = :revoked
        """,
        [(KEY, "revoked")],
    ),
    (
        "a rolled key's grace made longer",
        """
        UPDATE api_keys SET revoked_at = revoked_at + interval '1 year' WHERE id = :rolled
        """,
        [(KEY, "rolled")],
    ),
    (
        "a key's digest",
        """
        UPDATE api_keys SET digest = sha256('stolen') WHERE id = :live
        """,
        [(KEY, "live")],
    ),
    (
        "a public key made secret",
        """
        UPDATE api_keys SET kind = 'public' WHERE id = :live
        """,
        [(KEY, "live")],
    ),
    (
        "a key deleted",
        """
        DELETE FROM api_keys WHERE id = :live
        """,
        [(KEY, "live")],
    ),
    (
        "a deposit and the main balance",
        """
        UPDATE main_transactions SET amount = 900, balance_after = 900 WHERE id = :deposit;
        UPDATE businesses SET balance = balance + 400 WHERE id = :business
        """,
        [(TXN, "deposit")],
    ),
    (
        "a seal of the history",
        """
        UPDATE history_seals SET digest = sha256('x') WHERE business_id = :business
        """,
        [(BIZ, "business")],
    ),
    (
        "a tag in a seal",
        """
        UPDATE history_seals SET tags = set_byte(tags, 20, 1 + get_byte(tags, 20) % 255) WHERE business_id =
            :business
        """,
        [(BIZ, "business"), (TXN, "kept")],
    ),
    (
        "a seal of another row deleted",
        """
        DELETE FROM row_seals WHERE business_id = :business AND number = 2
        """,
        [(BIZ, "business")],
    ),
    (
        "a business's whole history, with its seals",
        """
        DELETE FROM payout_transactions WHERE business_id = :business;
        DELETE FROM history_seals WHERE business_id = :business;
        DELETE FROM payout_users WHERE business_id = :business;
        UPDATE businesses SET payout_balance = 0, reserved_balance = 0 WHERE id = :business
        """,
        [(BIZ, "business")],
    ),
    (
        "a business and all that it had",
        """
        DELETE FROM payout_transactions WHERE business_id IN (:business, :twin);
        DELETE FROM main_transactions WHERE business_id IN (:business, :twin);
        DELETE FROM payout_users;
        DELETE FROM payout_day_sums;
        DELETE FROM payout_day_sums_progress;
        DELETE FROM payout_batch_items;
        DELETE FROM payout_batches;
        DELETE FROM claims;
        DELETE FROM audit_log;
        DELETE FROM api_keys;
        DELETE FROM businesses WHERE id IN (:business, :twin)
        """,
        [(BIZ, "business"), (BIZ, "twin")],
    ),
    (
        "everything, truncated to nothing",
        """
        TRUNCATE businesses, api_keys, payout_users, payout_transactions, claims, payout_batches,
            payout_batch_items, accounts, members, invitations, audit_log, main_transactions, payout_day_sums,
            payout_day_sums_progress, history_seals, row_seals, seal_progress, installation
        """,
        [],
    ),
]


def change(world: World, statements: str) -> None:
    for statement in statements.split(";"):
        names = set(re.findall(r"(?<![:\w]):(\w+)", statement))
        run_sql(world.database, statement, **{name: world.ids[name] for name in names})


def name_of(world: World, kind: IdKind | str, name: str) -> str:
    return format_id(kind, world.ids[name]) if isinstance(kind, IdKind) else f"{kind} {world.ids[name]}"


@pytest.mark.parametrize(
    ("statements", "named"),
    [pytest.param(statements, named, id=id_.replace(" ", "-")) for id_, statements, named in CHANGES],
)
def test_what_is_changed_behind_our_back_is_found_and_stays_found(
    world: World, statements: str, named: list[tuple[IdKind | str, str]]
) -> None:
    change(world, statements)
    before = find_places(world.database)
    assert before
    assert {name_of(world, *each) for each in named} <= set(before)
    # Sealing goes on, and forgives nothing.
    seal_all(world.database, HASH_SECRET)
    after = find_places(world.database)
    assert after
    assert {name_of(world, *each) for each in named} <= set(after)


def test_counting_sums_anew_clears_nothing_but_the_sums(world: World) -> None:
    change(world, CHANGES[0][1])
    with world.database.transaction() as connection:
        forget_sums(connection, world.account.business.id)
    assert find_places(world.database) == [format_id(TXN, world.ids["kept"])]


def test_it_is_said_since_when_a_row_may_have_been_changed(world: World) -> None:
    change(world, "UPDATE payout_transactions SET user_balance_after = 31 WHERE id = :kept")
    with world.database.snapshot() as connection:
        proof = prove(connection, HASH_SECRET)
        sealed_at = connection.execute(
            sa.text("SELECT sealed_at FROM history_seals WHERE business_id = :id"), {"id": world.account.business.id}
        ).scalar_one()
    texts = [each.text for each in proof.alterations if each.id == format_id(TXN, world.ids["kept"])]
    assert any(sealed_at.isoformat(timespec="seconds")[:19] in text and "row 2 of biz_" in text for text in texts)
    assert not any("example.com" in text for text in texts)


def test_what_the_product_changes_is_no_alteration(world: World) -> None:
    database, account = world.database, world.account
    allocate(database, *[allocation_of(account, f"{number}@example.com", 1) for number in range(1_200)])
    assert find_places(database) == []
    seal_all(database, HASH_SECRET)
    assert find_places(database) == []
    allocate(database, allocation_of(account, "a@example.com", 1))
    seal_all(database, HASH_SECRET)
    assert find_places(database) == []


def test_many_alterations_are_counted_and_some_are_named(database: Database, world: World) -> None:
    paid: list[Any] = [allocation_of(world.account, "a@example.com", 1) for _ in range(1_500)]
    allocate(database, *paid)
    seal_all(database, HASH_SECRET)
    run_sql(
        database,
        "UPDATE payout_transactions SET idempotency_key = id::text WHERE idempotency_key IS NULL "
        "AND type = 'allocation' AND batch_id IS NULL",
    )
    with database.snapshot() as connection:
        proof = prove(connection, HASH_SECRET)
    assert (len(proof.alterations), proof.alterations_count) == (1_000, 1_501)
