"""What is written down twice agrees: README, compose file, Procfile, constraints and code."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest
import yaml
from click.testing import CliRunner
from honcho.environ import parse_procfile

from api.cli import cli
from core.settings import Settings, variable_name
from tests.servers import ROOT

README = (ROOT / "README.md").read_text()


def settings_table() -> list[str]:
    """The rows of README's table, made from the code."""
    hints = get_type_hints(Settings, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(Settings):
        default = "required" if field.required else f"`{field.default}`" if field.default != "" else ""
        rows.append(f"| `{variable_name(field.name)}` | {default} | {hints[field.name].__metadata__[0].description} |")
    return rows


@pytest.mark.parametrize("row", settings_table())
def test_readme_documents_every_setting(row: str) -> None:
    assert row in README


def test_readme_documents_no_setting_that_is_gone() -> None:
    assert set(re.findall(r"^\| `(PAYOUTS_\w+)`", README, re.MULTILINE)) == {
        variable_name(field.name) for field in msgspec.structs.fields(Settings)
    }


@pytest.mark.parametrize("command", ["up", "push", "migrate", "business", "key", "user", "batch", "verify", "doctor"])
def test_readme_shows_every_command(command: str) -> None:
    assert f"payouts {command}" in README
    assert CliRunner().invoke(cli, [command, "--help"]).exit_code == 0


def test_no_command_is_missing_from_readme() -> None:
    listed = cli.list_commands(cli.make_context("payouts", ["--help"], resilient_parsing=True))
    assert all(f"payouts {command}" in README for command in listed)


@pytest.mark.parametrize("name", ["web", "worker", "batches", "beat"])
def test_compose_runs_the_procfile_lines(name: str) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    shell, option, command = compose["services"][name]["command"]
    assert [shell, option] == ["sh", "-c"]
    procfile = parse_procfile((ROOT / "Procfile").read_text()).processes
    assert command.replace("$$", "$") == procfile[name]


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
        ".ci", ".dockerignore", ".gitignore", "Dockerfile", "LICENSE", "Procfile", "README.md", "api",
        "constraints.txt", "core", "docker-compose.yml", "pyproject.toml", "tests", "workers",
    }  # fmt: skip
    generated = {".git", ".venv", ".payouts", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis",
        ".import_linter_cache", "payouts.egg-info", "dist", "build"}  # fmt: skip
    assert {path.name for path in ROOT.iterdir()} - generated == expected


def test_imports_run_one_way() -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
