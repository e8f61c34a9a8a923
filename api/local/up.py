"""`payouts up`: the whole system on one machine, from nothing to the first 201."""

import errno
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from api.local.data_dir import DataDir
from api.local.ports import find_free_port
from api.local.postgres import EmbeddedPostgres
from api.local.stale_processes import StartedProcesses
from api.local.supervisor import Server, Supervisor, print_line
from api.local.valkey import EmbeddedValkey
from core.errors import UserError
from core.money import format_dollars
from core.settings.loader import (
    Settings,
    load_settings,
    read_secret_files,
    setting_variables,
    warn_of_doubtful_variables,
)
from core.settings.variables import PREFIX, variable_name
from core.startup import WaitingEndedError

PROCFILE = Path(__file__).resolve().parents[2] / "Procfile"
_DATABASE_URL = variable_name("database_url")
_MIGRATION_DATABASE_URL = variable_name("migration_database_url")
_RUNTIME_ROLE = "payouts_app"
_REDIS_URL = variable_name("redis_url")
_HASH_SECRET = variable_name("hash_secret")
_LOG_FORMAT = variable_name("log_format")
_FLOWER_PASSWORD = variable_name("flower_password")
_FLOWER_PORT = variable_name("flower_port")
_STATE_DIR = variable_name("state_dir")
_FLOWER = "flower"
_RESTARTS_BEFORE_READY_MAX = 3
_READY_WITHIN_S = 60.0
_HEALTH_TIMEOUT_S = 5.0
_POLL_S = 0.05


class UpError(UserError):
    """The system cannot be started; the text says why, in one line."""


def run_up(host: str, port: int, data_path: Path, *, with_flower: bool = True) -> None:
    """Start everything, print how to use it, and stop everything at Ctrl-C or SIGTERM.

    Raises:
        UserError: something is in the way; nothing is left running.

    """
    data_dir = DataDir(data_path)
    data_dir.lock()
    variables = _read_variables(data_dir)
    started = StartedProcesses(data_dir)
    started.end_those_left()
    port = _check_port(host, port)
    with _stop_signals() as stop_asked, ExitStack() as stack:
        stack.callback(started.forget)
        servers = _start_servers(variables, data_dir, started, stack)
        if with_flower:
            _choose_flower_port(variables)
        settings = load_settings(variables)
        supervisor = Supervisor(
            PROCFILE,
            _process_environment(variables, host, port),
            servers=servers,
            optional=[_FLOWER],
            left_out=[] if with_flower else [_FLOWER],
            on_start=started.remember,
        )
        stack.callback(supervisor.stop)
        supervisor.start()
        # The processes take seconds to import what they need, and the web process waits for the migrations.
        from api.local.demo import DEMO_FUNDS_CENTS, prepare_database

        try:
            demo = prepare_database(settings, data_dir, stop_asked.is_set)
        except WaitingEndedError:
            print_line("Stopping …")
            return
        base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        data_dir.write_settings(variables | {"PAYOUTS_URL": base_url})
        _wait_until_ready(base_url, supervisor, stop_asked)
        if not stop_asked.is_set():
            funds = format_dollars(DEMO_FUNDS_CENTS)
            password = demo.password or "as it was set there"
            _print_ready(
                base_url,
                demo.secret_key,
                f"{demo.email}, password: {password}",
                funds,
                data_path,
                settings if with_flower else None,
            )
        stop_asked.wait()
        print_line("Stopping …")


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn Ctrl-C, SIGTERM and a closed terminal into an event, also while servers are being started."""
    asked = threading.Event()
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: asked.set()) for number in handled]
    try:
        yield asked
    finally:
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)


def _check_port(host: str, port: int) -> int:
    """Find out early, and before anything is touched, that the port can be had; 0 chooses one."""
    port = port or find_free_port()
    if problem := _find_port_problem(host, port):
        text = f"port {port} on {host} {problem}"
        raise UpError(text)
    return port


def _find_port_problem(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                return "is already in use; choose another with --port"
            return f"cannot be used: {getattr(error, 'strerror', None) or 'no such address'}"
    return None


def _choose_flower_port(variables: dict[str, str]) -> None:
    """Give Flower another port where somebody else has its own: it is no reason not to serve."""
    settings = load_settings(variables)
    if _find_port_problem(settings.flower_host, settings.flower_port):
        variables[_FLOWER_PORT] = str(find_free_port())
        print_line(f"Flower's port {settings.flower_port} cannot be had; it gets {variables[_FLOWER_PORT]}")


def _read_variables(data_dir: DataDir) -> dict[str, str]:
    """Return the `PAYOUTS_…` variables of the environment, checked as far as they go before servers are started."""
    warn_of_doubtful_variables()
    names = setting_variables()
    variables = read_secret_files({name: value for name, value in os.environ.items() if name in names})
    if _HASH_SECRET not in variables:
        variables[_HASH_SECRET] = data_dir.read_or_make_secret("hash_secret")
    if _FLOWER_PASSWORD not in variables:
        variables[_FLOWER_PASSWORD] = data_dir.read_or_make_secret("flower_password")
    variables.setdefault(_STATE_DIR, str((data_dir.path / "state").absolute()))
    load_settings({_DATABASE_URL: "postgresql:///embedded", _REDIS_URL: "redis://embedded"} | variables)
    return variables


def _start_servers(
    variables: dict[str, str], data_dir: DataDir, started: StartedProcesses, stack: ExitStack
) -> list[Server]:
    """Start the servers that the variables do not name, add their URLs, and return them."""
    servers: list[Server] = []
    if _REDIS_URL not in variables:
        valkey = EmbeddedValkey(on_start=started.remember)
        stack.callback(valkey.stop)
        variables[_REDIS_URL] = valkey.start()
        servers.append(valkey)
    if _DATABASE_URL not in variables:
        postgres = EmbeddedPostgres(data_dir.path / "postgres")
        stack.callback(postgres.stop)
        variables[_MIGRATION_DATABASE_URL] = postgres.start()
        variables[_DATABASE_URL] = postgres.url_as(_RUNTIME_ROLE)
        servers.append(postgres)
    return servers


def _process_environment(variables: dict[str, str], host: str, port: int) -> dict[str, str]:
    """Return the environment of the Procfile's processes; their commands are found beside our Python."""
    own = {
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", ""),
        "PYTHONUNBUFFERED": "1",
        "PAYOUTS_HOST": host,
        "PORT": str(port),
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    # What owns the tables is no business of the processes.
    needed = {name: value for name, value in variables.items() if name != _MIGRATION_DATABASE_URL}
    return {_LOG_FORMAT: "text"} | others | needed | own


def _wait_until_ready(base_url: str, supervisor: Supervisor, stop_asked: threading.Event) -> None:
    give_up_at = time.monotonic() + _READY_WITHIN_S
    while not stop_asked.is_set() and (problem := _find_problem(base_url)):
        if supervisor.restarts() > _RESTARTS_BEFORE_READY_MAX or time.monotonic() >= give_up_at:
            text = f"the processes did not become ready: {problem}"
            raise UpError(text)
        time.sleep(_POLL_S)


def _find_problem(base_url: str) -> str | None:
    """Ask the web process whether it can serve; None if so."""
    try:
        urllib.request.urlopen(f"{base_url}/health/ready", timeout=_HEALTH_TIMEOUT_S).close()  # noqa: S310 (ours)
    except urllib.error.HTTPError as error:
        with error:
            return str(json.load(error).get("error"))
    except OSError:
        return "the web process does not answer"
    return None


def _print_ready(
    base_url: str, demo_key: str, sign_in: str, funds: str, data_path: Path, flower: Settings | None
) -> None:
    seen = ""
    if flower is not None:
        seen = f"""
  The tasks in Flower: http://{flower.flower_host}:{flower.flower_port}
  User: {flower.flower_user}  Password: {flower.flower_password}
"""
    print_line(f"""
Payouts is ready: {base_url}

  The demo business started with {funds} to allocate. Its secret key: {demo_key}

  curl -X POST {base_url}/payout/create \\
    -H 'Authorization: Bearer {demo_key}' \\
    -H 'Content-Type: application/json' \\
    -H 'Idempotency-Key: order-1234' \\
    -d '{{"email": "user@example.com", "amount": 10000}}'

  Its dashboard: {base_url}/dashboard
  Sign in with e-mail: {sign_in}
{seen}
  Data: {data_path}. Ctrl-C stops everything.
""")
