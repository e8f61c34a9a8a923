"""Valkey from its wheel: it serves with its password alone."""

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.local.valkey import EmbeddedValkey
from api.local.wheels import EmbeddedServerError


def test_valkey_serves_with_its_password(valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        assert client.ping()


@pytest.mark.parametrize("password", [None, "wrong"])
def test_valkey_refuses_others(valkey: EmbeddedValkey, password: str | None) -> None:
    with (
        redis.Redis(port=valkey.port, password=password, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.get("anything")


def test_valkey_keeps_its_password_off_the_command_line(valkey: EmbeddedValkey) -> None:
    password = valkey.url.split(":")[2].split("@")[0]
    assert password not in " ".join(psutil.Process(valkey.pid).cmdline())


def test_valkey_is_gone_after_stop() -> None:
    server = EmbeddedValkey()
    server.start()
    pid = server.pid
    server.stop()
    assert not psutil.pid_exists(pid)
    server.stop()


def test_valkey_on_a_taken_port_is_refused(valkey: EmbeddedValkey) -> None:
    other = EmbeddedValkey(port=valkey.port)
    with pytest.raises(EmbeddedServerError, match=str(valkey.port)):
        other.start()
    other.stop()
