"""The two pages at `/docs`, drawn once: they are the same for everybody, and hold no data."""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import Response, Router, get
from litestar.exceptions import HTTPException
from markupsafe import Markup, escape

from api.reference.openapi import make_document
from api.reference.playground.contract import EXAMPLES
from api.reference.playground.operations import Operation, read_operations
from api.web.assets import Assets
from api.web.browser_headers import page
from api.web.request import HttpRequest

PATH = "/docs"
CONTRACT_PATH = "/docs/contract"

_HERE = Path(__file__).resolve().parent
_CACHE = "no-cache"  # looked at again each time: their files' names change with a new version
_CODE = re.compile(r"`([^`]+)`")
_ERROR_TEXTS = {
    404: ("There is no such page", "The address is wrong, or the page has moved."),
    405: ("This cannot be done here", "Pages are read with GET."),
}
_BREAKS = re.compile(r"(?<=[/_])")


class Playground:
    """The pages. They have the look of the dashboard, whose stylesheet they share."""

    def __init__(self) -> None:
        own, shared = Assets(_HERE / "static", PATH), Assets()
        environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        environment.globals.update(asset=own.url, shared_asset=shared.url)
        environment.filters.update(marked=_mark_code, breakable=_make_breakable, groupby_tag=_group_by_tag)
        operations = read_operations(make_document())
        playground = environment.get_template("playground.html").render(here=PATH, operations=operations)
        contract = environment.get_template("contract.html").render(here=CONTRACT_PATH, examples=EXAMPLES)
        self._error = environment.get_template("error.html")

        @get("/")
        async def show_playground(request: HttpRequest) -> Response[str]:
            return page(request, playground, cache=_CACHE)

        @get("/contract")
        async def show_contract(request: HttpRequest) -> Response[str]:
            return page(request, contract, cache=_CACHE)

        self.router = Router(PATH, route_handlers=[show_playground, show_contract, own.route()])

    def answers(self, request: HttpRequest) -> bool:
        """Tell whether somebody who asks for this path should get a page, where there is none."""
        path = request.scope["path"]
        return path == PATH or path.startswith(f"{PATH}/")

    def answer_error(self, request: HttpRequest, error: HTTPException) -> Response[str]:
        """Answer with a page that says what went wrong."""
        title, text = _ERROR_TEXTS.get(error.status_code, ("The request was not understood", "Open the page again."))
        allow = (error.headers or {}).get("allow")
        html = self._error.render(here="", title=title, text=text)
        return page(request, html, error.status_code, headers={"Allow": allow} if allow else None)


def _mark_code(text: str) -> Markup:
    """Show what stands between backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 (escaped)


def _make_breakable(path: str) -> Markup:
    """Let a path break into lines where its parts begin."""
    return Markup("<wbr>").join(_BREAKS.split(path))


def _group_by_tag(operations: list[Operation]) -> Iterator[tuple[str, list[Operation]]]:
    for tag, group in groupby(operations, lambda operation: operation.tag):
        yield tag, list(group)
