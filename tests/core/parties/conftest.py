"""For all tests of parties: a business."""

import pytest

from core.database.connection import Database
from core.parties.businesses import Business
from tests.core.parties.people import make_business


@pytest.fixture
def business(database: Database) -> Business:
    return make_business(database)
