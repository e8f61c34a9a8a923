"""Members of the business of each test, signed in."""

from collections.abc import Iterator

import pytest

from core.parties.members import Role
from tests.dashboard.visitors import Visitor, close_all, sign_in
from tests.servers import Account, System


@pytest.fixture
def admin(system: System, account: Account) -> Visitor:
    return sign_in(system, account.business)


@pytest.fixture
def viewer(system: System, account: Account) -> Visitor:
    return sign_in(system, account.business, Role.VIEWER)


@pytest.fixture(autouse=True)
def closed_browsers() -> Iterator[None]:
    yield
    close_all()
