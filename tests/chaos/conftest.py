"""Tests marked `overlap` wait most of their time, each for a system of its own, so a few of them run at once."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

pytest.register_assert_rewrite("tests.chaos.cluster", "tests.chaos.faults", "tests.chaos.history", "tests.chaos.load")

AT_ONCE = 4
_pool = pytest.StashKey[ThreadPoolExecutor]()
_seconds = pytest.StashKey[dict[str, float]]()
_running = pytest.StashKey["dict[pytest.Item, Future[None]]"]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_seconds] = {}
    config.addinivalue_line("markers", "overlap: runs while other tests run; takes no fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let those that need the machine for themselves go first, and of the others the longest."""
    items.sort(key=_cost_s)


def _cost_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("overlap")
    return 0 if marker is None else 1_000 - float(marker.kwargs["seconds"])


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Start all overlapping tests with the first of them; each then waits for its own result."""
    if pyfuncitem.get_closest_marker("overlap") is None:
        return None
    stash = pyfuncitem.session.stash
    if _pool not in stash:
        stash[_pool] = pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="chaos")
        running: dict[pytest.Item, Future[None]] = {
            item: pool.submit(_run, item)
            for item in pyfuncitem.session.items
            if isinstance(item, pytest.Function) and item.get_closest_marker("overlap") is not None
        }
        stash[_running] = running
    stash[_running][pyfuncitem].result()
    return True


def _run(item: pytest.Function) -> None:
    started_at = time.monotonic()
    try:
        item.obj(**(item.callspec.params if hasattr(item, "callspec") else {}))
    finally:
        item.config.stash[_seconds][item.nodeid] = time.monotonic() - started_at


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how long each took: pytest itself sees only how long it waited for the result."""
    for name, seconds in sorted(config.stash[_seconds].items(), key=lambda each: -each[1]):
        terminalreporter.write_line(f"{seconds:6.1f}s at the same time as others: {name}")


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    if _pool in session.stash:
        session.stash[_pool].shutdown(cancel_futures=True)
    return (yield)
