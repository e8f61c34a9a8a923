"""What is written down twice agrees: documentation, compose file, Procfile, constraints and code."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from api.cli.main import cli
from api.local.procfile import parse_procfile
from core.version import VERSION
from tests.pgbouncer import pgbouncer_settings
from tests.servers import ROOT

SCALING = (ROOT / "docs/operations/scaling.md").read_text()


def test_documentation_shows_the_settings_of_pgbouncer_that_the_tests_run_with() -> None:
    shown = re.search(r"^```ini\n(pool_mode.*?)```$", SCALING, re.MULTILINE | re.DOTALL)
    assert shown
    assert shown[1] == pgbouncer_settings()


PROCFILE: dict[str, str] = parse_procfile((ROOT / "Procfile").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SECRETS_COMPOSE = yaml.safe_load((ROOT / "docker-compose.secrets.yml").read_text())
OWN_SERVICES = [*PROCFILE, "migrate"]


@pytest.mark.parametrize("name", PROCFILE)
def test_compose_runs_the_procfile_lines(name: str) -> None:
    shell, option, command = COMPOSE["services"][name]["command"]
    assert [shell, option] == ["sh", "-c"]
    assert command.replace("$$", "$") == PROCFILE[name]


@pytest.mark.parametrize("name", OWN_SERVICES)
def test_compose_runs_our_processes_in_production_and_with_no_more_rights_than_they_need(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["environment"]["PAYOUTS_ENVIRONMENT"] == "production"
    assert (service["read_only"], service["cap_drop"], "container_name" in service) == (True, ["ALL"], False)
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert "healthcheck" in service or name in ("migrate", "beat")


@pytest.mark.parametrize("name", OWN_SERVICES)
def test_compose_gives_each_secret_by_environment_or_by_file(name: str) -> None:
    plain = COMPOSE["services"][name]["environment"]
    by_file = plain | SECRETS_COMPOSE["services"][name]["environment"]
    for variable in ("PAYOUTS_DATABASE_PASSWORD", "PAYOUTS_HASH_SECRET", "PAYOUTS_FLOWER_PASSWORD"):
        assert re.fullmatch(r"\$\{[A-Z_]+:-\}", plain[variable])
        assert by_file[variable] == ""
        file = by_file[f"{variable}_FILE"].removeprefix("/run/secrets/")
        assert file in SECRETS_COMPOSE["services"][name]["secrets"]
        assert file in SECRETS_COMPOSE["secrets"]


def test_compose_starts_nothing_without_its_secrets() -> None:
    """The settings that compose makes of an empty environment are refused, secret by secret."""
    made = {name: str(value) for name, value in COMPOSE["services"]["migrate"]["environment"].items()}
    without = {name: re.sub(r"\$\{\w+:-\}", "", value) for name, value in made.items()}
    ended = subprocess.run(
        [Path(sys.executable).with_name("payouts"), "migrate"], env=without, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert [line.removeprefix("Error: ").split(" ")[0] for line in ended.stderr.splitlines()] == [
        "PAYOUTS_HASH_SECRET",
        "PAYOUTS_FLOWER_PASSWORD",
        "PAYOUTS_DATABASE_PASSWORD",
    ]


def test_compose_publishes_nothing_but_the_api_to_others() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:") or name == "web"


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("files", [[], ["--file", "docker-compose.yml", "--file", "docker-compose.secrets.yml"]])
def test_compose_files_are_valid(files: list[str]) -> None:
    checked = subprocess.run(
        ["docker-compose", *files, "--profile", "monitoring", "config", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr


def test_image_holds_what_the_wheel_needs_and_no_secrets() -> None:
    copied = set(re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["packages"], *wheel["force-include"], "constraints.txt"} <= set(" ".join(copied).split())
    for ignored in (".dockerignore", ".gitignore"):
        assert {".env", "secrets"} <= {line.rstrip("/") for line in (ROOT / ignored).read_text().splitlines()}


def test_constraints_pin_every_direct_dependency_and_name_no_address() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9-]+)==", constraints, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    names = {re.split(r"[\[>=<; ]", each)[0] for each in wanted} - {"payouts"}
    assert names <= pinned
    assert "://" not in constraints


def test_nothing_else_is_at_the_top() -> None:
    expected = {
        ".ci", ".dockerignore", ".github", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CONTRIBUTING.md",
        "Dockerfile", "LICENSE", "Makefile", "Procfile", "README.md", "SECURITY.md", "api", "constraints.txt", "core",
        "docker-compose.secrets.yml", "docker-compose.yml", "docs", "findings", "monitoring", "pyproject.toml", "tests",
        "workers",
    }  # fmt: skip
    generated = {".git", ".coverage", ".venv", ".payouts", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis",
        ".import_linter_cache", "payouts.egg-info", "dist", "build", ".env", "secrets"}  # fmt: skip
    assert {path.name for path in ROOT.iterdir()} - generated == expected


def test_imports_run_one_way() -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_there_is_one_version() -> None:
    """That of the package, of `payouts --version`, of the OpenAPI document, and of the changelog's newest section."""
    assert VERSION == "0.2.0"
    assert importlib.metadata.version("payouts") == VERSION, "install it again: .venv/bin/pip install -e ."
    shown = CliRunner().invoke(cli, ["--version"])
    assert shown.output == f"payouts, version {VERSION}\n"
    assert re.search(rf"^(Becomes {VERSION}\.|## \[{VERSION}\] - )", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("package", ["api", "core", "workers"])
def test_package_tells_type_checkers_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").read_text() == ""


@pytest.mark.parametrize(
    "arguments", [["api", "core", "workers"], ["tests", "--exclude", r"^\.venv", "--ignore", "DEP002,DEP004"]]
)
def test_everything_that_is_imported_is_declared(arguments: list[str]) -> None:
    checked = subprocess.run(
        [Path(sys.executable).with_name("deptry"), *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


COMMANDS = re.findall(r"^\| .* \| `([a-z0-9.-]+)` \| `(.+)` \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("target", "command"), COMMANDS, ids=[target for target, _ in COMMANDS])
def test_make_runs_the_documented_command(target: str, command: str) -> None:
    shown = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.splitlines() == [command], shown.stderr


def test_every_target_of_make_is_documented() -> None:
    targets = set(re.findall(r"^([a-z0-9.-]+):.* ## .+$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets - {"help", "setup", "some", "check-fast"} == {target for target, _ in COMMANDS}
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert targets == set(phony[1].replace("\\", "").split())


def test_hooks_run_commands_of_the_makefile() -> None:
    """What a hook checks is what CI checks."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text()
    for hook in hooks:
        command = re.sub(r" --(fix|no-cache)$", "", hook["entry"])
        assert command in makefile


@pytest.mark.parametrize(
    "template", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_template_can_be_read(template: Path) -> None:
    content = yaml.safe_load(template.read_text())
    if template.name != "config.yml":
        assert {"name", "description", "body"} <= content.keys()
        assert all(field["type"] == "markdown" or field["attributes"]["label"] for field in content["body"])
