"""Counting many at once gives what counting one by one does."""

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as LibraryHistogram

from core.metrics import Counter, Histogram, Measured, count_what_was_noted

BUCKETS = (0.0, 0.5, 1.0, 10.0)


def render(histogram: LibraryHistogram) -> dict[str, float]:
    (family,) = histogram.collect()
    return {f"{each.name}{each.labels}": each.value for each in family.samples}


@given(st.lists(st.floats(0, 20) | st.sampled_from(BUCKETS)))
def test_many_values_at_once_are_counted_as_one_by_one(values: list[float]) -> None:
    at_once = Histogram("h", "text", registry=None, buckets=BUCKETS)
    noted = Histogram("h", "text", registry=None, buckets=BUCKETS)
    one_by_one = LibraryHistogram("h", "text", registry=None, buckets=BUCKETS)
    at_once.observe_all(values)
    for value in values:
        noted.note(value)
        one_by_one.observe(value)
    noted.count_noted()
    for ours in (at_once, noted):
        told, expected = render(ours), render(one_by_one)
        assert math.isclose(told.pop("h_sum{}"), expected.pop("h_sum{}"))
        assert told == expected


def test_what_was_noted_is_counted_once_in_each_series() -> None:
    registry = CollectorRegistry()
    counter = Counter("c", "text", ["outcome"], registry=registry)
    histogram = Histogram("h", "text", ["route"], registry=registry)
    for _ in range(3):
        counter.labels("a").note()
    counter.labels("b").note()
    histogram.labels("/").note(1)
    for _ in range(2):
        count_what_was_noted()
    text = generate_latest(registry).decode()
    assert 'c_total{outcome="a"} 3.0' in text
    assert 'c_total{outcome="b"} 1.0' in text
    assert 'h_count{route="/"} 1.0' in text


def test_what_could_not_be_measured_has_no_sample() -> None:
    measured = Measured("m", "text", ["queue"], registry=CollectorRegistry())
    measured.replace({("a",): 1, ("b",): 2})
    (family,) = measured.collect()
    assert [(each.labels, each.value) for each in family.samples] == [({"queue": "a"}, 1), ({"queue": "b"}, 2)]
    measured.replace({})
    (family,) = measured.collect()
    assert family.samples == []
