"""Batches: a file is uploaded, shown, accepted once, paid, and read back."""

import csv
import io
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from core.batches import reading
from core.batches.payout_batch import BODY_MAX_BYTES
from core.credentials import Mode
from core.parties import businesses
from core.parties.businesses import Business
from core.parties.members import Role
from tests.core.builders import read_history
from tests.dashboard.test_pages import actions
from tests.dashboard.visitors import Document, Visitor, base, read_business, sign_in
from tests.polling import wait_until
from tests.servers import Account, System, open_account, verify_books

FILE = b"email,amount,reference\nanna@example.com,1.50,a\nbela@example.com,2,=b\nANNA@example.com,0.25,\n"


def upload(
    visitor: Visitor, business: Business, content: bytes, name: str = "people.csv", **values: str
) -> httpx.Response:
    form = visitor.open(f"{base(business)}/batches").form("/batches/uploads")
    return visitor.client.post(form.action, data={**form.values, **values}, files={"file": (name, content)})


def read_mistakes(response: httpx.Response) -> str:
    assert response.status_code == 422
    return Document(response.text).text


def wait_until_finished(visitor: Visitor, path: str) -> None:
    wait_until(lambda: visitor.get(f"{path}/progress").json()["is_finished"], timeout_s=60, pause_s=0.1)


def test_a_file_is_shown_accepted_once_and_paid(system: System, account: Account, admin: Visitor) -> None:
    response = upload(admin, account.business, FILE)
    preview = admin.follow(response)
    for shown in ("Rows 3", "Users 2", "Sum $3.75", "now $10,000.00", "after $9,996.25", "anna@example.com $1.50 a"):
        assert shown in preview.text
    assert read_history(system.database, account.business.id) == []
    form = preview.form(response.headers["location"])
    answers = [admin.send(form) for _ in range(3)]
    (path,) = {answer.headers["location"] for answer in answers}
    wait_until_finished(admin, path)
    page = admin.open(path)
    assert "Completed" in page.text
    assert "3 of 3 rows are paid." in page.text
    history = read_history(system.database, account.business.id)
    assert sorted((row.email, row.amount) for row in history) == [
        ("anna@example.com", 25),
        ("anna@example.com", 150),
        ("bela@example.com", 200),
    ]
    assert actions(system, account.business) == ["batch.accepted"]
    rows = list(csv.DictReader(io.StringIO(admin.get(f"{path}/results.csv").text)))
    assert [(row["email"], row["outcome"], row["reference"]) for row in rows] == [
        ("anna@example.com", "allocated", "a"),
        ("bela@example.com", "allocated", "'=b"),
        ("anna@example.com", "allocated", ""),
    ]
    assert all(len(row["hash"]) == 64 for row in rows)
    # A payout hash lets its holder in: viewers do not get it.
    viewer = sign_in(system, account.business, Role.VIEWER)
    rows = list(csv.DictReader(io.StringIO(viewer.get(f"{path}/results.csv").text)))
    assert [row["hash"] for row in rows] == [""] * 3
    assert verify_books(system.database).balanced


def test_what_is_accepted_is_what_its_preview_showed(system: System, account: Account, admin: Visitor) -> None:
    form = admin.open(f"{base(account.business)}/batches").form("/batches/uploads")
    shown, unseen = (
        admin.client.post(form.action, data=form.values, files={"file": ("people.csv", content)}).headers["location"]
        for content in (b"email,amount\nfirst@example.com,1\n", b"email,amount\nsecond@example.com,999\n")
    )
    assert shown != unseen
    accepting = admin.open(unseen).form(unseen)
    accepting.action = shown
    assert "upload" in admin.follow(admin.send(accepting)).text.lower()
    assert read_history(system.database, account.business.id) == []
    assert actions(system, account.business) == []


def test_amounts_may_be_cents_and_rows_json(system: System, account: Account, admin: Visitor) -> None:
    content = b'{"email": "anna@example.com", "amount": 150}\n'
    preview = admin.follow(upload(admin, account.business, content, "people.ndjson", unit="cents"))
    assert "Sum $1.50" in preview.text


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (b"", "Choose a file that is not empty."),
        (b"email,amount\n", "The file has no rows"),
        (b"email|amount\na@example.com|1\n", "separates columns by bars; use commas, semicolons or tabs"),
        (b"email,amount\nnobody,1\nb@example.com,x\n", "Line 2: 'nobody' is not a valid e-mail address."),
        (
            b"email,amount\n\na@example.com,1.234\n",
            "Line 3: the amount '1.234' has more than two decimals, or is 1234 with a thousands separator",
        ),
        (b"email,amount\na@example.com,-1\n", "Line 2: the amount '-1' is not from 0.01 to 1000000.00 dollars."),
        (b"email,amount\n<script>,1\n", "Line 2: '<script>' is not a valid e-mail address."),
        (b"email,amount\n\xff@example.com,1\n", "Line 2 is not valid UTF-8; it is probably Windows-1252."),
        (b"email,amount\n" + b"x,1\n" * 200, "The first 100 mistakes are"),
        (b"email,amount\n" + b"a@example.com,1\n" * 100_001, "more than 100,000 rows"),
        (b"\0\1\2" * 1000, "Line 1"),
    ],
)
def test_mistakes_are_told_by_line_and_nothing_is_taken(
    system: System, account: Account, admin: Visitor, content: bytes, mistake: str
) -> None:
    response = upload(admin, account.business, content)
    assert mistake in read_mistakes(response)
    assert "<script>" not in response.text.replace("<script src=", "")
    with system.database.transaction() as connection:
        assert reading.list_batches(connection, account.business.id, limit=1) == []


def test_cents_are_not_taken_for_dollars(account: Account, admin: Visitor) -> None:
    response = upload(admin, account.business, b"email,amount\na@example.com,1.50\n", unit="cents")
    assert "in cents $1.50 is 150; if the file is in dollars, choose dollars in the form" in read_mistakes(response)


def test_what_cannot_be_paid_now_waits_in_its_preview(system: System, account: Account, admin: Visitor) -> None:
    content = b"email,amount\na@example.com,20000\n"
    response = upload(admin, account.business, content)
    preview = admin.follow(response)
    assert "$10,000.00 are missing" in preview.text
    page = admin.follow(admin.send(preview.form(response.headers["location"])))
    assert "The payout balance is smaller than the sum of the batch." in page.text
    with system.database.transaction() as connection:
        businesses.fund_business(connection, account.business.id, 1_000_000)
        businesses.set_payouts_enabled(connection, account.business.id, enabled=False)
    page = admin.follow(admin.send(page.form(response.headers["location"])))
    assert "Payouts are disabled. Enable them in Settings" in page.text
    with system.database.transaction() as connection:
        businesses.set_payouts_enabled(connection, account.business.id, enabled=True)
    done = admin.send(page.form(response.headers["location"]))
    assert "The batch is accepted" in admin.follow(done).text
    assert read_business(system, account.business).payout_balance == 0


def test_a_batch_is_cancelled(system: System, account: Account, admin: Visitor) -> None:
    response = upload(admin, account.business, FILE)
    form = admin.follow(response).form(response.headers["location"])
    with system.database.transaction() as connection:
        # The workers wait for this row, and find payouts disabled.
        businesses.lock_business(connection, account.business.id)
    path = admin.send(form).headers["location"]
    page = admin.open(path)
    cancels = [each for each in page.forms if each.action.endswith("/cancel")]
    for cancel in cancels:  # unless it was paid in that moment
        text = admin.follow(admin.send(cancel)).text
        assert "is cancelled" in text or "completed already" in text
    wait_until_finished(admin, path)
    assert read_business(system, account.business).reserved_balance == 0
    assert verify_books(system.database).balanced


def test_upload_without_a_unit_is_not_taken_for_dollars(account: Account, admin: Visitor) -> None:
    for unit in ("", "yen"):
        refused = upload(admin, account.business, FILE, unit=unit)
        assert "Choose whether the amounts are in dollars or in cents." in read_mistakes(refused)


def test_uploads_belong_to_one_person_and_business(system: System, account: Account, admin: Visitor) -> None:
    response = upload(admin, account.business, FILE)
    path = response.headers["location"]
    form = admin.open(path).form(path)
    other = sign_in(system, account.business)
    assert "not there any more" in other.follow(other.get(path)).text
    values = other.open(base(account.business)).form("/sign-out").values
    assert "not there any more" in other.follow(other.client.post(path, data=values)).text
    in_test = path.replace(f"/{Mode.LIVE}/", f"/{Mode.TEST}/")
    assert "not there any more" in admin.follow(admin.get(in_test)).text
    # Another upload takes its place.
    admin.follow(upload(admin, account.business, FILE))
    assert "not there any more" in admin.follow(admin.send(form)).text
    assert read_business(system, account.business).reserved_balance == 0


def test_viewers_upload_nothing(account: Account, viewer: Visitor) -> None:
    values = viewer.open(f"{base(account.business)}/batches").form("/sign-out").values
    path = f"{base(account.business)}/batches/uploads"
    response = viewer.client.post(path, data=values, files={"file": ("people.csv", FILE)})
    assert response.status_code == 403


def test_results_of_other_businesses_are_not_there(system: System, account: Account, admin: Visitor) -> None:
    other = open_account(system.database)
    stranger = sign_in(system, other.business)
    response = upload(admin, account.business, FILE)
    path = admin.send(admin.follow(response).form(response.headers["location"])).headers["location"]
    theirs = path.replace(base(account.business), base(other.business))
    for end in ("", "/results.csv", "/progress"):
        assert stranger.get(path + end).status_code == 404
        assert stranger.get(theirs + end).status_code == 404
    values = stranger.open(base(other.business)).form("/sign-out").values
    assert stranger.client.post(f"{theirs}/cancel", data=values).status_code == 404


@pytest.mark.parametrize("content_type", ["text/csv", "multipart/form-data", "multipart/form-data; boundary=x", ""])
def test_uploads_that_are_no_form_are_refused(account: Account, admin: Visitor, content_type: str) -> None:
    path = f"{base(account.business)}/batches/uploads"
    headers = {"Content-Type": content_type} if content_type else {}
    assert admin.client.post(path, content=FILE, headers=headers).status_code == 403
    assert admin.client.post(path, content=b"--x\r\n" + FILE, headers=headers).status_code == 403


def test_a_gigabyte_is_refused_before_it_is_sent(system: System, account: Account, admin: Visitor) -> None:
    server = urlsplit(system.base_url)
    cookie = f"payouts_session={admin.client.cookies['payouts_session']}"
    head = (
        f"POST {base(account.business)}/batches/uploads HTTP/1.1\r\nHost: {server.netloc}\r\nCookie: {cookie}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {10**9}\r\n\r\n"
    )
    with socket.create_connection((server.hostname, server.port), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_more_than_may_be_uploaded_is_refused_however_it_is_sent(account: Account, admin: Visitor) -> None:
    path = f"{base(account.business)}/batches/uploads"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    chunks = (b"x" * 2**20 for _ in range(2 * BODY_MAX_BYTES // 2**20))
    try:
        response = admin.client.post(path, content=chunks, headers=headers)
    except httpx.TransportError:
        return  # the server has closed the connection before all was sent
    assert response.status_code == 413
    assert "may have 32 MB" in response.text


def test_the_progress_of_nobody_is_not_shown(client: httpx.Client, account: Account) -> None:
    response = client.get(f"{base(account.business)}/batches/bat_{'0' * 32}/progress")
    assert response.status_code == 401


# What was paid before


def test_a_preview_says_what_equals_earlier_payments(
    system: System, client: httpx.Client, account: Account, admin: Visitor
) -> None:
    assert system.pay(client, account, "ann@example.com", 100).status_code == 201
    content = b"email,amount\nann@example.com,100\nbob@example.com,200\n"
    first = upload(admin, account.business, content, unit="cents")
    preview = admin.follow(first)
    assert "1 of 2 rows without a reference may be paid a second time." in preview.text
    assert "through POST /payout/create" in preview.text
    assert "The whole file was handed in before" not in preview.text
    admin.follow(admin.send(preview.form(first.headers["location"])))
    again = admin.follow(upload(admin, account.business, content, unit="cents"))
    assert "2 of 2 rows without a reference may be paid a second time." in again.text
    assert "The whole file was handed in before" in again.text
    assert f"in the dashboard by {admin.email}" in again.text


def test_a_preview_counts_what_is_already_paid_and_pays_the_rest(
    system: System, client: httpx.Client, account: Account, admin: Visitor
) -> None:
    body = {"email": "ann@example.com", "amount": 100, "reference": "march"}
    assert client.post("/payout/create", json=body, headers=account.headers).status_code == 201
    content = b"email,amount,reference\nann@example.com,100,march\nbob@example.com,200,april\n"
    response = upload(admin, account.business, content, unit="cents")
    preview = admin.follow(response)
    assert "1 of 2 rows are already paid" in preview.text
    assert "To pay now $2.00" in preview.text
    page = admin.follow(admin.send(preview.form(response.headers["location"])))
    assert "$2.00 are reserved" in page.text
    wait_until(lambda: system.read_paid(account) == (2, 300))
    refused = admin.follow(upload(admin, account.business, content.replace(b"100", b"101"), unit="cents"))
    assert "It cannot be accepted." in refused.text
    assert "these were used before for another e-mail or amount: march." in refused.text
    nothing = upload(admin, account.business, content, unit="cents")
    done = admin.follow(admin.send(admin.follow(nothing).form(nothing.headers["location"])))
    assert "There was nothing to pay: every row was paid before." in done.text
    assert "Already paid" in done.text
    assert system.read_paid(account) == (2, 300)
