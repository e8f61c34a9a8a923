"""Settings, read from the environment and checked at start."""

from io import StringIO

import pytest
from rich.console import Console

from core.server_urls import SentinelUrl, parse_sentinel_url
from core.settings import Settings, SettingsError, check_database_url, load_settings, variable_name

REQUIRED = {
    "PAYOUTS_DATABASE_URL": "postgresql://user:db-password@host/name",
    "PAYOUTS_REDIS_URL": "redis://:redis-password@host/0",
    "PAYOUTS_HASH_SECRET": "the hash secret of these tests, long enough",
}
SECRETS = ["db-password", "redis-password", "broker-password", "hash secret of"]


def load(**settings: str) -> Settings:
    """Load the required settings, with changes (`batch_max="5"`)."""
    return load_settings(REQUIRED | {variable_name(name): value for name, value in settings.items()})


def mistakes_of(**settings: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(**settings)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    for secret in SECRETS:
        assert secret not in str(caught.value) + repr(caught.value)
    return caught.value.mistakes


def test_three_settings_are_enough() -> None:
    settings = load()
    assert settings.database_url == REQUIRED["PAYOUTS_DATABASE_URL"]
    assert settings.hash_secret_bytes == REQUIRED["PAYOUTS_HASH_SECRET"].encode()
    assert (settings.batch_max, settings.in_flight_max, settings.waiting_max) == (500, 2, 5_000)
    assert 5 <= settings.reply_timeout_s <= 8


def test_the_broker_is_redis_unless_named() -> None:
    assert load().broker_url == REQUIRED["PAYOUTS_REDIS_URL"]
    assert load(broker_url=" ").broker_url == REQUIRED["PAYOUTS_REDIS_URL"]
    assert load(broker_url="amqp://guest@host//").broker_url == "amqp://guest@host//"


@pytest.mark.parametrize("url", ["redis://host", "rediss://host"])
def test_a_broker_that_is_not_named_is_one_that_could_be(url: str) -> None:
    broker_url = load(redis_url=url).broker_url
    assert load(broker_url=broker_url).broker_url == broker_url


def test_values_are_read_as_their_types() -> None:
    settings = load(batch_max=" 7 ", reply_timeout_s="7", redis_timeout_s="0.25")
    assert (settings.batch_max, settings.reply_timeout_s, settings.redis_timeout_s) == (7, 7.0, 0.25)


def test_other_variables_are_ignored() -> None:
    assert load_settings(REQUIRED | {"PAYOUTS_UNHEARD_OF": "1", "BATCH_MAX": "1"}) == load()


def test_what_is_missing_is_named_all_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({})
    assert [text.split(" ")[0] for text in caught.value.mistakes] == list(REQUIRED)
    assert caught.value.exit_code == 2


def test_every_mistake_is_reported_and_names_its_variable() -> None:
    mistakes = mistakes_of(
        database_url="mysql://user:db-password@host/name",
        redis_url="",
        broker_url="sqs://broker-password@",
        hash_secret="hash secret of",  # noqa: S106 (too short to be one)
        batch_max="many",
        in_flight_max="0",
        resend_after_s="-1",
        database_pool_size="1.5",
    )
    names = "database_url redis_url broker_url hash_secret batch_max in_flight_max resend_after_s database_pool_size"
    assert [text.split(" ")[0].rstrip(":") for text in mistakes] == [variable_name(name) for name in names.split()]


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        ("lock_wait_s", "lock_ttl_s"),
        ("transaction_timeout_s", "lock_ttl_s"),
        ("redis_timeout_s", "lock_ttl_s"),
        ("resend_after_s", "reply_timeout_s"),
        ("transaction_timeout_s", "settle_timeout_s"),
    ],
)
def test_what_waits_must_outlast_what_it_waits_for(shorter: str, longer: str) -> None:
    limit = str(getattr(load(), longer))
    mistakes = mistakes_of(**{shorter: limit})
    assert any(variable_name(shorter) in text and variable_name(longer) in text for text in mistakes)


def test_a_worker_must_be_done_before_the_deadline() -> None:
    (mistake,) = mistakes_of(lock_wait_s="2", transaction_timeout_s="2", reply_timeout_s="4")
    for name in ("lock_wait_s", "transaction_timeout_s", "reply_timeout_s"):
        assert variable_name(name) in mistake


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://:password@host:1/15",
        "rediss://host/0?ssl_cert_reqs=none",
        f"rediss://host?ssl_ca_certs={__file__}&ssl_check_hostname=false",
        "redis+sentinel://host/service",
        "redis+sentinel://user:p%40ss@host:1,[::1]:2,10.0.0.1/service/3?sentinel_username=a&sentinel_password=b",
        f"rediss+sentinel://host/service/0?ssl_ca_certs={__file__}",
    ],
)
def test_redis_urls_that_fit(url: str) -> None:
    settings = load(redis_url=url)
    assert settings.redis_url == settings.broker_url == url
    assert load(broker_url=url).broker_url == url


@pytest.mark.parametrize(
    "url",
    [
        "amqp://user:password@host//",
        "amqp://host:1/payouts;amqp://other:2/payouts",
        f"amqps://host//?ssl_ca_certs={__file__}",
        "redis+socket:///run/valkey.sock",
    ],
)
def test_broker_urls_that_fit(url: str) -> None:
    assert load(broker_url=url).broker_url == url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:broker-password@host:port/0", "with a number for a port"),
        ("redis://:broker-password@host:99999/0", "with a number for a port"),
        ("redis://:broker-password@host/first", "a number for the database"),
        ("redis://:broker?password@host", "with a number for a port"),
        ("redis://host?broker-password", "no other options behind ? than ssl_ca_certs"),
        ("redis://:broker-password@host?ssl_ca_certs=x", "only in a URL that starts with rediss://"),
        ("rediss://:broker-password@host?ssl_ca_certs=/nowhere/ca", "to be a file that can be read, which"),
        ("rediss://:broker-password@host?ssl_cert_reqs=maybe", "ssl_cert_reqs to be required or optional or none"),
        ("rediss://:broker-password@host?ssl_check_hostname=0", "ssl_check_hostname to be true or false"),
        ("redis+sentinel://:broker-password@host:26379", "the service's name"),
        ("redis+sentinel://:broker-password@host:26379/", "the service's name"),
        ("redis+sentinel://:broker-password@/service", "hosts with commas between them"),
        ("redis+sentinel://:broker-password@host,/service", "hosts with commas between them"),
        ("redis+sentinel://:broker-password@host:0/service", "hosts with commas between them"),
        ("redis+sentinel://:broker-password@host:70000/service", "hosts with commas between them"),
        ("redis+sentinel://:broker-password@host;redis+sentinel://other/service", "the service's name"),
        ("redis+sentinel://:broker-password@host/service/db", "a number for the database"),
        ("redis+sentinel://:broker-password@host/service?master=x", "no other options"),
        ("amqp://:broker-password@host;redis://other", "all URLs of the list to start alike"),
        ("amqp://:broker-password@host;amqps://other", "all URLs of the list to start alike"),
        ("amqp://:broker-password@host:x//", "with a number for a port"),
        ("amqp://:broker-password@host//?heartbeat=5", "no other options"),
        ("redis+sentinel://[:broker-password@host/service", "with a number for a port"),
        ("redis://[:broker-password@host", "with a number for a port"),
    ],
)
def test_a_wrong_url_is_one_line_that_says_what_is_expected(url: str, expected: str) -> None:
    (mistake,) = mistakes_of(broker_url=url)
    assert mistake.startswith("PAYOUTS_BROKER_URL: its value does not fit: Expected ")
    assert expected in mistake
    assert "\n" not in mistake
    assert "broker" not in mistake


def test_sentinels_are_read_from_the_url() -> None:
    url = "redis+sentinel://us%40er:p%40ss@one:1,[::1]:2,three/my%20name/4?sentinel_username=a&sentinel_password=b%26"
    parsed = parse_sentinel_url(url)
    assert parsed == SentinelUrl(
        hosts=(("one", 1), ("::1", 2), ("three", 26379)),
        service="my name",
        database=4,
        username="us@er",
        password="p@ss",  # noqa: S106
        sentinel_username="a",
        sentinel_password="b&",  # noqa: S106
    )
    assert "p@ss" not in repr(parsed)
    assert parse_sentinel_url("redis://host/service") is None


@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "1e999"])
def test_a_time_limit_is_a_finite_number(value: str) -> None:
    (mistake,) = mistakes_of(lock_ttl_s=value)
    assert mistake.startswith("PAYOUTS_LOCK_TTL_S")


@pytest.mark.parametrize("show", [repr, str, "{}".format, lambda settings: f"{[settings]}"])
def test_settings_do_not_show_their_secrets(show: object) -> None:
    assert callable(show)
    shown = show(load(broker_url="amqp://user:broker-password@host//"))
    assert not [secret for secret in SECRETS if secret in shown]


def test_settings_do_not_show_their_secrets_to_rich() -> None:
    console = Console(file=StringIO(), width=400)
    with console.capture() as capture:
        console.print(load(broker_url="amqp://user:broker-password@host//"))
    assert not [secret for secret in SECRETS if secret in capture.get()]


def test_a_database_url_is_postgresqls() -> None:
    assert check_database_url("postgres://host/name") == "postgres://host/name"
    with pytest.raises(SettingsError) as caught:
        check_database_url("mysql://user:db-password@host")
    assert "db-password" not in str(caught.value)
