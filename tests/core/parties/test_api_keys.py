"""The life of API keys on a real PostgreSQL: names, rolling, grace periods, last uses, and what the ledger decides."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection

from core.credentials import KeyKind, Mode, digest_of
from core.database.connection import Database
from core.messages import Outcome
from core.parties.api_keys import (
    NAME_MAX_CHARACTERS,
    ApiKey,
    ApiKeyError,
    NoSuchApiKeyError,
    create_api_key,
    find_secret_keys,
    find_standing,
    get_api_key,
    list_api_keys,
    revoke_api_key,
    roll_api_key,
    write_last_used,
)
from core.parties.businesses import Business, create_business, lock_business, set_payouts_enabled
from tests.core.builders import (
    allocate,
    database_now_us,
    make_allocation,
    read_payout_balance,
    run_sql,
    wait_until_blocked,
)
from tests.servers import Account, open_account, verify_books

NONE = timedelta()
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.transaction() as opened:
        yield opened


@pytest.fixture
def business(connection: Connection) -> Business:
    return create_business(connection, "ACME", payouts_enabled=True)


def create(connection: Connection, business: Business, name: str = "") -> tuple[ApiKey, bytes]:
    """Return a new secret key and its digest."""
    key, text = create_api_key(connection, business.id, KeyKind.SECRET, name)
    return key, digest_of(text)


def end_grace(connection: Connection, api_key_id: UUID) -> None:
    """Let the grace period of a rolled key be over."""
    connection.exec_driver_sql(
        "UPDATE api_keys SET revoked_at = clock_timestamp() - interval '1 hour' WHERE id = %s", (api_key_id,)
    )


def roll(database: Database, payer: Account, grace: timedelta) -> tuple[ApiKey, ApiKey]:
    """Roll an account's key in a transaction of its own; return the new one and the old one."""
    with database.transaction() as connection:
        new, _, old = roll_api_key(connection, payer.api_key_id, grace=grace)
    return new, old


def pay(database: Database, payer: Account, *api_key_ids: UUID) -> list[Outcome]:
    """Allocate 100 cents with each of the keys, in one batch."""
    return allocate(database, *[make_allocation(payer.business.id, each) for each in api_key_ids])


# Names


def test_a_name_is_kept_without_the_space_around_it(connection: Connection, business: Business) -> None:
    key, _ = create(connection, business, "  Löhne, monthly ")
    assert key.name == "Löhne, monthly"
    assert get_api_key(connection, key.id) == key


def test_a_key_needs_no_name(connection: Connection, business: Business) -> None:
    assert [create(connection, business, name)[0].name for name in ("", "   ")] == ["", ""]


def test_a_name_may_have_100_characters_of_any_width(connection: Connection, business: Business) -> None:
    for character in ("x", "ä", "株", "😀"):
        name = character * NAME_MAX_CHARACTERS
        assert create(connection, business, f" {name} ")[0].name == name
        with pytest.raises(ApiKeyError, match="at most 100 characters"):
            create(connection, business, name + character)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a\tb", "\x1b[31mred", "a\u202eb", "a\u200bb", "\ud800", "a\x7f"])
def test_a_name_has_no_control_characters(connection: Connection, business: Business, name: str) -> None:
    with pytest.raises(ApiKeyError, match="no control characters"):
        create(connection, business, name)
    assert list_api_keys(connection, business.id) == []


# Rolling


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("kind", KeyKind)
def test_a_rolled_key_has_a_successor_of_the_same_business_kind_and_name(
    connection: Connection, business: Business, mode: Mode, kind: KeyKind
) -> None:
    owner_id = business.id if mode is Mode.LIVE else business.twin_id
    before, text = create_api_key(connection, owner_id, kind, "wages")
    new, new_text, old = roll_api_key(connection, before.id, grace=HOUR)
    assert (new.business_id, new.mode, new.kind, new.name) == (owner_id, mode, kind, "wages")
    assert (old.id, new.id != old.id, new_text != text) == (before.id, True, True)
    assert new_text.endswith(new.last4)
    assert new_text.startswith(text[: len("sk_live_")])
    assert (new.revoked_at, new.last_used_at) == (None, None)
    assert list_api_keys(connection, business.id) == [old, new]


def test_without_grace_the_old_key_ends_at_once(connection: Connection, business: Business) -> None:
    key, digest = create(connection, business)
    new, text, old = roll_api_key(connection, key.id, grace=NONE)
    assert old.revoked_at is not None
    found = find_secret_keys(connection, [digest, digest_of(text)])
    assert found == {digest_of(text): (business.id, new.id)}
    assert find_standing(connection, business.id, old.id) is Outcome.UNAUTHORIZED
    assert find_standing(connection, business.id, new.id) is None


def test_both_keys_work_within_the_grace_and_the_new_one_after_it(connection: Connection, business: Business) -> None:
    key, digest = create(connection, business)
    new, text, old = roll_api_key(connection, key.id, grace=HOUR)
    both = [digest, digest_of(text)]
    assert set(find_secret_keys(connection, both)) == set(both)
    assert [find_standing(connection, business.id, each.id) for each in (old, new)] == [None, None]
    end_grace(connection, old.id)
    assert set(find_secret_keys(connection, both)) == {digest_of(text)}
    standings = [find_standing(connection, business.id, each.id) for each in (old, new)]
    assert standings == [Outcome.UNAUTHORIZED, None]


def test_a_key_in_its_grace_is_told_that_payouts_are_disabled(connection: Connection, business: Business) -> None:
    key, _ = create(connection, business)
    roll_api_key(connection, key.id, grace=HOUR)
    set_payouts_enabled(connection, business.id, enabled=False)
    assert find_standing(connection, business.id, key.id) is Outcome.PAYOUTS_DISABLED


def test_the_grace_counts_from_now_by_the_clock_of_the_database(database: Database, payer: Account) -> None:
    before_us = database_now_us(database)
    _, old = roll(database, payer, DAY)
    after_us = database_now_us(database)
    assert old.revoked_at is not None
    rolled_us = (old.revoked_at - DAY).timestamp() * 1_000_000
    assert before_us - 1 <= rolled_us <= after_us + 1


@pytest.mark.parametrize("grace", [NONE, HOUR])
def test_a_key_is_rolled_once(connection: Connection, business: Business, grace: timedelta) -> None:
    key, _ = create(connection, business)
    roll_api_key(connection, key.id, grace=grace)
    before = list_api_keys(connection, business.id)
    for again in (NONE, HOUR, DAY):
        with pytest.raises(ApiKeyError, match="was revoked or rolled before"):
            roll_api_key(connection, key.id, grace=again)
    end_grace(connection, key.id)
    with pytest.raises(ApiKeyError, match="was revoked or rolled before"):
        roll_api_key(connection, key.id, grace=HOUR)
    assert [each.id for each in list_api_keys(connection, business.id)] == [each.id for each in before]


def test_a_revoked_key_is_not_rolled(connection: Connection, business: Business) -> None:
    key, _ = create(connection, business)
    revoked = revoke_api_key(connection, key.id)
    with pytest.raises(ApiKeyError, match="was revoked or rolled before"):
        roll_api_key(connection, key.id, grace=HOUR)
    assert list_api_keys(connection, business.id) == [revoked]


def test_a_new_key_can_be_rolled_again(connection: Connection, business: Business) -> None:
    key, digest = create(connection, business, "wages")
    second, second_text, _ = roll_api_key(connection, key.id, grace=HOUR)
    third, third_text, _ = roll_api_key(connection, second.id, grace=NONE)
    assert third.name == "wages"
    digests = [digest, digest_of(second_text), digest_of(third_text)]
    assert [each in find_secret_keys(connection, digests) for each in digests] == [True, False, True]


def test_an_unknown_key_cannot_be_rolled(connection: Connection) -> None:
    with pytest.raises(NoSuchApiKeyError, match="no such API key"):
        roll_api_key(connection, uuid4(), grace=HOUR)


def test_a_key_that_many_roll_at_once_has_one_successor(shared_database: Database) -> None:
    payer = open_account(shared_database)

    def try_to_roll(_: int) -> bool:
        try:
            roll(shared_database, payer, HOUR)
        except ApiKeyError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(try_to_roll, range(8))) == [False] * 7 + [True]
    with shared_database.transaction() as connection:
        assert len(list_api_keys(connection, payer.business.id)) == 2


# Revoking


def test_a_key_that_is_revoked_later_works_until_then(connection: Connection, business: Business) -> None:
    key, digest = create(connection, business)
    revoked = revoke_api_key(connection, key.id, after=HOUR)
    assert revoked.revoked_at is not None
    assert set(find_secret_keys(connection, [digest])) == {digest}
    end_grace(connection, key.id)
    assert find_secret_keys(connection, [digest]) == {}


def test_revoking_ends_a_grace_at_once(connection: Connection, business: Business) -> None:
    key, digest = create(connection, business)
    new, text, old = roll_api_key(connection, key.id, grace=DAY)
    revoked = revoke_api_key(connection, key.id)
    assert revoked.revoked_at is not None
    assert old.revoked_at is not None
    assert revoked.revoked_at < old.revoked_at
    assert find_secret_keys(connection, [digest, digest_of(text)]) == {digest_of(text): (business.id, new.id)}
    assert find_standing(connection, business.id, key.id) is Outcome.UNAUTHORIZED


def test_revoking_brings_an_end_nearer_and_never_puts_it_off(connection: Connection, business: Business) -> None:
    key, _ = create(connection, business)
    day = revoke_api_key(connection, key.id, after=DAY)
    assert revoke_api_key(connection, key.id, after=2 * DAY) == day
    hour = revoke_api_key(connection, key.id, after=HOUR)
    assert revoke_api_key(connection, key.id, after=DAY) == hour
    now = revoke_api_key(connection, key.id)
    for after in (NONE, HOUR, DAY):
        assert revoke_api_key(connection, key.id, after=after) == now
    ends = [each.revoked_at for each in (now, hour, day)]
    assert None not in ends
    assert ends == sorted(each for each in ends if each)


# Last uses


def test_last_use_is_written_for_live_keys_and_those_in_their_grace(connection: Connection, business: Business) -> None:
    live, live_digest = create(connection, business)
    rolled, rolled_digest = create(connection, business)
    unused, _ = create(connection, business)
    roll_api_key(connection, rolled.id, grace=HOUR)
    write_last_used(connection, [live_digest, rolled_digest])
    assert get_api_key(connection, live.id).last_used_at is not None
    assert get_api_key(connection, rolled.id).last_used_at is not None
    assert get_api_key(connection, unused.id) == unused


def test_last_use_leaves_keys_alone_that_are_past_their_end(database: Database) -> None:
    # Transactions of their own, since a use is written with its transaction's time.
    with database.transaction() as connection:
        business = create_business(connection, "ACME", payouts_enabled=True)
        revoked, revoked_digest = create(connection, business)
        used, used_digest = create(connection, business)
        ended, ended_digest = create(connection, business)
        write_last_used(connection, [used_digest])
        roll_api_key(connection, ended.id, grace=HOUR)
        end_grace(connection, ended.id)
        for key in (revoked, used):
            revoke_api_key(connection, key.id)
        before = list_api_keys(connection, business.id)
    with database.transaction() as connection:
        write_last_used(connection, sorted([revoked_digest, used_digest, ended_digest]))
        assert list_api_keys(connection, business.id) == before
    assert [each.last_used_at is not None for each in before] == [False, True, False, False]


def test_a_later_use_replaces_the_earlier_one(database: Database) -> None:
    with database.transaction() as connection:
        key, digest = create(connection, create_business(connection, "ACME", payouts_enabled=True))
    uses = []
    for _ in range(2):
        with database.transaction() as connection:
            write_last_used(connection, [digest])
            uses.append(get_api_key(connection, key.id).last_used_at)
    assert uses[0] is not None
    assert uses[1] is not None
    assert uses[0] < uses[1]


def test_uses_of_unknown_keys_and_no_uses_change_nothing(connection: Connection, business: Business) -> None:
    key, _ = create(connection, business)
    write_last_used(connection, [])
    write_last_used(connection, [b"?", digest_of("nobody's")])
    assert get_api_key(connection, key.id) == key


# Allocating with a rolled key


def test_the_ledger_accepts_a_key_within_its_grace(database: Database, payer: Account) -> None:
    new, old = roll(database, payer, HOUR)
    assert pay(database, payer, old.id, new.id) == [Outcome.ALLOCATED] * 2
    assert read_payout_balance(database, payer.business.id) == 999_800
    assert verify_books(database).balanced


def test_the_ledger_refuses_a_key_past_its_grace(database: Database, payer: Account) -> None:
    new, old = roll(database, payer, HOUR)
    with database.transaction() as connection:
        end_grace(connection, old.id)
    assert pay(database, payer, old.id, new.id, old.id) == [
        Outcome.UNAUTHORIZED,
        Outcome.ALLOCATED,
        Outcome.UNAUTHORIZED,
    ]
    assert read_payout_balance(database, payer.business.id) == 999_900
    assert verify_books(database).balanced


def test_the_ledger_refuses_a_key_that_was_rolled_without_grace(database: Database, payer: Account) -> None:
    new, old = roll(database, payer, NONE)
    assert pay(database, payer, old.id, new.id) == [Outcome.UNAUTHORIZED, Outcome.ALLOCATED]


def test_a_public_key_in_its_grace_allocates_nothing(database: Database, payer: Account) -> None:
    with database.transaction() as connection:
        public, _ = create_api_key(connection, payer.business.id, KeyKind.PUBLIC)
        new, _, _ = roll_api_key(connection, public.id, grace=HOUR)
    assert pay(database, payer, public.id, new.id) == [Outcome.UNAUTHORIZED] * 2


@pytest.mark.parametrize("is_rolled_before", [False, True])
def test_an_allocation_that_waits_while_its_key_is_revoked_is_refused(
    shared_database: Database, is_rolled_before: bool
) -> None:
    payer = open_account(shared_database)
    if is_rolled_before:
        roll(shared_database, payer, DAY)
    with ThreadPoolExecutor(1) as threads:
        with shared_database.transaction() as connection:
            lock_business(connection, payer.business.id)
            waiting = threads.submit(pay, shared_database, payer, payer.api_key_id)
            wait_until_blocked(shared_database)
            revoke_api_key(connection, payer.api_key_id)
        assert waiting.result() == [Outcome.UNAUTHORIZED]
    assert read_payout_balance(shared_database, payer.business.id) == 1_000_000


def test_a_grace_that_ends_while_an_allocation_waits_has_ended(shared_database: Database) -> None:
    payer = open_account(shared_database)
    roll(shared_database, payer, HOUR)
    with ThreadPoolExecutor(1) as threads:
        with shared_database.transaction() as connection:
            lock_business(connection, payer.business.id)
            waiting = threads.submit(pay, shared_database, payer, payer.api_key_id)
            wait_until_blocked(shared_database)
            run_sql(shared_database, "UPDATE api_keys SET revoked_at = clock_timestamp() WHERE revoked_at IS NOT NULL")
        assert waiting.result() == [Outcome.UNAUTHORIZED]
    assert read_payout_balance(shared_database, payer.business.id) == 1_000_000
