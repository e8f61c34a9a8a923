"""Flower: the tasks and workers in a browser, read-only, behind a password, and without what nobody needs to see.

`python -m workers.flower`. Its own command line would want the password as an argument or in a variable of its own.
"""

import hmac
import logging
import signal
import sys
import time
from base64 import b64encode
from typing import Any, NoReturn

from celery import Celery
from celery.events import EventReceiver
from flower.app import Flower
from flower.events import Events
from flower.inspector import Inspector
from flower.options import options
from flower.urls import settings as flower_settings
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.web import RequestHandler

from core.errors import UserError
from core.logging.setup import Logs
from core.settings.loader import Settings, SettingsError, load_settings, warn_of_doubtful_variables
from core.settings.variables import variable_name
from workers.app import create_celery
from workers.startup import wait_for_servers

logger = logging.getLogger(__name__)

TASKS_MAX = 10_000
"""Tasks that Flower remembers."""
_WORKERS_MAX = 1_000
_FORGET_WORKERS_AFTER_S = 600
_OPEN_PATHS = ("/healthcheck",)
_COLUMNS = "name,args,state,result,received,runtime,worker,uuid"
_BROKER_FACTS = ("transport", "port", "virtual_host", "connect_timeout", "heartbeat")
_RECONNECT_AFTER_S = 1.0
_SAY_AGAIN_AFTER_S = 10.0


class FlowerError(UserError):
    """Flower cannot run; the text says why."""


class _Events(Events):  # type: ignore[misc]
    """Receives events; Flower's own waits twice as long after each failure, without end."""

    def run(self) -> None:
        while True:
            started_at = time.monotonic()
            try:
                with self.capp.connection() as connection:
                    EventReceiver(connection, handlers={"*": self.on_event}, app=self.capp).capture(wakeup=True)
            except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
                if time.monotonic() - started_at > _SAY_AGAIN_AFTER_S:
                    logger.warning("no events until the broker is back: %s", type(error).__name__)
            time.sleep(_RECONNECT_AFTER_S)

    def on_event(self, event: Any) -> None:
        self.io_loop.add_callback(self._record, event)

    def _record(self, event: Any) -> None:
        try:
            self.state.event(event)
        except Exception as error:  # noqa: BLE001 (whoever reaches the broker can send anything)
            logger.warning("an event was dropped: %s", type(error).__name__)


class _Inspector(Inspector):  # type: ignore[misc]
    """Asks workers about all but their configuration, which has the addresses of servers with their passwords."""

    inspect_methods = tuple(method for method in Inspector.inspect_methods if method != "conf")

    def _on_update(self, workername: str, method: str, response: Any) -> None:
        if method == "stats":
            broker = response.get("consumer", response).get("broker", {})
            for fact in broker.keys() - set(_BROKER_FACTS):
                del broker[fact]
        super()._on_update(workername, method, response)


class _Unauthorized(RequestHandler):
    """The answer to whoever does not know the password."""

    def prepare(self) -> None:
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="Payouts", charset="UTF-8"')
        self.finish("Unauthorized\n")


class _Flower(Flower):  # type: ignore[misc]
    """Flower with the password in front of everything: its own leaves `/metrics` and some errors open."""

    def __init__(self, celery: Celery, authorization: str) -> None:
        self._authorization = authorization.encode()
        super().__init__(capp=celery, options=options, **flower_settings)
        # One question at a time: several in threads wait on one another for connections to the broker.
        self.inspector = _Inspector(self.io_loop, celery, options.inspect_timeout / 1000, max_concurrency=1)
        self.events = _Events(
            celery,
            self.io_loop,
            enable_events=False,  # the workers' are on
            max_tasks_in_memory=TASKS_MAX,
            max_workers_in_memory=_WORKERS_MAX,
        )

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate:
        given = request.headers.get("Authorization", "").encode(errors="replace")
        if request.path in _OPEN_PATHS or hmac.compare_digest(given, self._authorization):
            return super().find_handler(request, **kwargs)  # type: ignore[no-any-return]
        return self.get_handler_delegate(request, _Unauthorized)  # type: ignore[no-any-return]


def run_flower(settings: Settings) -> None:
    """Serve until SIGTERM.

    Raises:
        UserError: the broker cannot be reached, there is no password, or the port cannot be had.

    """
    if not settings.flower_password:
        name = variable_name("flower_password")
        raise SettingsError([f"{name} is not set: Flower's password; it shows nothing to anybody without one"])
    celery = create_celery(settings)
    wait_for_servers(celery, settings, with_database=False)
    credentials = f"{settings.flower_user}:{settings.flower_password}"
    options.basic_auth = [credentials]
    options.read_only = True
    options.address = settings.flower_host
    options.port = settings.flower_port
    options.purge_offline_workers = _FORGET_WORKERS_AFTER_S
    options.tasks_columns = _COLUMNS
    flower = _Flower(celery, f"Basic {b64encode(credentials.encode()).decode()}")
    try:
        flower.start_http_server()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        text = f"Flower cannot listen at {settings.flower_host}:{settings.flower_port}: {reason}"
        raise FlowerError(text) from None
    signal.signal(signal.SIGTERM, _stop)
    try:
        flower.start()
    except (KeyboardInterrupt, SystemExit):
        flower.stop()


def _stop(*_: object) -> NoReturn:
    sys.exit(0)


def main() -> None:
    """Run Flower; what the user can put right is one line for each mistake."""
    try:
        warn_of_doubtful_variables()
        settings = load_settings()
        Logs.configure("flower", log_format=settings.log_format, log_level=settings.log_level)
        # What others say for each request, and of workers that are away.
        logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
        logging.getLogger("flower").setLevel(logging.WARNING)
        logging.getLogger("flower.inspector").setLevel(logging.ERROR)
        run_flower(settings)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
