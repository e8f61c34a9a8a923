"""The generated pages are current, and hold every setting, metric and command."""

import re
from pathlib import Path
from typing import get_type_hints

import click
import msgspec
import pytest
from click.testing import CliRunner

from api.cli.main import cli
from core import metrics
from core.settings.loader import Settings, documented_settings, find_unknown_variables
from core.settings.replaced import DERIVED, RENAMED
from core.settings.variables import variable_name
from tests.docs.pages import PAGES
from tests.docs.reference_pages import COMMAND, DEFINED, FOLDER, describe_metric, make_pages, walk_commands

SETTINGS, METRICS, COMMANDS = ((FOLDER / name).read_text() for name in ("settings.md", "metrics.md", "command-line.md"))


@pytest.mark.parametrize(("name", "text"), list(make_pages().items()), ids=list(make_pages()))
def test_generated_page_is_current(name: str, text: str) -> None:
    assert (FOLDER / name).read_text() == text, f"run: .venv/bin/{COMMAND}"


def test_no_other_page_is_in_the_folder_of_generated_pages() -> None:
    assert {path.name for path in FOLDER.iterdir()} == make_pages().keys()


@pytest.mark.parametrize("field", msgspec.structs.fields(Settings), ids=lambda field: field.name)
def test_settings_page_documents_every_setting(field: msgspec.structs.FieldInfo) -> None:
    description = get_type_hints(Settings, include_extras=True)[field.name].__metadata__[0].description
    if field.name in DERIVED:
        assert f"| `{field.name}` | {DERIVED[field.name].words} | {description} |\n" in SETTINGS
        return
    default = "required" if field.required else f"`{field.default}`" if field.default != "" else ""
    assert f"| `{variable_name(field.name)}` | {default} | {description} |\n" in SETTINGS


def test_settings_page_documents_no_setting_that_is_gone() -> None:
    names = [*map(variable_name, documented_settings()), *RENAMED]
    assert re.findall(r"^\| `(PAYOUTS_\w+)`", SETTINGS, re.MULTILINE) == names


@pytest.mark.parametrize("metric", DEFINED, ids=lambda metric: describe_metric(metric)[0])
def test_metrics_page_documents_every_metric(metric: object) -> None:
    name, kind, labels, documentation = describe_metric(metric)
    assert f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {documentation} |" in METRICS


def test_metrics_page_documents_no_metric_that_is_gone() -> None:
    current, old = METRICS.split("## Old names")
    assert re.findall(r"^\| `(payouts_\w+)` \|", current, re.MULTILINE) == [
        describe_metric(each)[0] for each in DEFINED
    ]
    assert len(re.findall(r"^\| `(payouts_\w+)` \|", old, re.MULTILINE)) == len(metrics.OLD_NAMES)


def test_commands_page_documents_every_command_and_each_shows_its_help() -> None:
    commands = list(walk_commands(cli, click.Context(cli, info_name="payouts")))
    assert len(commands) > 20
    for command, context in commands:
        words = context.command_path.split()[1:]
        assert re.search(rf"^## `payouts {' '.join(words)}( |`)", COMMANDS, re.MULTILINE)
        assert command.help
        assert CliRunner().invoke(cli, [*words, "--help"]).exit_code == 0


def test_commands_page_documents_no_command_that_is_gone() -> None:
    commands = [context.command_path for _, context in walk_commands(cli, click.Context(cli, info_name="payouts"))]
    shown = re.findall(r"^## `(payouts[a-z -]*[a-z])", COMMANDS, re.MULTILINE)
    assert [each.strip() for each in shown] == commands


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=str)
def test_every_variable_that_a_page_names_is_read(page: Path) -> None:
    named = set(re.findall(r"\b(PAYOUTS_[A-Z_]*[A-Z])\b", page.read_text()))
    assert find_unknown_variables(dict.fromkeys(named, "")) == []
    if page.parent != FOLDER:  # the settings' page says what replaces these
        assert named.isdisjoint({*map(variable_name, DERIVED), *RENAMED})
