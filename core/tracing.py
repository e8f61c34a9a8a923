"""Traces by OpenTelemetry, where they are asked for by its own variables; otherwise nothing of it is imported.

Spans leave the process through a sieve: attributes that are known to hold no row, no e-mail and no key, statements
without parameters, and errors by their type alone.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from core.logging.masking import hide_secrets

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PASSED = (
    "celery.action", "celery.hostname", "celery.retries", "celery.task_name", "db.", "exception.type", "http.flavor",
    "http.method", "http.request.method", "http.response.status_code", "http.route", "http.scheme", "http.status_code",
    "messaging.", "net.", "payouts.", "server.", "url.scheme",
)  # fmt: skip
"""Attributes by the beginning of their names."""


def is_wanted() -> bool:
    """Tell whether traces are asked for, and can be had."""
    return is_asked_for() and is_installed()


def is_asked_for(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether OpenTelemetry's variables ask for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return any(environment.get(name, "").strip() for name in _ENDPOINTS)


def is_installed() -> bool:
    """Tell whether the extra `tracing` is installed."""
    try:
        return all(find_spec(f"opentelemetry.{name}") for name in ("sdk", "instrumentation.celery", "exporter.otlp"))
    except ModuleNotFoundError:
        return False


def warn_where_missing() -> None:
    """Say in the log that traces are asked for and cannot be had; call it once logs are set up."""
    if is_asked_for() and not is_installed():
        logger.warning("traces are asked for, but not installed; run: pip install -c constraints.txt -e '.[tracing]'")


def start_tracing(process: str) -> None:
    """Send this process's traces, its statements included; call it before an engine is made."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # It quotes the collector's URL, again and again; we say once what there is to say.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    # What is in OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES goes first.
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": f"payouts-{process}"}))
    provider.add_span_processor(BatchSpanProcessor(make_sieve(OTLPSpanExporter())))
    trace.set_tracer_provider(provider)
    # It names SQLAlchemy 2.0 as the newest that it was tried with; our tests try it with 2.1.
    SQLAlchemyInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True)
    _trace_statements_of_the_driver()


def _trace_statements_of_the_driver() -> None:
    """Make spans of what psycopg's connection is asked itself: SQLAlchemy asks cursors, so nothing is traced twice.

    In a pipeline a statement is only sent: its span shows when, and the transaction's later ones wait for it.
    """
    import psycopg
    from opentelemetry import trace

    tracer = trace.get_tracer(__name__)
    execute = psycopg.Connection.execute

    def traced(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        text = query if isinstance(query, str) else type(query).__name__
        words = text.split(maxsplit=1)
        with tracer.start_as_current_span(
            words[0] if words else "statement",
            kind=trace.SpanKind.CLIENT,
            attributes={"db.system": "postgresql", "db.statement": text, "payouts.pipeline": True},
            record_exception=False,
            set_status_on_exception=False,
        ):
            return execute(self, query, *args, **kwargs)

    psycopg.Connection.execute = traced  # type: ignore[method-assign]


def make_sieve(exporter: "SpanExporter") -> "SpanExporter":
    """Return an exporter that lets through what may be seen."""
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Status

    def sift(span: ReadableSpan) -> ReadableSpan:
        return ReadableSpan(
            name=hide_secrets(span.name),
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=_sift(span.attributes),
            events=[Event(event.name, _sift(event.attributes), event.timestamp) for event in span.events],
            links=span.links,
            kind=span.kind,
            status=Status(span.status.status_code),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    class Sieve(SpanExporter):
        _is_away = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export([sift(span) for span in spans])
            is_away = result is not SpanExportResult.SUCCESS
            if is_away != self._is_away:
                self._is_away = is_away
                logger.warning("traces cannot be sent for now" if is_away else "traces are sent again")
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return exporter.force_flush(timeout_millis)

    return Sieve()


def _sift(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        name: hide_secrets(value) if isinstance(value, str) else value
        for name, value in (attributes or {}).items()
        if name.startswith(_PASSED) and name not in {"http.target", "http.url"}
    }
