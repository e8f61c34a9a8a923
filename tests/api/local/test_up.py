"""`payouts up`: the real command, in a data directory and on a port of its own."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa

from core.database.connection import Database
from core.parties.businesses import find_businesses_by_name, get_business
from core.parties.members import Role, list_memberships
from core.parties.passwords import check_password
from tests.polling import wait_until
from tests.servers import Servers

PAYOUTS = str(Path(sys.executable).with_name("payouts"))
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0
MARK = "UP_TEST_HOME"  # in the environment, which all but Valkey keep
READY_TEXT = "Ctrl-C stops everything."


class Up:
    """A `payouts up` in the background; `home` holds its log and, in `data`, its data directory."""

    def __init__(self, home: Path, *arguments: str, **variables: str) -> None:
        self.home = home
        self.data_dir = home / "data"
        self.log = home / "up.log"
        self.started: set[psutil.Process] = set()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [PAYOUTS, "up", "--data-dir", str(self.data_dir), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment(**variables) | {MARK: str(home)},
                start_new_session=True,  # so that a test can send a signal to the group, as a terminal does
            )

    def wait_until_ready(self) -> "Up":
        wait_until(lambda: READY_TEXT in self.output() or self.process.poll() is not None, self.output, READY_WITHIN_S)
        assert self.process.poll() is None, self.output()
        self.started |= self.parts()
        return self

    def parts(self) -> set[psutil.Process]:
        """Return what it runs, itself too. Valkey overwrites its environment, so it is known as a child only."""
        itself = psutil.Process(self.process.pid)
        return {itself, *itself.children(recursive=True), *processes_of(self.home)}

    def left(self) -> list[psutil.Process]:
        """Return what still runs of all that it started."""
        return [process for process in {*self.started, *processes_of(self.home)} if is_alive(process)]

    def assert_nothing_is_left(self) -> None:
        wait_until(lambda: not self.left(), self.left, 5)

    def output(self) -> str:
        return self.log.read_text()

    @property
    def base_url(self) -> str:
        return self._printed(r"Payouts is ready: (\S+)")

    @property
    def demo_key(self) -> str:
        return self._printed(r"secret key: (\S+)")

    def flower(self) -> httpx.Client:
        found = re.search(r"Flower: (\S+)\n  User: (\S+)  Password: (\S+)$", self.output(), re.MULTILINE)
        assert found, self.output()
        return httpx.Client(base_url=found[1], auth=(found[2], found[3]), timeout=30)

    @property
    def password(self) -> str:
        return self._printed(r"e-mail: demo@example\.com, password: ([^\n]+)$")

    @property
    def curl(self) -> str:
        return self._printed(r"^  (curl .*?')$")

    def _printed(self, pattern: str) -> str:
        found = re.search(pattern, self.output(), re.MULTILINE | re.DOTALL)
        assert found, self.output()
        return found[1]

    def pay(self, email: str, amount: int) -> httpx.Response:
        return httpx.post(
            f"{self.base_url}/payout/create",
            json={"email": email, "amount": amount},
            headers={"Authorization": f"Bearer {self.demo_key}"},
            timeout=30,
        )

    def balance_of(self, email: str) -> int:
        shown = payouts("user", "show", email, "--data-dir", str(self.data_dir), "--json")
        assert shown.returncode == 0, shown.stderr
        return int(json.loads(shown.stdout)["balance"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; return its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.output()) from None

    def clean_up(self) -> None:
        """End whatever a failed test has left."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_WITHIN_S)
        for process in self.left():
            with contextlib.suppress(psutil.Error):
                process.kill()


def environment(**variables: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PAYOUTS_") and name != "PORT"}
    return ours | variables


def payouts(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PAYOUTS, *arguments], capture_output=True, text=True, timeout=READY_WITHIN_S, env=environment(**variables)
    )


def processes_of(home: Path) -> list[psutil.Process]:
    """Return what runs for a data directory below `home`: known by environment, command line or working directory."""
    return [process for process in psutil.process_iter() if _belongs_to(process, str(home))]


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _belongs_to(process: psutil.Process, home: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        if not is_alive(process):
            return False
        if any(home in argument for argument in process.cmdline()) or process.cwd().startswith(home):
            return True
        return bool(process.environ().get(MARK, "").startswith(home))
    return False


def names_of(processes: Iterable[psutil.Process]) -> set[str]:
    """Return which of the known parts are among them."""
    lines = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join([process.name(), *process.cmdline()]))
    parts = {"postgres": "postgres", "valkey": "valkey", "web": "uvicorn", "worker": "celery", "up": "payouts up"}
    return {part for part, mark in parts.items() if any(mark in line for line in lines)}


def find_part(home: Path, mark: str) -> list[psutil.Process]:
    """Return the processes of one Procfile line, by a word of its command."""
    found = []
    for process in processes_of(home):
        with contextlib.suppress(psutil.Error):
            if any(Path(argument).name == mark for argument in process.cmdline()):
                found.append(process)
    return found


@contextmanager
def make_home() -> Iterator[Path]:
    # Not pytest's tmp_path: each session of pytest closes the folder above all of them to other users, and root
    # runs PostgreSQL as another user.
    path = Path(tempfile.mkdtemp(prefix="payouts-up-")).resolve()
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def home() -> Iterator[Path]:
    with make_home() as path:
        yield path


@contextmanager
def run_up(home: Path, *arguments: str, **variables: str) -> Iterator[Up]:
    up = Up(home, *(arguments or ("--port", "0", "--no-flower")), **variables)
    try:
        yield up
    finally:
        with contextlib.suppress(psutil.Error):
            up.started |= up.parts()
        up.clean_up()


@pytest.fixture(scope="module")
def running() -> Iterator[Up]:
    """One that most tests share, with Flower; they leave it serving."""
    with make_home() as home, run_up(home, "--port", "0") as up:
        yield up.wait_until_ready()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_printed_curl_answers_201_with_a_hash(running: Up) -> None:
    script = f"{running.curl} --silent --write-out '\\n%{{http_code}}'"
    answer = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    body, status = answer.stdout.rsplit("\n", 1)
    assert status == "201", answer
    assert re.fullmatch("[0-9a-f]{64}", json.loads(body)["hash"])


def test_ready_text_names_base_url_and_demo_key(running: Up) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", running.base_url)
    assert re.fullmatch("sk_live_[0-9A-Za-z]{40}", running.demo_key)
    assert running.base_url in running.curl
    assert running.demo_key in running.curl
    assert f"{running.base_url}/dashboard" in running.output()


def test_printed_sign_in_is_an_admin_of_the_demo_business(running: Up) -> None:
    variables = json.loads((running.data_dir / "settings.json").read_text())
    with Database(variables["PAYOUTS_DATABASE_URL"], transaction_timeout_s=None) as database:
        account = check_password(database, "demo@example.com", running.password)
        assert account is not None
        with database.transaction() as connection:
            (membership,) = list_memberships(connection, account.id)
            demo = get_business(connection, membership.business_id)
    assert (membership.business_name, membership.role) == ("Demo", Role.ADMIN)
    assert demo.balance > 0


def test_allocations_are_seen_in_flower_with_the_printed_password(running: Up) -> None:
    assert running.pay("flower@example.com", 1).status_code == 201
    with running.flower() as flower:
        wait_until(lambda: is_answered(flower), running.output, 30)
        assert httpx.get(flower.base_url).status_code == 401

        def find_task() -> bool:
            assert running.pay("flower@example.com", 1).status_code == 201
            tasks = flower.get("/api/tasks").json().values()
            return any((task["args"], task["result"]) == ("1 allocation, 1 business", "1 allocated") for task in tasks)

        wait_until(find_task, running.output, 30)


def is_answered(client: httpx.Client) -> bool:
    try:
        return client.get("/").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("host", ["127.0.0.1", "host.invalid"])
def test_flower_that_cannot_listen_keeps_nobody_from_serving(home: Path, taken_port: int, host: str) -> None:
    variables = {"PAYOUTS_FLOWER_PORT": str(taken_port), "PAYOUTS_FLOWER_HOST": host}
    with run_up(home, "--port", "0", **variables) as up:
        up.wait_until_ready()
        assert f"Flower's port {taken_port} cannot be had" in up.output()
        assert up.pay("flower@example.com", 1).status_code == 201
        if host == "127.0.0.1":
            with up.flower() as flower:
                wait_until(lambda: is_answered(flower), up.output, 30)
        else:
            wait_until(lambda: "flower has ended; it is started again" in up.output(), up.output, 30)
            assert "Flower cannot listen at host.invalid:" in up.output()
        assert up.stop() == 0
        up.assert_nothing_is_left()


def test_flower_can_be_left_out(home: Path) -> None:
    with run_up(home, "--port", "0", "--no-flower") as up:
        up.wait_until_ready()
        assert "Flower" not in up.output()
        assert not find_part(home, "workers.flower")


def test_misspelt_setting_is_said_once_and_secrets_are_read_from_files(home: Path) -> None:
    (home / "secret").write_text("0123456789abcdef0123456789abcdef\n")
    variables = {"PAYOUTS_GROUPMAX": "5", "PAYOUTS_HASH_SECRET_FILE": str(home / "secret")}
    with run_up(home, **variables) as up:
        up.wait_until_ready()
        assert up.output().count("PAYOUTS_GROUPMAX is no setting; did you mean PAYOUTS_GROUP_MAX?") == 1
        assert up.pay("file@example.com", 1).status_code == 201
        assert up.balance_of("file@example.com") == 1


def test_example_secret_is_refused_in_production(home: Path) -> None:
    variables = {"PAYOUTS_ENVIRONMENT": "production", "PAYOUTS_HASH_SECRET": "a hash secret for tests, long enough"}
    refused = payouts("up", "--data-dir", str(home / "data"), "--port", "0", **variables)
    assert refused.returncode == 2
    assert_is_one_line(refused, "PAYOUTS_HASH_SECRET: its value looks like an example")
    assert processes_of(home) == []


def test_email_in_capitals_is_the_same_user(running: Up) -> None:
    first = running.pay("capitals@example.com", 300)
    second = running.pay("CAPITALS@EXAMPLE.COM", 45)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert running.balance_of("Capitals@Example.com") == 345


def test_admin_commands_find_the_database_by_data_dir(running: Up) -> None:
    listed = payouts("business", "list", "--data-dir", str(running.data_dir), "--json")
    assert [each["name"] for each in json.loads(listed.stdout)] == ["Demo"]
    verified = payouts("verify", "--data-dir", str(running.data_dir))
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_admin_commands_find_the_default_data_dir(running: Up) -> None:
    with make_home() as elsewhere:
        (elsewhere / ".payouts").symlink_to(running.data_dir)
        shown = subprocess.run(
            [PAYOUTS, "business", "show", "Demo", "--json"],
            cwd=elsewhere,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert json.loads(shown.stdout)["payouts_enabled"] is True


def test_link_of_an_invitation_leads_to_what_is_served(running: Up) -> None:
    invited = payouts("member", "invite", "Demo", "new@example.com", "--data-dir", str(running.data_dir), "--json")
    link = json.loads(invited.stdout)["link"]
    assert link.startswith(f"{running.base_url}/dashboard/invitations/")
    assert httpx.get(link, timeout=30).status_code == 200


def test_doctor_finds_all_of_it_by_data_dir(running: Up) -> None:
    examined = payouts("doctor", "--data-dir", str(running.data_dir))
    assert examined.returncode == 0, examined.stdout
    lines = examined.stdout.splitlines()
    assert any(line.startswith("ok       api: ready at ") for line in lines)
    assert any(line.startswith("ok       disk: ") for line in lines)


def test_doctor_says_how_to_start_what_was_stopped(home: Path) -> None:
    up = Up(home, "--port", "0")
    try:
        up.wait_until_ready()
        assert up.stop() == 0
    finally:
        up.clean_up()
    examined = payouts("doctor", "--data-dir", str(up.data_dir))
    assert examined.returncode == 1
    assert f"run: payouts up --data-dir {up.data_dir}" in examined.stdout


@pytest.mark.parametrize("name", ["secrets.json", "settings.json"])
def test_files_with_secrets_are_the_owners_only(running: Up, name: str) -> None:
    status = (running.data_dir / name).stat()
    assert status.st_mode & 0o077 == 0
    assert status.st_uid == os.getuid()


def test_no_secret_but_the_demo_key_is_printed(running: Up) -> None:
    variables = json.loads((running.data_dir / "settings.json").read_text())
    password = httpx.URL(variables["PAYOUTS_REDIS_URL"]).password
    assert password
    assert password not in running.output()
    assert variables["PAYOUTS_HASH_SECRET"] not in running.output()


def test_second_up_on_a_data_dir_is_refused_and_the_first_serves_on(running: Up) -> None:
    before = {process.pid for process in find_part(running.home, "celery")}
    second = payouts("up", "--data-dir", str(running.data_dir), "--port", "0")
    assert second.returncode == 1
    assert_is_one_line(second, "already running")
    assert running.process.poll() is None
    assert {process.pid for process in find_part(running.home, "celery")} == before
    assert running.pay("second@example.com", 1).status_code == 201


def test_taken_port_is_one_line_and_nothing_runs(home: Path, taken_port: int) -> None:
    refused = payouts("up", "--data-dir", str(home / "data"), "--port", str(taken_port))
    assert refused.returncode == 1
    assert_is_one_line(refused, f"port {taken_port} ")
    assert processes_of(home) == []


def test_host_that_is_not_ours_is_one_line(home: Path) -> None:
    host = "203.0.113.7"
    with run_up(home, "--host", host, "--port", "0") as up:
        wait_until(lambda: up.process.poll() is not None, up.output, 5)
        assert up.wait() == 1
        (line,) = up.output().splitlines()
        assert host in line
        up.assert_nothing_is_left()


def test_wrong_setting_is_named_before_anything_starts(home: Path) -> None:
    refused = payouts("up", "--data-dir", str(home / "data"), "--port", "0", PAYOUTS_GROUP_MAX="zero")
    assert refused.returncode == 2
    assert_is_one_line(refused, "PAYOUTS_GROUP_MAX")
    assert processes_of(home) == []
    assert not (home / "data" / "postgres").exists()


def test_every_wrong_setting_gets_its_line(home: Path) -> None:
    refused = payouts(
        "up", "--data-dir", str(home / "data"), "--port", "0", PAYOUTS_GROUP_MAX="zero", PAYOUTS_RESOLVE_TIMEOUT_S="-1"
    )
    assert refused.returncode == 2
    assert [line.split()[:2] for line in refused.stderr.splitlines()] == [
        ["Error:", "PAYOUTS_GROUP_MAX:"],
        ["Error:", "PAYOUTS_RESOLVE_TIMEOUT_S:"],
    ]


@pytest.mark.parametrize("url", ["mysql://user:hunter2@host/name", "postgresql://user:hunter2@host:port/name"])
def test_wrong_database_url_is_named_without_its_content(home: Path, servers: Servers, url: str) -> None:
    variables = {"PAYOUTS_DATABASE_URL": url, "PAYOUTS_REDIS_URL": servers.redis_url}
    refused = payouts("up", "--data-dir", str(home / "data"), "--port", "0", **variables)
    assert refused.returncode == 2
    assert_is_one_line(refused, "PAYOUTS_DATABASE_URL")
    assert "hunter2" not in refused.stderr + refused.stdout
    assert processes_of(home) == []


def test_unreachable_database_ends_it_with_one_line(home: Path) -> None:
    variables = {
        "PAYOUTS_DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/name",
        "PAYOUTS_STARTUP_TIMEOUT_S": "0.5",
    }
    with run_up(home, "--port", "0", **variables) as up:
        assert up.wait() == 1
        assert up.output().splitlines()[-1].startswith("Error: PostgreSQL at 127.0.0.1:1 cannot be reached")
        assert "Traceback" not in up.output()
        assert "hunter2" not in up.output()
        up.assert_nothing_is_left()


def test_sigterm_stops_everything_and_a_restart_keeps_data_and_key(home: Path) -> None:
    with run_up(home) as up:
        up.wait_until_ready()
        assert names_of(up.parts()) == {"up", "postgres", "valkey", "web", "worker"}
        key, password, first = up.demo_key, up.password, up.pay("kept@example.com", 700)
        assert up.stop(signal.SIGTERM) == 0
        up.assert_nothing_is_left()
        assert "Traceback" not in up.output()
    with run_up(home) as up:
        up.wait_until_ready()
        assert (up.demo_key, up.password) == (key, password)
        second = up.pay("kept@example.com", 7)
        assert second.json() == first.json()
        assert up.balance_of("kept@example.com") == 707
        # As a terminal does it: everything in the foreground gets the signal.
        os.killpg(up.process.pid, signal.SIGINT)
        assert up.wait() == 0
        up.assert_nothing_is_left()
        assert "Traceback" not in up.output()


def test_sigint_to_the_process_alone_stops_everything_as_does_a_second_one(home: Path) -> None:
    with run_up(home) as up:
        up.wait_until_ready()
        up.process.send_signal(signal.SIGINT)
        wait_until(lambda: "Stopping" in up.output(), up.output, STOP_WITHIN_S)
        up.process.send_signal(signal.SIGINT)
        assert up.wait() == 0, up.output()
        up.assert_nothing_is_left()


def test_second_sigterm_while_stopping_leaves_nothing_behind(home: Path) -> None:
    with run_up(home) as up:
        up.wait_until_ready()
        up.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Stopping" in up.output(), up.output, STOP_WITHIN_S)
        time.sleep(0.3)
        up.process.send_signal(signal.SIGTERM)
        assert up.wait() == 0, up.output()
        up.assert_nothing_is_left()


def test_sigterm_while_starting_stops_everything(home: Path) -> None:
    with run_up(home) as up:
        wait_until(lambda: find_part(home, "uvicorn"), up.output, READY_WITHIN_S)
        assert up.stop(signal.SIGTERM) == 0
        assert READY_TEXT not in up.output()
        up.assert_nothing_is_left()


def test_next_up_ends_what_a_killed_one_left_and_serves(home: Path) -> None:
    with run_up(home) as killed:
        killed.wait_until_ready()
        key, port = killed.demo_key, killed.base_url.rsplit(":", 1)[1]
        assert killed.pay("orphan@example.com", 20).status_code == 201
        killed.process.kill()
        killed.process.wait()
        assert names_of(killed.left()) == {"postgres", "valkey", "web", "worker"}
        with run_up(home, "--port", port) as up:
            up.wait_until_ready()
            # PostgreSQL may be taken over.
            assert names_of(process for process in killed.started if is_alive(process)) <= {"postgres"}
            assert len(find_part(home, "uvicorn")) == 1
            assert up.demo_key == key
            assert up.pay("orphan@example.com", 3).status_code == 201
            assert up.balance_of("orphan@example.com") == 23
            assert up.stop() == 0
            up.assert_nothing_is_left()


def test_with_servers_named_none_is_embedded_and_port_comes_from_the_environment(
    home: Path, servers: Servers, database_url: str, database: Database
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "PAYOUTS_DATABASE_URL": database_url,
        # A Redis database of its own: Celery's queue has one name, and other tests' workers listen too.
        "PAYOUTS_REDIS_URL": servers.redis_url.removesuffix("/0") + "/7",
        "PORT": str(port),
    }
    with run_up(home, "--host", "127.0.0.1", **variables) as up:
        up.wait_until_ready()
        assert up.base_url == f"http://127.0.0.1:{port}"
        assert names_of(up.parts()) == {"up", "web", "worker"}
        assert not (up.data_dir / "postgres").exists()
        assert up.pay("named@example.com", 5).status_code == 201
        assert up.stop() == 0
        up.assert_nothing_is_left()
    with database.transaction() as connection:
        [demo] = find_businesses_by_name(connection, "Demo")
        assert demo.payout_balance == 100_000_000 - 5
        assert connection.execute(sa.text("SELECT sum(balance) FROM payout_users")).scalar_one() == 5


# Last, since they disturb the `up` that the tests above share.
@pytest.mark.parametrize(("part", "mark"), [("worker", "allocations"), ("web", "uvicorn")])
def test_killed_process_is_started_again_and_payments_go_on(running: Up, part: str, mark: str) -> None:
    (victim,) = find_part(running.home, mark)
    victim.kill()
    wait_until(lambda: f"{part} has ended" in running.output(), running.output, 30)
    wait_until(lambda: pays(running), running.output, 60)
    (successor,) = find_part(running.home, mark)
    assert successor.pid != victim.pid


@pytest.mark.parametrize("name", ["valkey-server", "postgres"])
def test_killed_server_is_started_again_and_payments_go_on(running: Up, name: str) -> None:
    killed = [process for process in psutil.Process(running.process.pid).children() if process.name() == name]
    assert len(killed) == 1
    killed[0].kill()
    wait_until(lambda: pays(running), running.output, READY_WITHIN_S)
    running.started |= running.parts()


def pays(up: Up) -> bool:
    try:
        return up.pay("survivor@example.com", 1).status_code == 201
    except httpx.TransportError:
        return False


def assert_is_one_line(result: subprocess.CompletedProcess[Any], part: str) -> None:
    """Whatever came out is one line of error text with `part` in it."""
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert part in line
