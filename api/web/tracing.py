"""Spans of requests: Litestar's own plugin, around all of the application, raw ASGI handlers too."""

from collections.abc import Callable
from typing import Any

from litestar.plugins import PluginProtocol


def make_plugin(mask_path: Callable[[str], str]) -> PluginProtocol:
    """Return the plugin; `mask_path` takes out of a path what callers put there."""
    from litestar.plugins.opentelemetry import OpenTelemetryConfig, OpenTelemetryPlugin

    def describe(scope: Any) -> tuple[str, dict[str, Any]]:
        path = mask_path(scope["path"])
        return f"{scope['method']} {path}", {"http.route": path}

    return OpenTelemetryPlugin(
        OpenTelemetryConfig(scope_span_details_extractor=describe, exclude_spans=["receive", "send"])
    )
