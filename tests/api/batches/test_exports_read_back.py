"""What the product writes, it reads: results pay the same people what is not paid, and other exports pay nobody."""

from typing import Any

import httpx
import pytest

from core.batches import payment
from core.batches.payout_batch import BatchRow
from core.ids import IdKind, format_id
from core.parties.businesses import set_payouts_enabled
from tests.api.batches.test_endpoint import accept_unsent, pay_by_hand, results_of, send, wait_until_finished
from tests.core.builders import read_history
from tests.servers import Account, System, verify_books

ODD = [
    BatchRow("a@example.com", 1),
    BatchRow("+nora@example.com", 1500, "=1+1"),
    BatchRow("=x@example.com", 2, "'=quoted"),
    BatchRow("-y@example.com", 3, '@home, "9"'),
    BatchRow("'z@example.com", 4, "''x"),
    BatchRow("é@example.com", 5, "ünïcode \U0001f600"),
    BatchRow("a@example.com", 1, "+1"),
]


def export(client: httpx.Client, account: Account, path: str) -> bytes:
    response = client.get(path, headers=account.headers | {"Accept": "text/csv"})
    assert response.status_code == 200
    return response.content


def test_the_results_of_a_cancelled_batch_pay_the_rest_to_the_same_people(
    system: System, client: httpx.Client, account: Account
) -> None:
    batch = accept_unsent(system, account, *ODD)
    pay_by_hand(system, account, batch, 0, 2)
    with system.database.transaction() as connection:
        payment.cancel(connection, account.business.id, batch)
        set_payouts_enabled(connection, account.business.id, enabled=True)
    results = export(client, account, f"/payout/batches/{format_id(IdKind.BATCH, batch)}/results")
    answer = send(client, account, content=results, content_type="text/csv")
    assert answer.status_code == 202, answer.text
    assert answer.json()["total"] == len(ODD) - 2
    again = wait_until_finished(client, account, answer.json()["id"])
    assert again["status"] == "completed"
    paid: list[tuple[Any, ...]] = [
        (row.email, row.amount, row.reference) for row in read_history(system.database, account.business.id)
    ]
    assert sorted(paid, key=str) == sorted(((row.email, row.amount_cents, row.reference) for row in ODD), key=str)
    # And once more: all of it is paid.
    refused = send(
        client,
        account,
        content=export(client, account, f"/payout/batches/{again['id']}/results"),
        content_type="text/csv",
    )
    assert refused.json() == {"allocations": ["Every row of these results is paid already."]}
    assert {row["outcome"] for row in results_of(client, account, again["id"])} == {"allocated"}
    assert verify_books(system.database).balanced


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/payout/transactions", "This is an export of the history: nothing to pay in it."),
        ("/payout/users", "This is an export of the payout users: nothing to pay in it."),
        ("/payout/batches", "This is an export of the batches: nothing to pay in it."),
    ],
)
def test_other_exports_are_refused_for_what_they_are(
    system: System, client: httpx.Client, account: Account, path: str, text: str
) -> None:
    batch = send(client, account, [{"email": "a@example.com", "amount": 1}]).json()["id"]
    wait_until_finished(client, account, batch)
    refused = send(client, account, content=export(client, account, path), content_type="text/csv")
    assert (refused.status_code, refused.json()) == (400, {"allocations": [text]})
    assert system.read_paid(account) == (1, 1)
