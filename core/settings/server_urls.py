"""The URLs of the servers in the settings: what may stand in them, and what of it drivers cannot read themselves."""

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import parse_qsl, unquote

SENTINEL_PORT = 26379
TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_TLS_SCHEMES = ("rediss", "rediss+sentinel", "amqps")
_SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_VALUES = {"ssl_cert_reqs": ("required", "optional", "none"), "ssl_check_hostname": ("true", "false")}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:@/]+)(:(?P<port>[0-9]{1,5}))?")
_ONE_HOST = re.compile(r"(?P<name>\[(?P<ipv6>[^\[\]]+)\]|[^\[\]:]*)(:(?P<port>[0-9]{0,5}))?")
_URL = re.compile(
    r"(?P<scheme>[a-z0-9+]+)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(\?(?P<query>[^#]*))?(#.*)?", re.IGNORECASE
)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_PORT_MAX = 65_535


class UrlError(Exception):
    """A URL is wrong; the text says what was expected, and repeats no secret."""


@dataclass(frozen=True, slots=True)
class UrlParts:
    """The parts of a URL as they are written: nothing is decoded, and there may be several hosts.

    `urllib.parse` is not used for the URLs of servers: releases of Python differ in which lists of hosts it refuses.
    """

    scheme: str
    user_info: str | None
    hosts: str
    path: str
    query: str

    def __repr__(self) -> str:
        """Show no password."""
        return "UrlParts(…)"

    @property
    def has_password(self) -> bool:
        """Whether there is a password, which may be empty."""
        return ":" in (self.user_info or "")


def read_url(url: str) -> UrlParts:
    """Return the parts of a URL with `://` in it.

    Raises:
        UrlError: it is no such URL.

    """
    match = _URL.fullmatch(url)
    if match is None or _CONTROL_CHARACTER.search(url):
        _fail("a URL")
    user_info, at, hosts = match["authority"].rpartition("@")
    if "[" in user_info or "]" in user_info:  # drivers take them for those of an address
        _fail("a URL")
    return UrlParts(match["scheme"].lower(), user_info if at else None, hosts, match["path"], match["query"] or "")


def without_query(url: str) -> str:
    """Return a URL without what stands after `?`."""
    return url.partition("#")[0].partition("?")[0]


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
    if not url.lower().startswith(tuple(f"{scheme}://" for scheme in _SENTINEL_SCHEMES)):
        return None
    parts = read_url(url)
    username, _, password = (parts.user_info or "").partition(":")
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not service:
        _fail("the service's name behind the hosts, as redis+sentinel://host:26379,host:26379/name/0")
    options = dict(parse_qsl(parts.query))
    return SentinelUrl(
        tuple(_parse_host(host) for host in parts.hosts.split(",")),
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
    return read_url(url).scheme in _TLS_SCHEMES


def tls_options(url: str) -> dict[str, str]:
    """Return the options of a URL that concern TLS: files, and how strictly the certificate is checked."""
    return {name: value for name, value in parse_qsl(read_url(url).query) if name in TLS_OPTIONS}


def check_url(url: str, schemes: tuple[str, ...]) -> None:
    """Check a URL of Redis, RabbitMQ or PostgreSQL.

    Raises:
        UrlError: it is wrong.

    """
    for each in split_urls(url):
        _check_one(each, schemes)
    if len({read_url(each).scheme for each in split_urls(url)}) > 1:
        _fail("all URLs of the list to start alike")
    if len({tuple(sorted(tls_options(each).items())) for each in split_urls(url)}) > 1:
        _fail("the same options of TLS in all URLs of the list")


def _check_one(url: str, schemes: tuple[str, ...]) -> None:
    is_sentinel = url.startswith(tuple(f"{scheme}://" for scheme in _SENTINEL_SCHEMES))
    try:
        parts = read_url(url)
    except UrlError:
        parts = None
    if parts is None or not url.startswith(schemes) or not (is_sentinel or _is_host(parts.hosts)):
        _fail(f"a URL that starts with {' or '.join(schemes)}, with a number for a port")
    if is_sentinel:
        parse_sentinel_url(url)
    elif parts.scheme in {"redis", "rediss"}:
        _parse_database(parts.path.removeprefix("/"))
    if is_sentinel or parts.scheme in {"redis", "rediss", "amqp", "amqps"}:
        _check_options(url, is_sentinel=is_sentinel)


def _check_options(url: str, *, is_sentinel: bool) -> None:
    options = parse_qsl(read_url(url).query, keep_blank_values=True)
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


def _is_host(text: str) -> bool:
    """Tell whether it is a host with or without a port, or nothing, as for a Unix socket."""
    match = _ONE_HOST.fullmatch(text)
    if match is None or (match["port"] and not 0 < int(match["port"]) <= _PORT_MAX):
        return False
    try:
        return match["ipv6"] is None or bool(ipaddress.IPv6Address(match["ipv6"]))
    except ValueError:
        return False


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
