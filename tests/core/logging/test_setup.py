"""Setting up: whatever breaks in a process is a line of its log."""

import json
import re
import subprocess
import sys

import pytest

from tests.servers import ROOT

SCRIPT = """
import asyncio, logging, sys, threading, warnings
from core.logging.setup import Logs
Logs.configure("test", log_format=sys.argv[1], log_level="info")
logging.getLogger("core.x").info("hello")
logging.getLogger("core.x").debug("unheard")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()
async def fail(): raise KeyError("somebody.private@example.com")
async def main():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    task = asyncio.create_task(fail())
    await asyncio.sleep(0.01)
    del task
asyncio.run(main())
raise ValueError("somebody.private@example.com")
"""


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_whatever_breaks_in_a_process_is_a_line_of_json(log_format: str) -> None:
    result = run_script(log_format)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert {"hello", "an error that nobody expected"} <= {line["message"] for line in lines}
    assert [line["error"] for line in lines if "error" in line] == [
        "ZeroDivisionError", "ZeroDivisionError", "KeyError", "ValueError",
    ]  # fmt: skip
    assert "example.com" not in result.stderr
    assert "unheard" not in result.stderr


def test_on_request_it_is_a_line_of_text() -> None:
    result = run_script("text")
    assert re.search(r"^\S+Z INFO    core.x: hello$", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr
    assert "example.com" not in result.stderr


def run_script(log_format: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, log_format]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    return result
