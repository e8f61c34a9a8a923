"""Python imports this at start where its directory is on PYTHONPATH: the process then lives in another time.

Monotonic clocks are left alone, as they are where a machine's time is set wrong.
"""

import datetime
import os
import time
from functools import partial

OFFSET_S = float(os.environ.get("CHAOS_CLOCK_OFFSET_S", "0"))

_real_time = time.time
_real_time_ns = time.time_ns
_real_clock_gettime = time.clock_gettime
_real_localtime = time.localtime
_real_gmtime = time.gmtime
_RealDatetime = datetime.datetime


def _shifted_time() -> float:
    return _real_time() + OFFSET_S


def _shifted_time_ns() -> int:
    return _real_time_ns() + round(OFFSET_S * 1_000_000_000)


def _shifted_clock_gettime(clock: int) -> float:
    return _real_clock_gettime(clock) + (OFFSET_S if clock == time.CLOCK_REALTIME else 0)


def _shifted_localtime(seconds: float | None = None) -> time.struct_time:
    return _real_localtime(_shifted_time() if seconds is None else seconds)


def _shifted_gmtime(seconds: float | None = None) -> time.struct_time:
    return _real_gmtime(_shifted_time() if seconds is None else seconds)


class _AnyDatetime(type):
    """Real ones, as C code makes them, are instances too."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _RealDatetime)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _RealDatetime)


class _ShiftedDatetime(_RealDatetime, metaclass=_AnyDatetime):
    """Tells the shifted time; everything else is the real class's."""

    __slots__ = ()  # C code checks the size

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        return _RealDatetime.fromtimestamp(_shifted_time(), tz)

    @classmethod
    def today(cls) -> datetime.datetime:  # type: ignore[override]
        return cls.now()

    @classmethod
    def utcnow(cls) -> datetime.datetime:  # type: ignore[override]
        return cls.now(datetime.UTC).replace(tzinfo=None)


if OFFSET_S:
    # Partials, since a plain function that `logging` keeps in a class would become a method there.
    time.time = partial(_shifted_time)
    time.time_ns = partial(_shifted_time_ns)
    time.clock_gettime = partial(_shifted_clock_gettime)
    time.localtime = partial(_shifted_localtime)
    time.gmtime = partial(_shifted_gmtime)
    datetime.datetime = _ShiftedDatetime  # type: ignore[misc]
