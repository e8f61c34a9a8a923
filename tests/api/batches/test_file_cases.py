"""Every file of `file_cases` through the real doors: the command, the dashboard and the API."""

import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from api.cli.main import main
from tests.api.batches.file_cases import API, CASES, DASHBOARD, DOLLARS, DOORS, PUSH, Case, Paid, Payment
from tests.dashboard.visitors import Document, base, sign_in
from tests.servers import Account, System, open_account, verify_books

FUNDS_CENTS = 100_000_000


def read_payments_of(system: System, account: Account) -> tuple[Payment, ...]:
    """Return what a business's batches pay, in the order of their rows."""
    query = sa.text(
        "SELECT email, amount, reference FROM payout_batch_items WHERE business_id = :id ORDER BY batch_id, position"
    )
    with system.database.transaction() as connection:
        return tuple(
            (email, amount, ref) for email, amount, ref in connection.execute(query, {"id": account.business.id})
        )


def go_to_push(case: Case, system: System, account: Account, tmp_path: Path, run: Callable[[list[str]], str]) -> str:
    path = tmp_path / case.name
    path.write_bytes(case.content)
    unit = ["--decimal"] if case.unit == DOLLARS else []
    return run([str(path), "--key", account.secret_key, "--url", system.base_url, "--yes", *unit, *case.arguments])


def go_to_dashboard(case: Case, system: System, account: Account) -> str:
    visitor = sign_in(system, account.business)
    form = visitor.open(f"{base(account.business)}/batches").form("/batches/uploads")
    values = form.values | {"unit": case.unit}
    response = visitor.client.post(form.action, data=values, files={"file": (case.name, case.content)})
    page = Document(response.text) if response.status_code == 422 else visitor.follow(response)
    if case.fields:
        choice = page.form("/columns")
        response = visitor.send(choice, None, **dict(case.fields))
        page = Document(response.text) if response.status_code == 422 else visitor.follow(response)
    path = response.headers.get("location", "")
    pays = [each for each in page.forms if each.action == path and "uploads" in path]
    if pays:
        assert visitor.send(pays[0]).status_code == 303
    return page.text


def go_to_api(case: Case, client: httpx.Client, account: Account) -> str:
    headers = account.headers | ({"Content-Type": case.content_type} if case.content_type else {})
    response = client.post("/payout/batches", content=case.content, headers=headers)
    if isinstance(case.right, Paid):
        assert response.status_code == 202, response.text
        return ""
    assert response.status_code == 400, response.text
    texts = response.json().values()
    return "\n".join(text for each in texts for text in ([each] if isinstance(each, str) else each)) + str(
        list(response.json())
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    def run_main(arguments: list[str]) -> str:
        monkeypatch.setattr(sys, "argv", ["payouts", "push", *arguments])
        with pytest.raises(SystemExit):
            main()
        return "".join(capsys.readouterr())

    return run_main


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_file_is_read_alike_at_every_door(
    case: Case, system: System, client: httpx.Client, tmp_path: Path, run: Callable[[list[str]], str]
) -> None:
    account = open_account(system.database, funds_cents=FUNDS_CENTS)
    if case.door == PUSH:
        said = go_to_push(case, system, account, tmp_path, run)
    elif case.door == DASHBOARD:
        said = go_to_dashboard(case, system, account)
    else:
        said = go_to_api(case, client, account)
    if isinstance(case.right, Paid):
        assert read_payments_of(system, account) == case.right.payments, said
        texts = case.right.says
    else:
        assert read_payments_of(system, account) == ()
        texts = case.right.texts
    for text in texts:
        assert text in said
    assert "\\" not in said  # no escape sequence
    assert "Traceback" not in said


def test_every_case_is_there_at_every_door_and_the_books_balance(system: System) -> None:
    numbers = {case.number for case in CASES}
    assert numbers == set(range(1, 64))
    without_door = {
        (number, door)
        for number in numbers
        for door in DOORS
        if not any(c.number == number and c.door == door for c in CASES)
    }
    # Only a call has a content type; a call is never in dollars, and takes no workbook with hidden rows.
    assert without_door == {(62, PUSH), (62, DASHBOARD), (63, PUSH), (63, DASHBOARD), (55, API)}
    assert verify_books(system.database).balanced


def test_a_field_that_is_named_twice_is_refused_by_a_single_call_too(
    system: System, client: httpx.Client, account: Account
) -> None:
    body = b'{"email":"a@example.com","amount":1,"amount":100}'
    response = client.post("/payout/create", content=body, headers=account.headers)
    assert (response.status_code, response.json()) == (400, {"amount": ["The amount field must be given once."]})
    assert system.read_paid(account) == (0, 0)


def test_a_single_call_takes_an_amount_that_json_calls_an_integer(
    system: System, client: httpx.Client, account: Account
) -> None:
    for amount in (b"100.0", b"1e2"):
        body = b'{"email":"a@example.com","amount":' + amount + b"}"
        assert client.post("/payout/create", content=body, headers=account.headers).status_code == 201
    assert system.read_paid(account) == (2, 200)
