"""A request as Litestar's handlers get it."""

from typing import Any

from litestar import Request

HttpRequest = Request[Any, Any, Any]
