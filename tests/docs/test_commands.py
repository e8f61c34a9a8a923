"""Every command of the documentation works where it is pasted, after README's first command."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import sqlalchemy as sa

from api.cli.main import cli
from core.credentials import KeyKind
from core.database.connection import Database
from core.parties import api_keys, businesses
from tests.docs.pages import PAGES, Block, find_block, read_blocks, without_blocks
from tests.docs.reference_pages import FOLDER, walk_commands
from tests.servers import ROOT, Servers, System, run_system, run_valkey, verify_books

COMMANDS = {
    tuple(context.command_path.split()[1:]): command
    for command, context in walk_commands(cli, click.Context(cli, info_name="payouts"))
}
BLOCKS = [block for page in PAGES for block in read_blocks(page, "sh")]
DEMO = "Demo"


def commands_in(block: Block) -> list[str]:
    """Return the lines of a block that are commands: continued ones in one, without what is fed to them."""
    text = re.sub(r"(<<'(\w+)'\n).*?^\2$", r"\1", block.text.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL)
    return [command.strip() for line in text.splitlines() for command in line.split("&&") if command.strip()]


def payouts_commands(block: Block) -> list[list[str]]:
    words = [shlex.split(command) for command in commands_in(block)]
    return [each[1:] for each in words if each[0].endswith("/payouts")]


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    for length in (2, 1):
        if command := COMMANDS.get(tuple(words[:length])):
            return command, words[length:]
    raise LookupError(words)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_commands_are_called_where_the_first_command_installs_them(block: Block) -> None:
    for command in commands_in(block):
        program = shlex.split(re.sub(r"^(\w+=\S+ )+", "", command))[0]
        assert program not in {"payouts", "pytest", "ruff", "mypy", "lint-imports", "python", "pip"}, command


@pytest.mark.parametrize("block", [each for each in BLOCKS if ".venv/bin/payouts" in each.text], ids=str)
def test_arguments_and_options_of_every_shown_command_are_taken(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYOUTS_KEY", "sk_live_of-a-shown-command")
    found = payouts_commands(block)
    assert found
    for words in found:
        command, arguments = find_command(words)
        command.make_context(words[0], arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_sentence_names_is_one(page: Path) -> None:
    groups = {words[0] for words in COMMANDS}
    for text in re.findall(r"`(?:\.venv/bin/)?payouts ([a-z][^`]*)`", without_blocks(page.read_text())):
        words = text.split()
        assert tuple(words[:2]) in COMMANDS or tuple(words[:1]) in COMMANDS or words == [*groups & {text}], text


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != FOLDER], ids=str)
def test_command_with_arguments_in_a_sentence_can_be_pasted(page: Path) -> None:
    """A name alone may stand without its folder."""
    for text in re.findall(r"`payouts ([^`]*)`", without_blocks(page.read_text())):
        assert tuple(text.split()) in COMMANDS, text


@pytest.fixture(scope="module")
def system(servers: Servers) -> Iterator[System]:
    """A system of these tests' own: the commands find businesses by name."""
    with run_valkey() as valkey, run_system(Servers(servers.postgres_url, valkey.url)) as running:
        yield running


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> "Checkout":
    """A folder that looks like a checkout after README's first command, beside a running system."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    return Checkout(folder)


class Checkout:
    """Runs blocks as they are shown, against a system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, text: str, system: System, secret_key: str = "", **variables: str) -> str:
        text = text.replace("sk_live_…", secret_key).replace("http://127.0.0.1:8000", system.base_url)
        environment = system.environment | {"PAYOUTS_URL": system.base_url, "HOME": str(self.folder)} | variables
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert ended.returncode == 0, f"{text}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout


def open_demo(system: System) -> str:
    """Make the demo business as `payouts up` does; return its secret key."""
    with system.database.transaction() as connection:
        found = businesses.find_businesses_by_name(connection, DEMO)
        business = found[0] if found else businesses.create_business(connection, DEMO, payouts_enabled=True)
        businesses.fund_business(connection, business.id, 1_000_000)
        return api_keys.create_api_key(connection, business.id, KeyKind.SECRET)[1]


def test_call_in_readme_pays(demo: Checkout, system: System) -> None:
    key = open_demo(system)
    first, again = (demo.run(find_block("README.md", "Pay somebody"), system, key) for _ in range(2))
    assert re.fullmatch(r'\{"hash":\s*"[0-9a-f]{64}"\}', first)
    assert again == first


def test_file_is_paid_as_shown(demo: Checkout, system: System) -> None:
    said = demo.run(find_block("docs/files.md", "Files and push"), system, open_demo(system))
    assert "2 rows" in said
    results = (demo.folder / "people.csv.results.csv").read_text().splitlines()
    shown = re.search(r"columns `([^`]*)`", (ROOT / "docs/files.md").read_text())
    assert shown
    assert results[0] == shown[1]
    assert all(",allocated," in line for line in results[1:3])


def test_commands_for_businesses_keys_and_people_work_as_shown(demo: Checkout, system: System) -> None:
    open_demo(system)
    demo.run(find_block("docs/operations/production.md", "Businesses, keys and people"), system)
    demo.run(find_block("docs/dashboard.md", "Dashboard"), system)
    said = demo.run(read_blocks(ROOT / "docs/first-integration.md", "sh")[1].text, system)
    assert "sk_live_" in said
    assert "sk_test_" in said


def test_doctor_and_verify_work_as_shown(demo: Checkout, system: System) -> None:
    said = demo.run(find_block("docs/operations/index.md", "Operations"), system)
    assert "The books balance" in said


def test_database_is_backed_up_and_restored_as_shown(demo: Checkout, servers: Servers, system: System) -> None:
    key = open_demo(system)
    demo.run(find_block("README.md", "Pay somebody"), system, key)
    program = next((Path(sys.prefix) / "lib").rglob("pginstall18/bin/pg_dump"))
    path = f"{program.parent}:{system.environment['PATH']}"
    demo.run(find_block("docs/operations/backup.md", "Backup"), system, PATH=path)
    restore, check = (block.text for block in read_blocks(ROOT / "docs/operations/backup.md", "sh")[2:4])
    url = servers.create("restored")
    try:
        demo.run(restore, system, PATH=path, PAYOUTS_DATABASE_URL=url)
        assert "The books balance" in demo.run(check, system, PAYOUTS_DATABASE_URL=url)
        with Database(url, transaction_timeout_s=5) as restored:
            assert verify_books(restored).transactions == verify_books(system.database).transactions > 0
    finally:
        servers.administer("DROP DATABASE restored WITH (FORCE)")


def test_wheel_s_own_pg_dump_is_found_as_shown(demo: Checkout, system: System) -> None:
    shown = read_blocks(ROOT / "docs/operations/backup.md", "sh")[1].text
    assert "secrets.json" in shown
    with system.database.transaction() as connection:
        assert connection.execute(sa.text("SHOW server_version_num")).scalar_one().startswith("18")
    find = re.search(r"\$\((find [^)]*)\)", shown)
    assert find
    text = find[1].replace("find .venv", f"find {shlex.quote(sys.prefix)}")
    assert demo.run(text, system).count("pg_dump") == 1
    assert shutil.which("find")
