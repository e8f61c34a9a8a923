"""Settings, read from the environment and checked at start."""

from io import StringIO

import pytest
from rich.console import Console

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
        hash_secret="hash secret of",
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
