"""Reading the URLs of servers: lists of hosts are read alike on every Python."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.settings.server_urls import UrlError, check_url, parse_sentinel_url, read_url, without_query
from core.startup import address_of

SENTINEL = ("redis+sentinel://", "rediss+sentinel://")
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)
HOSTS = st.sampled_from(["host", "10.0.0.1", "[::1]", "[fe80::1:2]", "a.b-c.example"])
PORTS = st.integers(1, 65_535)


@given(st.lists(st.tuples(HOSTS, PORTS), min_size=1, max_size=5), TEXTS, TEXTS, TEXTS, st.integers(0, 15))
def test_list_of_sentinels_is_read_as_it_was_written(
    hosts: list[tuple[str, int]], user: str, password: str, service: str, database: int
) -> None:
    quoted_user, quoted_password, quoted_service = (quote(each, safe="") for each in (user, password, service))
    written = ",".join(f"{name}:{port}" for name, port in hosts)
    url = f"redis+sentinel://{quoted_user}:{quoted_password}@{written}/{quoted_service}/{database}?sentinel_password=x"
    check_url(url, SENTINEL)
    parsed = parse_sentinel_url(url)
    assert parsed is not None
    assert parsed.hosts == tuple((name.strip("[]"), port) for name, port in hosts)
    assert (parsed.username, parsed.password, parsed.sentinel_password) == (user, password, "x")
    assert (parsed.service, parsed.database) == (service, database)
    assert address_of(url) == written
    assert quoted_password not in repr(read_url(url))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis+sentinel://user:secret@one:26379,two:26379,[::1]:3/name/0", "one:26379,two:26379,[::1]:3"),
        ("postgresql://user:secret@host:5432/name?password=secret", "host:5432"),
        ("amqp://user:secret@one:1/x;amqp://user:secret@two:2/x", "one:1, two:2"),
        ("redis+socket:///run/valkey.sock", "/run/valkey.sock"),
        ("postgresql:///name?host=/run", "/name"),
        ("secret\n", "its socket"),
    ],
)
def test_address_of_a_server_names_every_host_and_no_password(url: str, address: str) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize(
    "host", ["host", "host:1", "host:65535", "[::1]", "[::1]:6379", "[fe80::1%25eth0]:1", "10.0.0.1:1", ""]
)
def test_host_that_fits(host: str) -> None:
    check_url(f"postgresql://{host}/name", ("postgresql://",))


@pytest.mark.parametrize(
    "host", ["host:0", "host:65536", "host:x", "host:1:2", "[::1", "::1]", "[host]", "a[::1]", "[::1]b", "[]", "h\tost"]
)
def test_host_that_does_not_fit(host: str) -> None:
    with pytest.raises(UrlError, match="with a number for a port"):
        check_url(f"postgresql://{host}/name", ("postgresql://",))


def test_password_may_hold_all_that_is_not_a_delimiter() -> None:
    parts = read_url("amqps://us er:p:a@s,s;w&o=rd@host:1//?ssl_cert_reqs=none#end")
    assert (parts.user_info, parts.hosts, parts.path, parts.query) == (
        "us er:p:a@s,s;w&o=rd",
        "host:1",
        "//",
        "ssl_cert_reqs=none",
    )
    assert parts.has_password
    assert without_query("amqps://u:p@host:1//?ssl_cert_reqs=none#end") == "amqps://u:p@host:1//"
