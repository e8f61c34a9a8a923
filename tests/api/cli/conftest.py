"""For all tests of the command line: commands that run in this process, and a business."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from api.cli.main import main
from tests.api.cli.command_line import Result, Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in an empty directory without settings."""
    for name in os.environ:
        if name.startswith("PAYOUTS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run_main(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["payouts", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code is None or isinstance(ended.value.code, int)
        return Result(ended.value.code or 0, *capsys.readouterr())

    return run_main


@pytest.fixture
def payouts(run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on a fresh, migrated database."""
    monkeypatch.setenv("PAYOUTS_DATABASE_URL", database_url)
    return run


@pytest.fixture
def acme(payouts: Run) -> dict[str, Any]:
    created = payouts("business", "create", "ACME", "--funds", "5000", "--enable-payouts", "--json").document
    assert isinstance(created, dict)
    return created
