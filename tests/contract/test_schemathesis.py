"""The OpenAPI document tells the truth: schemathesis tries what it allows, and what not, on the running server."""

import os
import subprocess
from pathlib import Path

import httpx
import pytest

from core.money import BALANCE_MAX_CENTS
from tests.servers import ROOT, System, open_account

CONFIG = """
# Which key was used before, the document cannot tell; a request whose key was, is as valid as any.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 422]
"""

# The same examples each time, so that a failure is the change's. For others, and more of them: EXAMPLES=300 pytest …
EXAMPLES = os.environ.get("EXAMPLES")
GENERATION = [f"--max-examples={EXAMPLES}"] if EXAMPLES else ["--max-examples=30", "--generation-deterministic"]


@pytest.mark.timeout(1800)
def test_every_check_of_schemathesis_passes(system: System, client: httpx.Client, tmp_path: Path) -> None:
    payer = open_account(system.database, funds_cents=BALANCE_MAX_CENTS - 1)
    hash_ = system.pay(client, payer, "user@example.com", 1).json()["hash"]
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    run = subprocess.run(
        [
            "st",
            "--config-file",
            config,
            "run",
            f"{system.base_url}/schema/openapi.json",
            "--checks=all",
            *GENERATION,
            "--continue-on-failure",
            f"--header=Authorization: Bearer {payer.secret_key}",
            f"--header=X-Payout-Hash: {hash_}",
            "--no-color",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=system.environment | {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.contract.schemathesis_hooks"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
