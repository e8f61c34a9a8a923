"""Settings are read and checked from variables and files; every mistake is named, no secret shown."""

from io import StringIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.console import Console

from core.settings.loader import (
    SettingsError,
    find_doubtful_variables,
    find_unknown_variables,
    load_database_url,
    load_settings,
    read_secret_files,
)
from core.settings.replaced import DERIVED
from core.settings.server_urls import SentinelUrl, parse_sentinel_url
from core.settings.variables import variable_name
from tests.core.settings.environments import REQUIRED, SECRETS, load, mistakes_of


def test_three_settings_are_enough() -> None:
    settings = load()
    assert settings.database_url == REQUIRED["PAYOUTS_DATABASE_URL"]
    assert settings.hash_secret_bytes == REQUIRED["PAYOUTS_HASH_SECRET"].encode()
    assert (settings.group_max, settings.in_flight_max, settings.waiting_max) == (500, 2, 5_000)
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
    settings = load(group_max=" 7 ", reply_timeout_s="7", redis_timeout_s="0.25")
    assert (settings.group_max, settings.reply_timeout_s, settings.redis_timeout_s) == (7, 7.0, 0.25)


def test_other_variables_are_ignored() -> None:
    assert load_settings(REQUIRED | {"PAYOUTS_UNHEARD_OF": "1", "BATCH_MAX": "1"}) == load()


def test_a_variable_that_nothing_reads_is_named_with_the_nearest_that_there_is() -> None:
    environment = REQUIRED | {
        "PAYOUTS_GROUPMAX": "1",
        "PAYOUTS_HASH_SECRETFILE": "/secret",
        "PAYOUTS_8000_TCP_PROTO": "tcp",
        "PAYOUTS_HOST": "0.0.0.0",  # noqa: S104 (the Procfile reads it)
        "PAYOUTS_KEY": "sk_live_…",
        "PAYOUTS_REDIS_URL_FILE": "",
        "PATH": "/bin",
    }
    assert find_unknown_variables(environment) == [
        "PAYOUTS_8000_TCP_PROTO is no setting",
        "PAYOUTS_GROUPMAX is no setting; did you mean PAYOUTS_GROUP_MAX?",
        "PAYOUTS_HASH_SECRETFILE is no setting; did you mean PAYOUTS_HASH_SECRET_FILE?",
    ]


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
        group_max="many",
        in_flight_max="0",
        resend_after_s="-1",
        database_pool_size="1.5",
    )
    names = "database_url redis_url broker_url hash_secret group_max in_flight_max database_pool_size resend_after_s"
    assert [text.split(" ")[0].rstrip(":") for text in mistakes] == [variable_name(name) for name in names.split()]


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        ("lock_wait_s", "lock_ttl_s"),
        ("transaction_timeout_s", "lock_ttl_s"),
        ("redis_timeout_s", "lock_ttl_s"),
        ("resend_after_s", "reply_timeout_s"),
        ("transaction_timeout_s", "resolve_timeout_s"),
    ],
)
def test_what_waits_must_outlast_what_it_waits_for(shorter: str, longer: str) -> None:
    limit = str(getattr(load(), longer))
    mistakes = mistakes_of(**{shorter: limit, longer: limit})
    assert any(variable_name(shorter) in text and variable_name(longer) in text for text in mistakes)


def test_time_limits_that_follow_from_others_nest_by_themselves() -> None:
    """What an operator sets by hand is checked against what follows from it, in the words of what was set."""
    for transaction_timeout_s in ("0.1", "0.5", "2", "30"):
        limits = load(transaction_timeout_s=transaction_timeout_s, resolve_timeout_s="60", reply_timeout_s="60")
        # PostgreSQL limits each wait by itself, and the second in the queue for a row waits twice.
        assert 2 * limits.row_lock_timeout_s < limits.transaction_timeout_s < limits.lock_ttl_s
        assert max(limits.redis_timeout_s, limits.lock_wait_s) < limits.lock_ttl_s
        assert limits.resend_after_s < limits.reply_timeout_s
    (mistake,) = mistakes_of(transaction_timeout_s="5", resolve_timeout_s="6")
    assert mistake == (
        "PAYOUTS_LOCK_WAIT_S (1.25, that is a quarter of PAYOUTS_TRANSACTION_TIMEOUT_S) and "
        "PAYOUTS_TRANSACTION_TIMEOUT_S (5) together (6.25) must be smaller than PAYOUTS_REPLY_TIMEOUT_S (6)"
    )


def test_settings_that_follow_from_others_have_values_for_a_system_with_defaults() -> None:
    settings = load()
    assert {name: getattr(settings, name) for name in DERIVED} == {
        "waiting_max": 5_000,
        "request_body_max_bytes": 65_536,
        "resend_after_s": 1.0,
        "row_lock_timeout_s": 0.8,
        "lock_wait_s": 0.5,
        "lock_ttl_s": 2.5,
        "database_connect_timeout_s": 2,
        "batch_stalled_after_s": 10.0,
        "flower_user": "payouts",
    }


def test_a_variable_with_an_old_name_is_read_and_its_new_name_is_said() -> None:
    old = REQUIRED | {"PAYOUTS_BATCH_MAX": "7", "PAYOUTS_SETTLE_TIMEOUT_S": "4"}
    assert load_settings(old) == load(group_max="7", resolve_timeout_s="4")
    assert find_doubtful_variables(old) == [
        "PAYOUTS_BATCH_MAX is now PAYOUTS_GROUP_MAX: the old name still works, and ends with 0.3.0",
        "PAYOUTS_SETTLE_TIMEOUT_S is now PAYOUTS_RESOLVE_TIMEOUT_S: the old name still works, and ends with 0.3.0",
    ]
    with pytest.raises(SettingsError, match=r"^PAYOUTS_BATCH_MAX: 'many' does not fit"):
        load_settings(REQUIRED | {"PAYOUTS_BATCH_MAX": "many"})


def test_a_new_name_is_read_where_both_are_set() -> None:
    both = REQUIRED | {"PAYOUTS_BATCH_MAX": "7", "PAYOUTS_GROUP_MAX": "8"}
    assert load_settings(both) == load(group_max="8")
    (warning,) = find_doubtful_variables(both)
    assert "it is ignored, because PAYOUTS_GROUP_MAX is set" in warning


@pytest.mark.parametrize("name", DERIVED)
def test_a_variable_of_a_setting_that_follows_from_others_is_read_with_a_warning(name: str) -> None:
    values = {"flower_user": "ops", "request_body_max_bytes": "2048", "lock_ttl_s": "3", "row_lock_timeout_s": "0.5"}
    value = values.get(name, "2")
    given = {variable_name(name): value}
    assert str(getattr(load_settings(REQUIRED | given), name)).removesuffix(".0") == value
    (warning,) = find_doubtful_variables(REQUIRED | given)
    assert warning.startswith(f"{variable_name(name)} still works, and ends with 0.3.0: the value is then ")
    assert find_doubtful_variables(REQUIRED | {variable_name(name): " "}) == []


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
    assert mistake.startswith(f"PAYOUTS_BROKER_URL: a value of {len(url)} characters does not fit: expected ")
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
        password="p@ss",
        sentinel_username="a",
        sentinel_password="b&",
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


def test_commands_that_need_the_database_alone_ask_for_no_more() -> None:
    assert load_database_url({"PAYOUTS_DATABASE_URL": "postgres://host/name"}) == "postgres://host/name"
    assert load_database_url({}) is None


@pytest.mark.parametrize(
    "wrong", [{"PAYOUTS_DATABASE_URL": "mysql://user:db-password@host"}, {"PAYOUTS_GROUP_MAX": "many"}]
)
def test_what_is_set_must_be_right_for_them_too(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_database_url(wrong)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(next(iter(wrong)))
    assert "db-password" not in mistake


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("group_max", "many", "'many' does not fit: expected a whole number, at least 1 and at most 10000"),
        ("lock_ttl_s", "0", "'0' does not fit: expected a number, more than 0 and at most 3600"),
        ("environment", "prod", "'prod' does not fit: expected development or production"),
        ("flower_port", "70000", "'70000' does not fit: expected a whole number, at least 1 and at most 65535"),
        ("redis_url", "host:6379", "a value of 9 characters does not fit: expected a URL that starts with redis:// or"),
        ("flower_user", "a:b", "'a:b' does not fit: expected user name for Flower; visible ASCII characters except"),
    ],
)
def test_a_mistake_says_what_is_held_and_what_is_expected(name: str, value: str, text: str) -> None:
    (mistake,) = mistakes_of(**{name: value})
    assert mistake.startswith(f"{variable_name(name)}: {text}")


def test_a_secret_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{REQUIRED['PAYOUTS_HASH_SECRET']}\n")
    environment = REQUIRED | {"PAYOUTS_HASH_SECRET": "", "PAYOUTS_HASH_SECRET_FILE": str(file)}
    assert load_settings(environment) == load()
    assert read_secret_files(environment) == REQUIRED


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b" \n", "is empty"),
        (b"\xff" * 40, "is not text in UTF-8"),
        (b"hash secret of" * 10_000, "is too large"),
    ],
)
def test_a_secret_file_that_is_none_is_one_line(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_settings(REQUIRED | {"PAYOUTS_HASH_SECRET": "", "PAYOUTS_HASH_SECRET_FILE": str(file)})
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("PAYOUTS_HASH_SECRET_FILE: ")
    assert problem in mistake
    assert "hash secret of" not in mistake


def test_a_secret_file_is_no_folder(tmp_path: Path) -> None:
    (mistake,) = mistakes_of(flower_password_file=str(tmp_path))
    assert "is not a file" in mistake


def test_a_wrong_secret_in_a_file_is_named_by_the_file_variable(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("mysql://user:db-password@host/name")
    with pytest.raises(SettingsError) as caught:
        load_settings(REQUIRED | {"PAYOUTS_DATABASE_URL": "", "PAYOUTS_DATABASE_URL_FILE": str(file)})
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("PAYOUTS_DATABASE_URL_FILE: a value of")
    assert "db-password" not in mistake


def test_a_secret_is_given_once() -> None:
    assert mistakes_of(hash_secret_file="/run/secrets/hash_secret") == [
        "PAYOUTS_HASH_SECRET and PAYOUTS_HASH_SECRET_FILE are both set: set one of them"
    ]
    (mistake,) = mistakes_of(database_password="another")
    assert "PAYOUTS_DATABASE_PASSWORD" in mistake
    assert "PAYOUTS_DATABASE_URL" in mistake
    assert "another" not in mistake


@pytest.mark.parametrize("password", ["p@ss/w:rd?#%41", "€", "plain"])
@pytest.mark.parametrize(
    "url", ["postgresql://user@host:1234/name?sslmode=require", "postgresql:///name?host=/run&user=user"]
)
def test_a_database_password_of_any_characters_becomes_part_of_the_url(url: str, password: str) -> None:
    made = sa.make_url(load(database_url=url, database_password=password).database_url)
    expected = sa.make_url(url)
    assert password in (made.password, made.query.get("password"))
    assert (made.host, made.port, made.database) == (expected.host, expected.port, expected.database)
    assert expected.query.items() <= made.query.items()
