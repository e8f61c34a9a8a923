"""API keys over HTTP: rolled, revoked, of a business that is gone, and when each was last used."""

import time
from datetime import timedelta
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from api.web.authentication import WRITE_USES_EVERY_S
from core.credentials import KeyKind
from core.parties import api_keys
from tests.polling import wait_until
from tests.servers import Account, System

READS = ["/balance", "/payout/users", "/payout/transactions", "/payout/users/usr_x", "/payout/transactions/txn_x"]


def status_codes(client: httpx.Client, account: Account, secret_key: str) -> set[int]:
    """Call everything that a secret key opens, once each."""
    headers = {"Authorization": f"Bearer {secret_key}"}
    answers = [client.get(path, headers=headers) for path in READS]
    answers.append(client.patch("/payout/users/usr_x", json={"status": "active"}, headers=headers))
    answers.append(client.post("/payout/create", json={"email": "user@example.com", "amount": 1}, headers=headers))
    answers.append(client.get("/payout/users", headers=headers | {"Accept": "text/csv"}))
    return {answer.status_code for answer in answers}


def run(system: System, statement: str, **parameters: object) -> None:
    with system.database.transaction() as connection:
        connection.execute(sa.text("SET LOCAL payouts.rewrite_history = 'on'"))
        connection.execute(sa.text(statement), parameters)


def last_used(system: System, api_key_id: UUID) -> object:
    with system.database.transaction() as connection:
        return api_keys.get_api_key(connection, api_key_id).last_used_at


def test_revoked_key_is_refused_at_once_by_a_process_that_knows_it(
    system: System, client: httpx.Client, account: Account
) -> None:
    assert status_codes(client, account, account.secret_key) == {200, 201, 404}
    with system.database.transaction() as connection:
        api_keys.revoke_api_key(connection, account.api_key_id)
    assert status_codes(client, account, account.secret_key) == {401}


def test_rolled_key_works_through_its_grace_and_the_new_one_at_once(
    system: System, client: httpx.Client, account: Account
) -> None:
    with system.database.transaction() as connection:
        _, new, _ = api_keys.roll_api_key(connection, account.api_key_id, grace=timedelta(hours=1))
    assert status_codes(client, account, account.secret_key) == {200, 201, 404}
    assert status_codes(client, account, new) == {200, 201, 404}
    with system.database.transaction() as connection:
        api_keys.revoke_api_key(connection, account.api_key_id)
    assert status_codes(client, account, account.secret_key) == {401}
    assert status_codes(client, account, new) == {200, 201, 404}


def test_grace_ends_by_itself(system: System, client: httpx.Client, account: Account) -> None:
    with system.database.transaction() as connection:
        api_keys.roll_api_key(connection, account.api_key_id, grace=timedelta(seconds=1.5))
    assert status_codes(client, account, account.secret_key) == {200, 201, 404}
    time.sleep(1.6)
    assert status_codes(client, account, account.secret_key) == {401}


def test_public_key_opens_nothing(system: System, client: httpx.Client, account: Account) -> None:
    with system.database.transaction() as connection:
        _, public = api_keys.create_api_key(connection, account.business.id, KeyKind.PUBLIC)
    assert status_codes(client, account, public) == {401}


def test_key_of_a_business_that_is_gone_is_refused(system: System, client: httpx.Client, account: Account) -> None:
    assert client.get("/balance", headers=account.headers).status_code == 200
    ids = {"live": account.business.id, "test": account.business.twin_id}
    run(system, "DELETE FROM api_keys WHERE business_id IN (:live, :test)", **ids)
    run(system, "DELETE FROM payout_transactions WHERE business_id IN (:live, :test)", **ids)
    run(system, "DELETE FROM main_transactions WHERE business_id IN (:live, :test)", **ids)
    run(system, "DELETE FROM businesses WHERE id IN (:live, :test)", **ids)
    assert status_codes(client, account, account.secret_key) == {401}


def test_use_of_a_key_is_written_after_a_while(system: System, client: httpx.Client, account: Account) -> None:
    assert last_used(system, account.api_key_id) is None
    client.get("/balance", headers=account.headers)
    wait_until(lambda: last_used(system, account.api_key_id), timeout_s=WRITE_USES_EVERY_S + 5, pause_s=0.2)


@pytest.mark.parametrize(
    "sent",
    ["a b", "a\tb", "é", "x" * 129, "<script>", "a%0d%0aSet-Cookie: b=c", '{"a"}', "a,b"],
)
def test_request_id_that_is_not_sane_is_replaced(client: httpx.Client, sent: str) -> None:
    response = client.get("/balance", headers=[(b"X-Request-Id", sent.encode())])
    (answered,) = response.headers.get_list("x-request-id")
    assert len(bytes.fromhex(answered)) == 16
    assert "set-cookie" not in response.headers


def test_sane_request_id_comes_back_on_every_call(client: httpx.Client, account: Account) -> None:
    for path in ["/balance", "/payout/users?limit=0", "/payout/user", "/nothing", "/health/live", "/schema"]:
        response = client.get(path, headers=account.headers | {"X-Request-Id": "order-1234/5.6_7"})
        assert response.headers["x-request-id"] == "order-1234/5.6_7"
