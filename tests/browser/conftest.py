"""A browser for the tests: the system's Chromium, on API and workers as the Procfile runs them.

Whatever goes wrong in a page on the side fails its test: an error in the console, a violation of the content security
policy, a file of ours that is missing, a request to any other server.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response, sync_playwright

from tests.servers import System

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE, DESKTOP = 390, 1440
_HEIGHT = 900
_TIMEOUT_MS = 10_000
# Chromium says so of every answer that is no success; those of our own files are looked at one by one.
_ANSWERED = "Failed to load resource: the server responded with a status of"

OpenPage = Callable[..., Page]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="keep the pages' pictures in this folder")


@pytest.fixture(scope="session")
def screenshots(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go: outside the repository."""
    given = request.config.getoption("--screenshots")
    folder = Path(given) if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield launched
        launched.close()


class Watch:
    """Notes what goes wrong in the pages of one test."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self.problems: list[str] = []
        self.urls: list[str] = []
        self.expected: set[str] = set()
        """Parts of messages that a test brings about itself."""

    def over(self, context: BrowserContext) -> None:
        """Watch everything that happens in a context."""
        context.on("console", self._hear)
        context.on("weberror", lambda error: self.problems.append(f"script: {error.error}"))
        context.on("request", self._see_request)
        context.on("response", self._see_response)

    def _hear(self, message: ConsoleMessage) -> None:
        is_expected = any(part in message.text for part in {_ANSWERED, *self.expected})
        if message.type in {"error", "warning"} and not is_expected:
            self.problems.append(f"console: {message.text}")

    def _see_request(self, request: Request) -> None:
        self.urls.append(request.url)
        if not request.url.startswith((self._base_url, "data:", "blob:")):
            self.problems.append(f"request to {request.url}")

    def _see_response(self, response: Response) -> None:
        kind = response.request.resource_type
        if response.status >= 400 and kind not in {"document", "fetch"}:
            self.problems.append(f"{kind} {response.url}: {response.status}")


@pytest.fixture
def watch(system: System) -> Iterator[Watch]:
    watching = Watch(system.base_url)
    yield watching
    assert watching.problems == []


@pytest.fixture
def open_page(browser: Browser, system: System, watch: Watch) -> Iterator[OpenPage]:
    """Give a function that opens a page with cookies of its own."""
    with ExitStack() as contexts:

        def open_(
            *, width: int = DESKTOP, dark: bool = False, java_script: bool = True, bypass_csp: bool = False
        ) -> Page:
            context = browser.new_context(
                base_url=system.base_url,
                viewport={"width": width, "height": _HEIGHT},
                color_scheme="dark" if dark else "light",
                java_script_enabled=java_script,
                bypass_csp=bypass_csp,
                reduced_motion="reduce",
                timezone_id="UTC",
            )
            contexts.callback(context.close)
            context.set_default_timeout(_TIMEOUT_MS)
            watch.over(context)
            return context.new_page()

        yield open_


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()


@pytest.fixture
def plain_page(open_page: OpenPage) -> Page:
    """A page without JavaScript."""
    return open_page(java_script=False)
