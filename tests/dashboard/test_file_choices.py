"""Files whose columns or hidden rows are not clear: somebody says what they are, and only then they are read."""

import httpx
import pytest

from tests.api.batches.file_cases import workbook, write_hidden_rows
from tests.core.builders import read_history
from tests.dashboard.test_batches import read_mistakes, upload
from tests.dashboard.visitors import Document, Form, Visitor, base, read_business, sign_in
from tests.servers import Account, System

MAPPED = b"E-mail address,Amount (USD),Order no.,Note\nanna@example.com,12.50,7,hi\nbela@example.com,2,8,\n"


def ask(visitor: Visitor, account: Account, content: bytes = MAPPED, name: str = "people.csv") -> tuple[str, Document]:
    """Upload a file that is not clear; return the path and the page that asks."""
    response = upload(visitor, account.business, content, name)
    page = visitor.follow(response)
    assert "How is this file to be read?" in page.text
    return response.headers["location"], page


def choice_of(page: Document) -> Form:
    return page.form("/columns")


def test_columns_are_guessed_chosen_and_shown_in_the_preview(system: System, account: Account, admin: Visitor) -> None:
    path, page = ask(admin, account)
    assert path.endswith("/columns")
    form = choice_of(page)
    assert {name: form.values[name] for name in ("email", "amount", "reference")} == {
        "email": "0",
        "amount": "1",
        "reference": "2",
    }
    preview = admin.follow(admin.send(form, None))
    for shown in (
        "Sum $14.50",
        "read as dollars",
        "Smallest amount $2.00",
        "Largest amount $12.50",
        "'Note' is left out",
    ):
        assert shown in preview.text
    assert "anna@example.com $12.50 7" in preview.text
    assert read_history(system.database, account.business.id) == []


def test_a_choice_that_is_no_choice_asks_again(account: Account, admin: Visitor) -> None:
    _, page = ask(admin, account)
    for values, text in (
        ({"email": ""}, "Choose the columns of the e-mail addresses and of the amounts."),
        ({"amount": "99"}, "Choose the columns of the e-mail addresses and of the amounts."),
        ({"amount": "\u0661"}, "Choose the columns of the e-mail addresses and of the amounts."),
        ({"amount": "0"}, "One column cannot be two things at once."),
    ):
        again = admin.follow(admin.send(choice_of(page), None, **values))
        assert text in again.text
        assert "How is this file to be read?" in again.text


def test_columns_that_hold_something_else_are_told_by_line(account: Account, admin: Visitor) -> None:
    _, page = ask(admin, account)
    response = admin.send(choice_of(page), None, email="3")
    assert "Line 2: 'hi' is not a valid e-mail address." in read_mistakes(response)


@pytest.mark.parametrize(("chosen", "total"), [("take", "Sum $600.00"), ("leave", "Sum $400.00")])
def test_hidden_rows_are_paid_only_where_somebody_says_so(
    account: Account, admin: Visitor, chosen: str, total: str
) -> None:
    _, page = ask(admin, account, workbook(write_hidden_rows), "people.xlsx")
    assert "Row 3 of the sheet is hidden or filtered out" in page.text
    form = choice_of(page)
    assert "hidden_rows" not in form.values  # nothing is chosen for anybody
    assert "Choose what becomes of the hidden rows." in admin.follow(admin.send(form, None)).text
    assert total in admin.follow(admin.send(form, None, hidden_rows=chosen)).text


def test_columns_and_hidden_rows_are_asked_for_one_after_the_other(account: Account, admin: Visitor) -> None:
    def write(book: object) -> None:
        write_hidden_rows(book)
        book.worksheets()[0].write(0, 1, "Betrag")  # type: ignore[attr-defined]

    _, page = ask(admin, account, workbook(write), "people.xlsx")
    response = admin.send(choice_of(page), None)
    page = admin.follow(response)
    assert response.headers["location"].endswith("/columns")
    assert choice_of(page).values["amount"] == "1"
    assert "Sum $400.00" in admin.follow(admin.send(choice_of(page), None, hidden_rows="leave")).text


def test_an_unclear_file_belongs_to_one_person_and_business(system: System, account: Account, admin: Visitor) -> None:
    path, page = ask(admin, account)
    form = choice_of(page)
    other = sign_in(system, account.business)
    assert "not there any more" in other.follow(other.get(path)).text
    values = other.open(base(account.business)).form("/sign-out").values
    assert (
        "not there any more" in other.follow(other.client.post(path, data=values | {"email": "0", "amount": "1"})).text
    )
    in_test = path.replace("/live/", "/test/")
    assert "not there any more" in admin.follow(admin.get(in_test)).text
    # It is no upload that could be accepted yet, and another one takes its place.
    assert "not there any more" in admin.follow(admin.get(path.removesuffix("/columns"))).text
    admin.follow(upload(admin, account.business, b"email,amount\na@example.com,1\n"))
    assert "not there any more" in admin.follow(admin.send(form, None)).text
    assert read_business(system, account.business).reserved_balance == 0


def test_viewers_choose_nothing(account: Account, admin: Visitor, viewer: Visitor) -> None:
    path, _ = ask(admin, account)
    values = viewer.open(base(account.business)).form("/sign-out").values
    assert viewer.get(path).status_code == 403
    assert viewer.client.post(path, data=values).status_code == 403


def test_a_choice_from_another_site_is_refused(account: Account, admin: Visitor) -> None:
    path, page = ask(admin, account)
    values = choice_of(page).values | {"csrf_token": "0" * 64}
    response: httpx.Response = admin.client.post(path, data=values)
    assert response.status_code == 403
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert admin.client.post(path, data=choice_of(page).values, headers=headers).status_code == 403


def test_the_names_of_columns_are_text(account: Account, admin: Visitor) -> None:
    content = b"E-mail,Betrag,<script>alert(1)</script>\nanna@example.com,1,x\n"
    response = upload(admin, account.business, content)
    shown = admin.get(response.headers["location"]).text
    assert "<script>alert" not in shown
    assert "&lt;script&gt;alert(1)" in shown
