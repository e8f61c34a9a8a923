"""The picture of the dashboard in README: `pytest tests/browser/test_picture.py --screenshots docs` makes it anew."""

from pathlib import Path

import sqlalchemy as sa
from playwright.sync_api import expect

from core.parties import businesses
from tests.browser.conftest import OpenPage
from tests.browser.people import join, sign_in
from tests.servers import ROOT, System, open_account

NAME = "dashboard.png"
BYTES_MAX = 150_000
WIDTH = 1_100
_PEOPLE = ["ann", "bob", "cyd", "dee", "eli", "fay", "gus", "hal", "ivy"]

# Of 29 days before today. The history itself is of today alone: nothing writes it with another time.
_DAYS_BEFORE = sa.text("""
    INSERT INTO payout_day_sums (business_id, day, type, count, amount)
    SELECT :id, current_date - day, 'allocation', 9, 40000 + 1700 * (day * 7 % 13) + 900 * (29 - day)
    FROM generate_series(1, 29) AS day
    WHERE day % 7 <> 3
""")


def test_picture_shows_a_business_at_work_and_is_small(open_page: OpenPage, system: System, screenshots: Path) -> None:
    account = open_account(system.database, name="Bookshop", funds_cents=5_000_000)
    with system.database.transaction() as connection:
        businesses.deposit(connection, account.business.id, 12_345_000)
        connection.execute(_DAYS_BEFORE, {"id": account.business.id})
    admin = join(system, account, email="ada@bookshop.example")
    with system.client() as client:
        for number, name in enumerate(_PEOPLE):
            assert system.pay(client, account, f"{name}@example.com", 4_500 + 1_250 * number).status_code == 201
    page = sign_in(open_page(width=WIDTH), admin)
    expect(page.locator("svg").first).to_be_visible()
    path = screenshots / NAME
    page.screenshot(path=path, scale="css")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size <= BYTES_MAX


def read_width(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[16:20], "big")


def test_picture_in_the_documentation_is_one_of_these() -> None:
    kept = ROOT / "docs" / NAME
    assert kept.stat().st_size <= BYTES_MAX
    assert read_width(kept) == WIDTH
