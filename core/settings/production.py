"""What must not go into production: missing, weak and example secrets."""

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

from core.settings.server_urls import read_url
from core.settings.variables import variable_name
from core.settings.weak_secrets import find_weakness


def find_unsafe(values: Mapping[str, Any], mistakes: Collection[str], environment: Mapping[str, str]) -> list[str]:
    """Find what must not go into production: missing, weak and example secrets."""
    unsafe = [
        f"{variable_name(name)}: its value {weakness}: expected a random one, as of: openssl rand -hex 32"
        for name in ("hash_secret", "flower_password")
        if name in values and (weakness := find_weakness(values[name]))
    ]
    password = variable_name("flower_password")
    if "flower_password" not in values and not any(password in mistake for mistake in mistakes):
        unsafe.append(f"{password} is not set: in production it is required; make one with: openssl rand -hex 16")
    if "database_url" in values and not _has_credentials(values["database_url"], environment):
        unsafe.append(
            f"{variable_name('database_password')} is not set, and {variable_name('database_url')} has no password: "
            "expected one of them in production"
        )
    return unsafe


def _has_credentials(database_url: str, environment: Mapping[str, str]) -> bool:
    """Tell whether PostgreSQL is shown a password or a certificate; one behind a Unix socket needs none."""
    parts = read_url(database_url)
    query = parse_qs(parts.query)
    host = unquote(parts.hosts.partition(":")[0]) or unquote(query.get("host", [""])[0])
    if not host or host.startswith("/"):
        return True
    named = {"password", "passfile", "sslcert", "service"} & query.keys()
    _, _, password = (parts.user_info or "").partition(":")
    return bool(password or named or environment.get("PGPASSWORD") or environment.get("PGPASSFILE"))
