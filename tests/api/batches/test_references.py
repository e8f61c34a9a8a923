"""References in payout batches, over HTTP, on the real parts."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from core.batches import payment
from core.ids import IdKind, format_id, parse_id
from tests.api.batches.test_endpoint import pay, results_of, send, send_accepted, wait_until_finished
from tests.core.builders import read_history
from tests.servers import Account, System, verify_books


def rows_of(*names: str, amount: int = 10) -> list[dict[str, Any]]:
    return [{"email": f"{name}@example.com", "amount": amount, "reference": name} for name in names]


def test_yesterdays_file_with_one_line_more_pays_one_line(
    system: System, client: httpx.Client, account: Account
) -> None:
    pay(client, account, rows_of("a", "b"))
    answer = send(client, account, rows_of("b", "new", "a"))
    assert answer.status_code == 202
    shown = answer.json()
    assert (shown["status"], shown["total"], shown["already_paid"], shown["amount"]) == ("queued", 3, 2, 10)
    done = wait_until_finished(client, account, shown["id"])
    assert (done["status"], done["processed"], done["allocated_amount"]) == ("completed", 3, 10)
    results = results_of(client, account, shown["id"])
    assert [row["outcome"] for row in results] == ["already_paid", "allocated", "already_paid"]
    payments = {row.reference: row for row in read_history(system.database, account.business.id)}
    assert sorted(name or "" for name in payments) == ["a", "b", "new"]
    for row in results:
        assert row["transaction"] == format_id(IdKind.TRANSACTION, payments[row["reference"]].id)
        assert row["hash"]


def test_a_batch_of_which_all_is_paid_has_nothing_to_do(client: httpx.Client, account: Account) -> None:
    for name in ("a", "b"):
        body = {"email": f"{name}@example.com", "amount": 10, "reference": name}
        assert client.post("/payout/create", json=body, headers=account.headers).status_code == 201
    answer = send(client, account, rows_of("a", "b"), key="key").json()
    assert (answer["status"], answer["total"], answer["already_paid"], answer["amount"]) == ("completed", 2, 2, 0)
    assert answer["finished_at"] is not None
    again = send(client, account, rows_of("a", "b"), key="key")
    assert (again.json(), again.headers["idempotent-replayed"]) == (answer, "true")


def test_a_call_replays_what_a_batch_paid(client: httpx.Client, account: Account) -> None:
    batch_id = pay(client, account, rows_of("a"))
    body = {"email": "A@example.com", "amount": 10, "reference": "a"}
    answer = client.post("/payout/create", json=body, headers=account.headers)
    assert (answer.status_code, answer.headers["idempotent-replayed"]) == (201, "true")
    assert answer.json()["hash"] == results_of(client, account, batch_id)[0]["hash"]
    assert client.post("/payout/create", json=body | {"amount": 11}, headers=account.headers).status_code == 422


def test_other_values_are_refused_by_row(system: System, client: httpx.Client, account: Account) -> None:
    pay(client, account, rows_of("a", "b"))
    answer = send(client, account, [*rows_of("a", "new"), *rows_of("b", amount=11)])
    text = "The allocations.2.reference was already used for another payment."
    assert (answer.status_code, answer.json()) == (400, {"allocations.2.reference": [text]})
    assert len(read_history(system.database, account.business.id)) == 2


def test_at_most_100_rows_are_reported(client: httpx.Client, account: Account) -> None:
    names = [f"r{number}" for number in range(150)]
    send_accepted(client, account, rows_of(*names))
    answer = send(client, account, rows_of(*names, amount=11))
    assert list(answer.json()) == [f"allocations.{row}.reference" for row in range(100)]


def test_a_cancelled_batch_is_finished_by_sending_its_file_again(
    system: System, client: httpx.Client, account: Account
) -> None:
    names = [f"r{number}" for number in range(5_000)]
    batch_id = send_accepted(client, account, rows_of(*names, amount=1))
    with system.database.transaction() as connection:
        id_ = parse_id(IdKind.BATCH, batch_id)
        assert id_ is not None
        cancelled = payment.cancel(connection, account.business.id, id_)
    again = send(client, account, rows_of(*names, amount=1)).json()
    assert again["already_paid"] == cancelled.processed < 5_000
    wait_until_finished(client, account, again["id"])
    paid = [row.reference for row in read_history(system.database, account.business.id)]
    assert sorted(name or "" for name in paid) == sorted(names)
    assert verify_books(system.database).balanced


def test_two_files_and_calls_at_once_share_nothing_twice(
    system: System, client: httpx.Client, account: Account
) -> None:
    names = [f"r{number}" for number in range(300)]

    def hand_in(number: int) -> None:
        if number < 4:
            file = names[number * 50 :] + names[: number * 25]
            wait_until_finished(client, account, send_accepted(client, account, rows_of(*file)))
            return
        for name in names[number * 20 : number * 20 + 20]:
            body = {"email": f"{name}@example.com", "amount": 10, "reference": name}
            assert client.post("/payout/create", json=body, headers=account.headers).status_code == 201

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hand_in, range(8)))
    paid = [row.reference for row in read_history(system.database, account.business.id)]
    assert sorted(name or "" for name in paid) == sorted(names)
    assert verify_books(system.database).balanced


def test_the_same_file_at_once_without_a_key_pays_once(system: System, client: httpx.Client, account: Account) -> None:
    names = [f"r{number}" for number in range(200)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: send(client, account, rows_of(*names)), range(4)))
    assert {answer.status_code for answer in answers} == {202}
    assert sorted(answer.json()["already_paid"] for answer in answers) == [0, 200, 200, 200]
    for answer in answers:
        wait_until_finished(client, account, answer.json()["id"])
    assert len(read_history(system.database, account.business.id)) == 200


# Previews


def test_a_preview_tells_what_a_file_would_do_and_accepts_nothing(
    system: System, client: httpx.Client, account: Account
) -> None:
    unnamed = [{"email": "x@example.com", "amount": 7}, {"email": "y@example.com", "amount": 8}]
    batch_id = pay(client, account, [*rows_of("a"), *unnamed])
    rows = [*unnamed, *rows_of("a", "new"), {"email": "z@example.com", "amount": 9}]
    response = client.post("/payout/batches/preview", json={"allocations": rows}, headers=account.headers)
    assert response.status_code == 200, response.text
    found = response.json()
    assert {name: found[name] for name in ("total", "already_paid", "amount", "batch", "equal_batch")} == {
        "total": 5,
        "already_paid": 1,
        "amount": 7 + 8 + 10 + 9,
        "batch": None,
        "equal_batch": None,
    }
    assert (found["rows_without_reference"], found["equal_rows"]) == (3, 2)
    payments = {row.email: row for row in read_history(system.database, account.business.id)}
    for number, each in enumerate(found["equal_payments"]):
        paid = payments[str(unnamed[number]["email"])]
        assert (each["row"], each["transaction"]) == (number, format_id(IdKind.TRANSACTION, paid.id))
        assert each["origin"] == {
            "paid_at": each["origin"]["paid_at"],
            "how": "POST /payout/batches",
            "by": f"key …{account.secret_key[-4:]}",
            "batch": batch_id,
        }
    assert len(client.get("/payout/batches", headers=account.headers).json()["data"]) == 1


def test_a_preview_refuses_what_the_batch_would_be_refused_for(client: httpx.Client, account: Account) -> None:
    pay(client, account, rows_of("a"))
    for rows in (rows_of("a", amount=11), [{"email": "x", "amount": 1}], []):
        asked = client.post("/payout/batches/preview", json={"allocations": rows}, headers=account.headers)
        assert (asked.status_code, asked.json()) == (400, send(client, account, rows).json())
    assert client.post("/payout/batches/preview", json={"allocations": rows_of("a")}).status_code == 401


def test_a_preview_with_the_key_of_an_accepted_batch_names_it(client: httpx.Client, account: Account) -> None:
    rows = [{"email": "x@example.com", "amount": 7}]
    batch_id = pay(client, account, rows, key="key")
    headers = account.headers | {"Idempotency-Key": "key"}
    found = client.post("/payout/batches/preview", json={"allocations": rows}, headers=headers).json()
    assert (found["batch"], found["already_paid"], found["amount"], found["equal_rows"]) == (batch_id, 1, 0, 0)
