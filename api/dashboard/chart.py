"""A bar chart as plain numbers, which the template draws as SVG: it is read without colours, and without sight.

Across, numbers are percents of the width, and down they are pixels, so that the text has one size in every window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from core.ledger.overview import DayAllocated
from core.money import format_dollars

HEIGHT = 200
_WIDTH = 100
_TOP, _BOTTOM = 10, 28
_GAP = 0.3
_STEPS = (1, 2, 2.5, 5, 10)
_LINES = 4
_LABEL_EVERY = 7


@dataclass(frozen=True, slots=True)
class Bar:
    """One day."""

    x: float
    y: float
    width: float
    height: float
    title: str
    label: str
    """Below the axis; empty for most, since there is no room for all."""


@dataclass(frozen=True, slots=True)
class Line:
    """A value on the left, and its line."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What there is to draw."""

    bars: list[Bar]
    lines: list[Line]
    description: str
    height: int = HEIGHT
    left: int = 0
    right: int = _WIDTH
    bottom: int = HEIGHT - _BOTTOM


def draw_days(days: Sequence[DayAllocated]) -> Chart:
    """Draw what was allocated by day; days on which more was taken back than allocated stand at 0."""
    amounts = [max(day.amount, 0) for day in days]
    step = _find_step(max(amounts, default=0))
    top = step * max(-(-max(amounts, default=0) // step), 1)
    room = HEIGHT - _TOP - _BOTTOM
    pitch = _WIDTH / max(len(days), 1)
    bars = []
    for index, (day, amount) in enumerate(zip(days, amounts, strict=True)):
        height = room * amount / top
        from_end = len(days) - 1 - index
        bars.append(
            Bar(
                x=round(pitch * (index + _GAP / 2), 2),
                y=round(_TOP + room - height, 2),
                width=round(pitch * (1 - _GAP), 2),
                height=round(height, 2),
                title=f"{day.day.day} {day.day:%b}: {format_dollars(day.amount)}, allocations: {day.count:,}",
                label=f"{day.day.day} {day.day:%b}" if from_end % _LABEL_EVERY == 0 else "",
            )
        )
    lines = [Line(round(_TOP + room - room * value / top, 2), _write_short(value)) for value in range(0, top + 1, step)]
    return Chart(bars, lines, _describe(days))


def _find_step(most: int) -> int:
    """Return a round number of cents, of which about four make the largest amount."""
    least = max(-(-most // _LINES), 100)
    power = 10 ** (len(str(least)) - 1)
    return next(int(power * step) for step in _STEPS if power * step >= least)


def _write_short(cents: int) -> str:
    """Write dollars so that they fit beside the chart: `$2.5k`."""
    dollars = cents / 100
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if dollars >= size:
            return f"${dollars / size:g}{suffix}"
    return f"${dollars:g}"


def _describe(days: Sequence[DayAllocated]) -> str:
    most = max(days, key=lambda day: day.amount, default=None)
    if most is None or most.amount <= 0:
        return "Nothing was allocated on these days."
    return f"Most was allocated on {most.day.day} {most.day:%B}: {format_dollars(most.amount)}."
