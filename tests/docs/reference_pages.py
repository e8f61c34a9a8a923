"""Writes the pages of `docs/reference` from the code: `python -m tests.docs.reference_pages`."""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import click
import msgspec
from prometheus_client.metrics import MetricWrapperBase

from api.cli.main import cli
from core import metrics
from core.settings.loader import SECRETS, Settings
from core.settings.replaced import DERIVED, RENAMED
from core.settings.variables import variable_name
from tests.servers import ROOT

FOLDER = ROOT / "docs/reference"
COMMAND = "python -m tests.docs.reference_pages"
DEFINED = [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase | metrics.Measured)]

_BOUNDS = re.compile(r"(; )?[0-9]+<=x<=[0-9]+|\[[0-9]+<=x<=[0-9]+\]")
_NOTE = f"<!-- Generated from the code by `.venv/bin/{COMMAND}`. Do not edit. -->\n"
_SETTINGS = """# Settings

Settings are environment variables. Every process and every command reads the same ones. How they are checked, and how
secrets are given as files, is on [Production](../operations/production.md#settings).

| variable | default | meaning |
|---|---|---|
"""
_METRICS = """# Metrics

[Monitoring](../operations/monitoring.md) says how to scrape them. Metrics of the API are at `GET /metrics`; metrics of
the workers at the port that `PAYOUTS_METRICS_PORT` names.

| metric | type | labels | meaning | from |
|---|---|---|---|---|
"""
_COMMANDS = """# Command line

Run the commands from the checkout as `.venv/bin/payouts`, or in a container as `payouts`. `BUSINESS` is the id
(`biz_…`) or the name of a business. Amounts are in cents. An expected error is one line on standard error and exit
code 1 (2 for wrong settings or arguments), where a command says nothing else.

Every command but `up` and `push` has two more options:

| option | meaning |
|---|---|
"""
_DERIVED = """
## Limits that follow from settings

These values are calculated. In 0.2 each can still be set by a variable of the old form (`PAYOUTS_` and the name in
capitals), with a warning at the start; 0.3 ignores these variables.

| limit | value | meaning |
|---|---|---|
"""
_RENAMED = """
## Old names

The old names work in 0.2, with a warning at the start, and end with 0.3.

| old | new |
|---|---|
"""
_OLD_METRICS = """
## Old names

0.2 gives these metrics out under both names, 0.3 under the new ones alone. The alert `PayoutsUnsettled` is
`PayoutsUnresolved` now.

| old | new |
|---|---|
"""
_SHARED_OPTIONS = ("as_json", "data_dir")


def describe_metric(metric: Any) -> tuple[str, str, list[str], str]:
    """Return name (as Prometheus shows it), type, labels and help text."""
    (family,) = metric.describe()
    labels = metric._labelnames if isinstance(metric, MetricWrapperBase) else metric._family[2]
    return family.name + ("_total" if family.type == "counter" else ""), family.type, list(labels), family.documentation


def _settings_rows() -> Iterator[str]:
    hints = get_type_hints(Settings, include_extras=True)
    for field in msgspec.structs.fields(Settings):
        if field.name in DERIVED:
            continue
        default = "required" if field.required else f"`{field.default}`" if field.default != "" else ""
        yield f"| `{variable_name(field.name)}` | {default} | {hints[field.name].__metadata__[0].description} |\n"


def _settings_page() -> str:
    files = ", ".join(f"`{variable_name(name)}_FILE`" for name in SECRETS)
    hints = get_type_hints(Settings, include_extras=True)
    derived = "".join(
        f"| `{name}` | {rule.words} | {hints[name].__metadata__[0].description} |\n" for name, rule in DERIVED.items()
    )
    renamed = "".join(f"| `{old}` | `{new}` |\n" for old, new in RENAMED.items())
    return (
        f"{_SETTINGS}{''.join(_settings_rows())}\nSecrets may be in files instead: {files}.\n"
        f"{_DERIVED}{derived}{_RENAMED}{renamed}"
    )


def _metric_rows() -> Iterator[str]:
    of_api = {family.name for family in metrics.API.collect()}
    for metric in DEFINED:
        name, kind, labels, documentation = describe_metric(metric)
        (family,) = metric.describe()
        where = "API" if family.name in of_api else "workers"
        yield f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {documentation} | {where} |\n"


def _old_metric_rows() -> Iterator[str]:
    shown = {family.name: name for each in DEFINED for family in each.describe() for name in [describe_metric(each)[0]]}
    for name, old_name in metrics.OLD_NAMES.items():
        yield f"| `{old_name}{shown[name].removeprefix(name)}` | `{shown[name]}` |\n"


def walk_commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Give every command that does something, with a context that knows its full name."""
    if not isinstance(command, click.Group):
        yield command, context
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from walk_commands(inner, click.Context(inner, info_name=name, parent=context))


def _command_text(command: click.Command, context: click.Context) -> str:
    usage = " ".join(command.collect_usage_pieces(context)).removeprefix("[OPTIONS]").strip()
    title = f"{context.command_path} {usage}".strip()
    lines = [f"\n## `{title}`\n", re.sub(r"\s+", " ", command.help or "").strip() + "\n"]
    shared = _SHARED_OPTIONS if _has_shared_options(command) else ()
    if rows := _option_rows(command, context, lambda name: name != "help" and name not in shared):
        lines += ["| option | meaning |\n|---|---|", *rows]
    return "\n".join(lines).rstrip() + "\n"


def _has_shared_options(command: click.Command) -> bool:
    return {*_SHARED_OPTIONS} <= {each.name for each in command.params}


def _option_rows(command: click.Command, context: click.Context, is_shown: Callable[[str], bool]) -> list[str]:
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    records = [record for each in options if is_shown(each.name or "") and (record := each.get_help_record(context))]
    return [f"| `{_cell(name)}` | {_cell(_BOUNDS.sub('', meaning))} |" for name, meaning in records]


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def _commands_page() -> str:
    commands = list(walk_commands(cli, click.Context(cli, info_name="payouts")))
    example = next((command, context) for command, context in commands if context.info_name == "migrate")
    shared = _option_rows(*example, lambda name: name in _SHARED_OPTIONS)
    texts = [_command_text(command, context) for command, context in commands]
    return _COMMANDS + "".join(f"{row}\n" for row in shared) + "".join(texts)


def make_pages() -> dict[str, str]:
    """Return the pages' texts by their files' names."""
    return {
        "settings.md": _NOTE + _settings_page(),
        "metrics.md": _NOTE + _METRICS + "".join(_metric_rows()) + _OLD_METRICS + "".join(_old_metric_rows()),
        "command-line.md": _NOTE + _commands_page(),
    }


def main() -> None:
    """Write the pages that are not current."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in make_pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stdout.write(f"{path.relative_to(ROOT)} is written anew\n")


if __name__ == "__main__":
    main()
