"""Businesses, their keys and their users."""

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection

from core.credentials import KeyKind, Mode, digest_of, looks_like_secret_key
from core.database.connection import Database
from core.ledger import statements
from core.messages import Outcome
from core.money import BALANCE_MAX_CENTS
from core.parties.api_keys import (
    NoSuchApiKeyError,
    create_api_key,
    find_secret_keys,
    find_standing,
    list_api_keys,
    revoke_api_key,
)
from core.parties.businesses import (
    PLAY_MONEY_CENTS,
    BusinessError,
    create_business,
    find_businesses_by_name,
    fund_business,
    get_business,
    list_businesses,
    set_payouts_enabled,
)
from core.parties.payout_users import PayoutUserError, find_payout_user
from tests.core.builders import HASH_SECRET, make_allocation
from tests.servers import verify_books


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.transaction() as opened:
        yield opened


def pay(connection: Connection, business_id: UUID, email: str) -> None:
    business = get_business(connection, business_id)
    if business.payout_balance == 0:
        fund_business(connection, business.id, 1_000)
    key, _ = create_api_key(connection, business.id, KeyKind.SECRET)
    paid = make_allocation(business.id, key.id, email=email)
    assert statements.allocate(connection, HASH_SECRET, [paid]) == [Outcome.ALLOCATED]


def test_a_business_starts_without_funds_and_its_test_twin_with_play_money(connection: Connection) -> None:
    live = create_business(connection, " ACME ", payouts_enabled=False)
    test = get_business(connection, live.twin_id)
    assert (live.name, live.mode, live.payout_balance, live.payouts_enabled) == ("ACME", Mode.LIVE, 0, False)
    assert (test.name, test.mode, test.payout_balance) == ("ACME", Mode.TEST, PLAY_MONEY_CENTS)
    assert test.payouts_enabled
    assert test.twin_id == live.id


def test_a_new_business_balances(database: Database) -> None:
    with database.transaction() as connection:
        fund_business(connection, create_business(connection, "ACME", payouts_enabled=True).id, 5)
    assert verify_books(database).balanced


@pytest.mark.parametrize("name", ["", " ", "\t\n", "AC\0ME", "AC\nME", "ACME\x1b[31m", "\u200b", "\ud800", "a\u202eb"])
def test_a_name_must_be_visible(connection: Connection, name: str) -> None:
    with pytest.raises(BusinessError, match="The name must"):
        create_business(connection, name, payouts_enabled=True)


def test_any_visible_name_will_do(connection: Connection) -> None:
    for name in ("Ä", "株式会社", "O'Brien & Söhne; DROP TABLE businesses --", "%(name)s :name {name}"):
        assert create_business(connection, name, payouts_enabled=True).name == name


def test_funding_adds_up(connection: Connection) -> None:
    business = create_business(connection, "ACME", payouts_enabled=True)
    assert fund_business(connection, business.id, 1).payout_balance == 1
    assert fund_business(connection, business.id, BALANCE_MAX_CENTS - 1).payout_balance == BALANCE_MAX_CENTS


@pytest.mark.parametrize("amount_cents", [0, -1, BALANCE_MAX_CENTS + 1, 10**30])
def test_an_amount_out_of_bounds_is_not_funded(connection: Connection, amount_cents: int) -> None:
    business = create_business(connection, "ACME", payouts_enabled=True)
    with pytest.raises(BusinessError, match="The amount must be between"):
        fund_business(connection, business.id, amount_cents)
    assert get_business(connection, business.id).payout_balance == 0


def test_a_balance_has_a_limit(connection: Connection) -> None:
    business = create_business(connection, "ACME", payouts_enabled=True)
    fund_business(connection, business.id, 1)
    with pytest.raises(BusinessError, match="The payout balance may not be greater"):
        fund_business(connection, business.id, BALANCE_MAX_CENTS)


def test_an_unknown_business_is_an_error(connection: Connection) -> None:
    with pytest.raises(BusinessError, match="no such business"):
        get_business(connection, uuid4())
    with pytest.raises(BusinessError, match="no such business"):
        fund_business(connection, uuid4(), 1)
    with pytest.raises(BusinessError, match="no such business"):
        set_payouts_enabled(connection, uuid4(), enabled=True)
    with pytest.raises(BusinessError, match="no such business"):
        create_api_key(connection, uuid4(), KeyKind.SECRET)
    with pytest.raises(BusinessError, match="no such business"):
        list_api_keys(connection, uuid4())


def test_live_businesses_are_listed_oldest_first(connection: Connection) -> None:
    created = [create_business(connection, name, payouts_enabled=True) for name in ("B", "A", "C")]
    assert list_businesses(connection) == created


def test_a_name_finds_the_live_businesses_that_have_exactly_it(connection: Connection) -> None:
    created = [create_business(connection, "ACME", payouts_enabled=True) for _ in range(2)]
    assert find_businesses_by_name(connection, "ACME") == created
    assert find_businesses_by_name(connection, "acme") == []


def test_a_secret_key_is_found_by_its_digest_until_it_is_revoked(connection: Connection) -> None:
    business = create_business(connection, "ACME", payouts_enabled=True)
    key, secret = create_api_key(connection, business.id, KeyKind.SECRET)
    assert looks_like_secret_key(secret)
    assert secret.endswith(key.last4)
    assert find_secret_keys(connection, [digest_of(secret), b"?"]) == {digest_of(secret): (business.id, key.id)}
    revoke_api_key(connection, key.id)
    assert find_secret_keys(connection, [digest_of(secret)]) == {}


def test_a_public_key_is_never_found(connection: Connection) -> None:
    business = create_business(connection, "ACME", payouts_enabled=True)
    key, public = create_api_key(connection, business.id, KeyKind.PUBLIC)
    assert public.startswith("pk_live_")
    assert find_secret_keys(connection, [digest_of(public)]) == {}
    assert find_standing(connection, business.id, key.id) is Outcome.UNAUTHORIZED
    fund_business(connection, business.id, 100)
    refused = make_allocation(business.id, key.id)
    assert statements.allocate(connection, HASH_SECRET, [refused]) == [Outcome.UNAUTHORIZED]


def test_keys_of_both_twins_are_listed_and_say_their_mode(connection: Connection) -> None:
    business = create_business(connection, "ACME", payouts_enabled=True)
    _, live = create_api_key(connection, business.id, KeyKind.SECRET)
    _, test = create_api_key(connection, business.twin_id, KeyKind.SECRET)
    create_api_key(connection, create_business(connection, "Other", payouts_enabled=True).id, KeyKind.SECRET)
    listed = list_api_keys(connection, business.id)
    assert [(key.mode, key.last4) for key in listed] == [(Mode.LIVE, live[-4:]), (Mode.TEST, test[-4:])]
    assert live.startswith("sk_live_")
    assert test.startswith("sk_test_")


def test_revoking_twice_keeps_the_first_time(database: Database) -> None:
    with database.transaction() as connection:
        business = create_business(connection, "ACME", payouts_enabled=True)
        key, _ = create_api_key(connection, business.id, KeyKind.SECRET)
    assert key.revoked_at is None
    with database.transaction() as connection:
        first = revoke_api_key(connection, key.id)
    with database.transaction() as connection:
        assert revoke_api_key(connection, key.id) == first
        assert list_api_keys(connection, business.id) == [first]
    assert first.revoked_at is not None


def test_an_unknown_key_cannot_be_revoked(connection: Connection) -> None:
    with pytest.raises(NoSuchApiKeyError, match="no such API key"):
        revoke_api_key(connection, uuid4())


def test_the_standing_of_a_key_is_what_an_allocation_would_be_told(connection: Connection) -> None:
    business = create_business(connection, "ACME", payouts_enabled=True)
    key, _ = create_api_key(connection, business.id, KeyKind.SECRET)
    assert find_standing(connection, business.id, key.id) is None
    assert find_standing(connection, business.twin_id, key.id) is Outcome.UNAUTHORIZED
    set_payouts_enabled(connection, business.id, enabled=False)
    assert find_standing(connection, business.id, key.id) is Outcome.PAYOUTS_DISABLED
    revoke_api_key(connection, key.id)
    assert find_standing(connection, business.id, key.id) is Outcome.UNAUTHORIZED


def test_a_user_is_found_by_any_spelling(connection: Connection) -> None:
    business = create_business(connection, "ACME", payouts_enabled=True)
    pay(connection, business.id, "josé@xn--bcher-kva.example")
    for email in ("josé@bücher.example", " JOSE\u0301@BÜCHER.EXAMPLE ", "José@XN--BCHER-KVA.example"):
        user = find_payout_user(connection, business.id, email)
        assert (user.email, user.balance, user.status) == ("josé@xn--bcher-kva.example", 100, "active")
        assert find_payout_user(connection, None, email) == user


@pytest.mark.parametrize("email", ["other@example.com", "no address", "", "a\0@example.com", "\ud800@example.com"])
def test_an_email_that_nobody_has_is_an_error(connection: Connection, email: str) -> None:
    with pytest.raises(PayoutUserError, match="There is no payout user"):
        find_payout_user(connection, None, email)


def test_an_email_that_several_businesses_know_needs_the_business(connection: Connection) -> None:
    both = [create_business(connection, name, payouts_enabled=True) for name in ("A", "B")]
    for business in both:
        pay(connection, business.id, "user@example.com")
    with pytest.raises(PayoutUserError, match="Several businesses"):
        find_payout_user(connection, None, "user@example.com")
    assert find_payout_user(connection, both[1].id, "user@example.com").business_id == both[1].id


def test_a_user_of_a_test_twin_is_found_only_there(connection: Connection) -> None:
    business = create_business(connection, "ACME", payouts_enabled=True)
    pay(connection, business.twin_id, "user@example.com")
    assert find_payout_user(connection, business.twin_id, "user@example.com").balance == 100
    for business_id in (None, business.id):
        with pytest.raises(PayoutUserError, match="There is no payout user"):
            find_payout_user(connection, business_id, "user@example.com")
