"""Production takes random secrets alone."""

import re
import secrets

import pytest

from core.settings.loader import (
    SettingsError,
    load_database_url,
)
from tests.core.settings.environments import REQUIRED, load, mistakes_of
from tests.servers import HASH_SECRET, ROOT


def files_that_show_settings() -> list[str]:
    tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py"))
    pages = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", *pages, "docker-compose.yml", "Procfile", ".ci/run", *tests]


SAFE = {
    "environment": "production",
    "hash_secret": secrets.token_hex(16),
    "flower_password": secrets.token_urlsafe(12),
}


def test_production_takes_random_secrets() -> None:
    for _ in range(200):
        load(**SAFE | {"hash_secret": secrets.token_hex(16), "flower_password": secrets.token_hex(8)})
    load(**SAFE | {"hash_secret": secrets.token_urlsafe(24)})


def test_development_takes_any_secret_that_is_long_enough() -> None:
    assert load(hash_secret="a" * 32).environment == "development"


@pytest.mark.parametrize(
    "secret",
    [
        HASH_SECRET,
        REQUIRED["PAYOUTS_HASH_SECRET"],
        "change-me-change-me-change-me-change-me",
        "a" * 32,
        "ab" * 20,
        "0123456789abcdef" * 2,
        "abcdefghijklmnopqrstuvwxyz012345",
        "11112222333344445555666677778888",
        "aabbaaabbbaabababbabbaabbbabaaba",
    ],
)
def test_production_refuses_examples_and_what_nobody_drew_at_random(secret: str) -> None:
    (mistake,) = mistakes_of(**SAFE | {"hash_secret": secret})
    assert mistake.startswith("PAYOUTS_HASH_SECRET: its value ")
    assert secret not in mistake


@pytest.mark.parametrize("file", files_that_show_settings())
def test_production_refuses_every_hash_secret_that_is_written_down(file: str) -> None:
    text = (ROOT / file).read_text()
    for secret in re.findall(r"hash_secret[\"']?(?:: | = |=)b?[\"']([^\"'\n]{32,})[\"']", text, re.IGNORECASE):
        (mistake,) = mistakes_of(**SAFE | {"hash_secret": secret})
        assert mistake.startswith("PAYOUTS_HASH_SECRET: its value ")


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"hash_secret": ""}, "PAYOUTS_HASH_SECRET"),
        ({"flower_password": ""}, "PAYOUTS_FLOWER_PASSWORD"),
        ({"flower_password": "short"}, "PAYOUTS_FLOWER_PASSWORD"),
        ({"flower_password": "password1234"}, "PAYOUTS_FLOWER_PASSWORD"),
        ({"database_url": "postgresql://user:@host/name"}, "PAYOUTS_DATABASE_PASSWORD"),
        ({"database_url": "postgresql://user@host/name"}, "PAYOUTS_DATABASE_PASSWORD"),
    ],
)
def test_production_refuses_what_is_missing(changes: dict[str, str], variable: str) -> None:
    (mistake,) = mistakes_of(**SAFE | changes)
    assert mistake.startswith(variable)


@pytest.mark.parametrize(
    "url", ["postgresql:///name?host=/run/postgresql", "postgresql://user@host/name?sslcert=/cert"]
)
def test_production_takes_other_ways_to_prove_who_calls(url: str) -> None:
    assert load(**SAFE | {"database_url": url}).database_url == url


def test_production_checks_the_settings_of_every_command() -> None:
    with pytest.raises(SettingsError) as caught:
        load_database_url({"PAYOUTS_ENVIRONMENT": "production", "PAYOUTS_DATABASE_URL": "postgresql://u:p@host/name"})
    assert [text.split(" ")[0] for text in caught.value.mistakes] == [
        "PAYOUTS_REDIS_URL",
        "PAYOUTS_HASH_SECRET",
        "PAYOUTS_FLOWER_PASSWORD",
    ]
