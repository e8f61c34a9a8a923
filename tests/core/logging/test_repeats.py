"""Lines that repeat themselves are counted."""

from core.logging.fields import about
from core.logging.repeats import SAME_PER_S_MAX, Repeats
from tests.core.logging.records import make_record
from tests.polling import wait_until


def test_lines_that_are_alike_are_counted() -> None:
    written: list[str] = []
    repeats = Repeats(lambda record: written.append(record.getMessage()))
    passed = [repeats.filter(make_record("allocation %d failed", n)) for n in range(100)]
    assert passed == [True] * SAME_PER_S_MAX + [False] * (100 - SAME_PER_S_MAX)
    assert repeats.filter(make_record("something else"))
    assert repeats.filter(make_record("allocation %d failed", 7, **about(always=True)))
    wait_until(lambda: written)
    assert written == [f"{100 - SAME_PER_S_MAX} more lines like this within a second: allocation 0 failed"]
    assert repeats.filter(make_record("allocation %d failed", 8))
