"""How long a worker waits for rows that others hold."""

import time
from uuid import uuid4

import pytest

from workers import patience
from workers.patience import Patience


@pytest.fixture(autouse=True)
def remembered_s(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(patience, "_REMEMBERED_S", 0.2)
    return 0.2


def test_wait_in_vain_is_remembered_for_a_while(remembered_s: float) -> None:
    waits, held, other = Patience(1.0), uuid4(), uuid4()
    assert not waits.is_known_as_held(held)
    assert waits.note_vain_wait(held)
    assert waits.is_known_as_held(held)
    assert not waits.is_known_as_held(other)
    time.sleep(remembered_s)
    assert not waits.is_known_as_held(held)


def test_wait_in_vain_that_is_remembered_is_not_remembered_for_longer(remembered_s: float) -> None:
    waits, held = Patience(1.0), uuid4()
    waits.note_vain_wait(held)
    time.sleep(remembered_s * 0.7)
    assert not waits.note_vain_wait(held)
    time.sleep(remembered_s * 0.7)
    assert not waits.is_known_as_held(held)
    assert waits.note_vain_wait(held)


def test_success_is_the_end_of_it() -> None:
    waits, held = Patience(1.0), uuid4()
    waits.note_vain_wait(held)
    waits.note_success(held)
    waits.note_success(held)
    assert not waits.is_known_as_held(held)
    assert waits.left_s() == 1.0


def test_more_businesses_that_are_held_are_waited_for_less(remembered_s: float) -> None:
    waits = Patience(1.0)
    waited_s = []
    for _ in range(100):
        waited_s.append(waits.left_s())
        waits.note_vain_wait(uuid4())
    assert waited_s[:3] == [1.0, 1 / 2, 1 / 3]
    assert sum(waited_s) < 6  # for a hundred
    time.sleep(remembered_s)
    assert waits.left_s() == 1.0
