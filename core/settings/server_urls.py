"""The URLs of the servers in the settings: what may stand in them, and what of it drivers cannot read themselves."""

import os
import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

SENTINEL_PORT = 26379
TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_TLS_SCHEMES = ("rediss", "rediss+sentinel", "amqps")
_SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_VALUES = {"ssl_cert_reqs": ("required", "optional", "none"), "ssl_check_hostname": ("true", "false")}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:@/]+)(:(?P<port>[0-9]{1,5}))?")
_PORT_MAX = 65_535


class UrlError(Exception):
    """A URL is wrong; the text says what was expected, and repeats no secret."""


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """Redis behind Sentinels: `redis+sentinel://user:password@host:port,host:port/service/database`.

    User and password are those of the Redis servers. The Sentinels' own are options, as is what TLS needs.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    database: int
    username: str | None
    password: str | None
    sentinel_username: str | None
    sentinel_password: str | None

    def __repr__(self) -> str:
        """Show no password."""
        return "SentinelUrl(…)"


def parse_sentinel_url(url: str) -> SentinelUrl | None:
    """Return what a URL with Sentinels says; None for every other URL.

    Raises:
        UrlError: it is one, and wrong.

    """
    parts = urlsplit(url)
    if parts.scheme not in _SENTINEL_SCHEMES:
        return None
    user_info, _, hosts = parts.netloc.rpartition("@")
    username, _, password = user_info.partition(":")
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not service:
        _fail("the service's name behind the hosts, as redis+sentinel://host:26379,host:26379/name/0")
    options = dict(parse_qsl(parts.query))
    return SentinelUrl(
        tuple(_parse_host(host) for host in hosts.split(",")),
        unquote(service),
        _parse_database(database),
        unquote(username) or None,
        unquote(password) or None,
        options.get("sentinel_username"),
        options.get("sentinel_password"),
    )


def split_urls(url: str) -> list[str]:
    """Return each URL of a list: RabbitMQ's nodes may be named all, with semicolons between them."""
    return url.split(";") if url.startswith("amqp") else [url]


def uses_tls(url: str) -> bool:
    """Tell whether a URL asks for TLS."""
    return urlsplit(url).scheme in _TLS_SCHEMES


def tls_options(url: str) -> dict[str, str]:
    """Return the options of a URL that concern TLS: files, and how strictly the certificate is checked."""
    return {name: value for name, value in parse_qsl(urlsplit(url).query) if name in TLS_OPTIONS}


def check_url(url: str, schemes: tuple[str, ...]) -> None:
    """Check a URL of Redis, RabbitMQ or PostgreSQL.

    Raises:
        UrlError: it is wrong.

    """
    for each in split_urls(url):
        _check_one(each, schemes)
    if len({urlsplit(each).scheme for each in split_urls(url)}) > 1:
        _fail("all URLs of the list to start alike")
    if len({tuple(sorted(tls_options(each).items())) for each in split_urls(url)}) > 1:
        _fail("the same options of TLS in all URLs of the list")


def _check_one(url: str, schemes: tuple[str, ...]) -> None:
    is_sentinel = url.startswith(tuple(f"{scheme}://" for scheme in _SENTINEL_SCHEMES))
    try:
        parts = urlsplit(url)
        is_url = url.startswith(schemes) and (is_sentinel or parts.port != 0)
    except ValueError:
        is_url = False
    if not is_url:
        _fail(f"a URL that starts with {' or '.join(schemes)}, with a number for a port")
    if is_sentinel:
        parse_sentinel_url(url)
    elif parts.scheme in {"redis", "rediss"}:
        _parse_database(parts.path.removeprefix("/"))
    if is_sentinel or parts.scheme in {"redis", "rediss", "amqp", "amqps"}:
        _check_options(url, is_sentinel=is_sentinel)


def _check_options(url: str, *, is_sentinel: bool) -> None:
    options = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    known = TLS_OPTIONS + (_SENTINEL_OPTIONS if is_sentinel else ())
    if any(name not in known for name, _ in options):  # whose names may be pieces of a password
        _fail(f"no other options behind ? than {', '.join(known)}")
    for name, value in options:
        if name in TLS_OPTIONS and not uses_tls(url):
            _fail(f"{name} only in a URL that starts with {' or '.join(f'{scheme}://' for scheme in _TLS_SCHEMES)}")
        if name in _VALUES and value not in _VALUES[name]:
            _fail(f"{name} to be {' or '.join(_VALUES[name])}")
        if name in _FILES and not os.access(value, os.R_OK):
            _fail(f"{name} to be a file that can be read, which {value!r} is not")


def _parse_host(text: str) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    port = int((match and match["port"]) or SENTINEL_PORT)
    if match is None or not 0 < port <= _PORT_MAX:
        _fail("hosts with commas between them, each as host or host:port")
    return match["name"].strip("[]"), port


def _parse_database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{0,4}", text):
        _fail("a number for the database at the end of its path, such as /0")
    return int(text or 0)


def _fail(expected: str) -> NoReturn:
    text = f"expected {expected}"
    raise UrlError(text)
