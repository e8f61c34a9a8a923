"""Passwords: which will do, how they are kept, and that a wrong one opens nothing."""

import statistics
import time
from uuid import uuid4

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher

from core import admin_actions
from core.database.connection import Database
from core.parties.businesses import Business
from core.parties.passwords import PASSWORD_CHARACTERS_MAX, PasswordError, change_password, check_password
from tests.core.builders import run_sql
from tests.core.parties.people import EMAIL, OTHER_PASSWORD, PASSWORD, invite, is_open, join, make_business


def test_a_password_that_will_not_do_is_refused_and_the_invitation_stays(
    database: Database, business: Business
) -> None:
    token = invite(database, business)
    too_long = "x" * (PASSWORD_CHARACTERS_MAX + 1)
    for password in ("", "eleven char", too_long, "\ud800" * 12, EMAIL, EMAIL.upper(), f" {EMAIL}"):
        with pytest.raises(PasswordError):
            admin_actions.accept_invitation(database, token, password)
    assert is_open(database, token)


@pytest.mark.parametrize("password", ["x" * PASSWORD_CHARACTERS_MAX, "ÄÖÜ ¡™£¢∞§¶•ªº", "            ", "\0" * 12])
def test_any_other_password_will_do(database: Database, business: Business, password: str) -> None:
    account = admin_actions.accept_invitation(database, invite(database, business), password)
    assert account is not None
    assert check_password(database, EMAIL, password) == account
    assert check_password(database, EMAIL, password[:-1] + "y") is None


def test_a_password_is_the_same_however_the_keyboard_composes_it(database: Database, business: Business) -> None:
    token = invite(database, business)
    assert admin_actions.accept_invitation(database, token, "Zoe\u0308 in Münster 1") is not None
    assert check_password(database, EMAIL, "Zo\u00eb in Mu\u0308nster 1") is not None


def test_wrong_sign_ins_are_none(database: Database, business: Business) -> None:
    join(database, business)
    for email in (EMAIL, "nobody@example.com", "", "no address", "a\0@example.com", "\ud800", "x" * 10_000):
        assert check_password(database, email, "wrong, and long enough") is None
    for password in ("", PASSWORD.upper(), PASSWORD + " ", "\ud800", "\0", "x" * 1_000_000):
        assert check_password(database, EMAIL, password) is None


def test_an_unknown_account_costs_the_same_hashing(database: Database, business: Business) -> None:
    join(database, business)

    def duration_s(email: str) -> float:
        began = time.thread_time() + time.process_time()
        assert check_password(database, email, "wrong, and long enough") is None
        return time.thread_time() + time.process_time() - began

    duration_s("warm-up@example.com")
    known = statistics.median(duration_s(EMAIL) for _ in range(5))
    unknown = statistics.median(duration_s("nobody@example.com") for _ in range(5))
    assert known / 3 < unknown < known * 3  # without hashing it would be a hundredth


def test_the_hash_is_argon2id_and_of_todays_parameters(database: Database, business: Business) -> None:
    join(database, business)
    assert read_hash(database).startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert PASSWORD not in read_hash(database)


def read_hash(database: Database) -> str:
    with database.transaction() as connection:
        return str(connection.execute(sa.text("SELECT password_hash FROM accounts")).scalar_one())


def test_a_hash_of_old_parameters_is_renewed_by_the_next_sign_in(database: Database, business: Business) -> None:
    account = join(database, business)
    old = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    run_sql(database, "UPDATE accounts SET password_hash = :hash", hash=old)
    assert check_password(database, EMAIL, OTHER_PASSWORD) is None
    assert read_hash(database) == old
    assert check_password(database, EMAIL, PASSWORD) == account
    renewed = read_hash(database)
    assert renewed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert check_password(database, EMAIL, PASSWORD) == account
    assert read_hash(database) == renewed


def test_no_transaction_is_open_while_a_password_is_hashed(database_url: str) -> None:
    with Database(database_url, transaction_timeout_s=0.1, pool_size=1) as quick:
        with Database(database_url, transaction_timeout_s=None) as patient:
            join(patient, make_business(patient))
        slow = PasswordHasher(time_cost=40, memory_cost=65_536, parallelism=1).hash(PASSWORD)
        with quick.transaction() as connection:
            connection.execute(sa.text("UPDATE accounts SET password_hash = :hash"), {"hash": slow})
        assert check_password(quick, EMAIL, PASSWORD) is not None


def test_a_changed_password_replaces_the_old_one_and_says_when(database: Database, business: Business) -> None:
    account = join(database, business)
    assert change_password(database, account.id, OTHER_PASSWORD, OTHER_PASSWORD) is None
    assert change_password(database, uuid4(), PASSWORD, OTHER_PASSWORD) is None
    with pytest.raises(PasswordError):
        change_password(database, account.id, PASSWORD, "short")
    assert check_password(database, EMAIL, PASSWORD) == account
    changed = change_password(database, account.id, PASSWORD, OTHER_PASSWORD)
    assert changed is not None
    assert changed.password_changed_at > account.password_changed_at
    assert check_password(database, EMAIL, PASSWORD) is None
    assert check_password(database, EMAIL, OTHER_PASSWORD) == changed
