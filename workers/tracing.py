"""Traces across the broker: Celery's own instrumentation, and one task that continues the traces of many calls."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from celery import Celery

from core.logging.fields import NAMED_MAX

Span = Any
"""OpenTelemetry's; it is not imported where there are no traces."""


def trace_tasks(celery: Celery, sent_names: Sequence[str] = ()) -> None:
    """Make spans of the tasks that are sent and carried out.

    `sent_names` are tasks that this process only sends by name: the instrumentation ends the span of a task only if
    the application knows it.
    """
    from opentelemetry.instrumentation.celery import CeleryInstrumentor

    CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]
    celery.set_default()
    for name in sent_names:
        celery.task(name=name)(_never_run)


def _never_run(*_: object, **__: object) -> None:
    """Stand for a task of the workers."""


def make_group_tracing() -> tuple[Callable[[], Span], Callable[[Sequence[Span]], AbstractContextManager[None]]]:
    """Return how to take a call's span, and what a group is sent in: the trace of its first call, linked to the others.

    The second one works in any thread.
    """
    from opentelemetry import trace

    tracer = trace.get_tracer(__name__)

    @contextmanager
    def continue_traces(spans: Sequence[Span]) -> Iterator[None]:
        if not spans:
            yield
            return
        links = [trace.Link(span.get_span_context()) for span in spans[1:NAMED_MAX]]
        with tracer.start_as_current_span(
            "group",
            trace.set_span_in_context(spans[0]),
            links=links,
            attributes={"payouts.allocations": len(spans)},
            record_exception=False,
            set_status_on_exception=False,
        ):
            yield

    return trace.get_current_span, continue_traces
