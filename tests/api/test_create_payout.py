"""POST /payout/create, over HTTP, on the real parts."""

import httpx

from tests.servers import Account, System, open_account


def test_first_allocation_answers_201_with_64_hex_digits(
    system: System, client: httpx.Client, account: Account
) -> None:
    response = system.pay(client, account, "user@example.com", 10_000)
    assert response.status_code == 201
    assert list(response.json()) == ["hash"]
    assert len(bytes.fromhex(response.json()["hash"])) == 32


def test_same_email_in_capitals_is_the_same_user(system: System, client: httpx.Client, account: Account) -> None:
    first = system.pay(client, account, "user@example.com", 10_000)
    second = system.pay(client, account, " USER@EXAMPLE.COM ", 5)
    assert second.status_code == 201
    assert second.json() == first.json()


def test_another_business_gets_another_hash(system: System, client: httpx.Client, account: Account) -> None:
    other = open_account(system.database)
    first = system.pay(client, account, "user@example.com", 1)
    second = system.pay(client, other, "user@example.com", 1)
    assert first.json() != second.json()
