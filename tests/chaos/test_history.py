"""The comparison itself finds what it is there for."""

from uuid import UUID

import pytest

from core.credentials import payout_hash
from tests.chaos.history import Entry, find_contradictions
from tests.chaos.load import Answer
from tests.servers import HASH_SECRET

BUSINESS_ID = UUID(int=1)
EMAIL = "user@example.com"


def told(status: int | None, *, key: str | None = None, was_sent: bool = True, email: str = EMAIL) -> Answer:
    body: dict[str, object] = {"hash": payout_hash(HASH_SECRET.encode(), BUSINESS_ID, EMAIL)} if status == 201 else {}
    return Answer(BUSINESS_ID, email, 5, key, "web-1", 0, 1, status, body, {}, was_sent)


PAID = Entry(BUSINESS_ID, EMAIL, 5, 0, is_reversed=False)
REVERSED = Entry(BUSINESS_ID, EMAIL, 5, 0, is_reversed=True)


@pytest.mark.parametrize(
    ("answers", "history"),
    [
        ([told(201)], []),
        ([told(201)], [REVERSED]),
        ([told(201)], [PAID, PAID]),
        ([told(500)], [PAID]),
        ([told(400)], [PAID]),
        ([], [PAID]),
        ([told(None, was_sent=False)], [PAID]),
        ([told(None)], [PAID, PAID]),
        ([told(500, key="k"), told(201, key="k")], [PAID, PAID]),
        ([told(500, key="k"), told(201, key="k")], [REVERSED]),
        ([told(201, email="other@example.com")], [Entry(BUSINESS_ID, "other@example.com", 5, 0, is_reversed=False)]),
    ],
)
def test_contradiction_is_found(answers: list[Answer], history: list[Entry]) -> None:
    assert find_contradictions(answers, history)


@pytest.mark.parametrize(
    ("answers", "history"),
    [
        ([told(201)], [PAID]),
        ([told(500)], [REVERSED]),
        ([told(500), told(400)], []),
        ([told(None)], []),
        ([told(None)], [PAID]),
        ([told(None, key="k"), told(201, key="k")], [PAID]),
        ([told(500, key="k"), told(201, key="k")], [REVERSED, PAID]),
    ],
)
def test_agreement_is_no_contradiction(answers: list[Answer], history: list[Entry]) -> None:
    assert not find_contradictions(answers, history)
