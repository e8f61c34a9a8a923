"""All settings and limits: one typed object, read from environment variables with the prefix `PAYOUTS_`."""

import os
import sys
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints
from urllib.parse import quote

import msgspec
from msgspec import Meta

from core.errors import UserError
from core.settings.production import find_unsafe
from core.settings.replaced import DERIVED, RENAMED, find_replaced_variables, rename
from core.settings.server_urls import UrlError, check_url, read_url
from core.settings.variables import FILE_SUFFIX, PREFIX, variable_name

HASH_SECRET_CHARACTERS_MIN = 32
POOLER_TRANSACTION = "transaction"
_PASSWORD_CHARACTERS_MIN = 12
_TIME_LIMIT_MAX_S = 3600
_STARTUP_TIMEOUT_S = 30.0
_SHOWN_CHARACTERS_MAX = 60
_FOLLOWS: Any = None
_SECRET_FILE_BYTES_MAX = 65_536


class SettingsError(UserError):
    """Settings are missing or wrong; `mistakes` has one line for each, without secrets."""

    exit_code = 2

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def _seconds(description: str) -> Meta:
    """Describe a time limit: positive, and finite."""
    return Meta(gt=0, le=_TIME_LIMIT_MAX_S, description=description)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, with its unit in its name. docs/reference/settings.md shows these descriptions."""

    environment: Annotated[
        Literal["development", "production"],
        Meta(description="in `production`, nothing starts with a missing, weak or example secret"),
    ] = "development"
    database_url: Annotated[str, Meta(description="PostgreSQL 18, as `postgresql://user:password@host/name`")]
    database_password: Annotated[
        str, Meta(description="password of the database, if the URL has none; any characters, not encoded")
    ] = ""
    migration_database_url: Annotated[
        str,
        Meta(
            description="the same database with a role that may create roles and tables, for `payouts migrate` alone; "
            "with it, the tables belong to a role that nobody logs in as"
        ),
    ] = ""
    migration_database_password: Annotated[
        str, Meta(description="password of `PAYOUTS_MIGRATION_DATABASE_URL`, if that has none")
    ] = ""
    redis_url: Annotated[
        str,
        Meta(description="Redis or Valkey for locks and replies, as `redis://`, `rediss://` or `redis+sentinel://`"),
    ]
    broker_url: Annotated[
        str,
        Meta(description="Celery's broker, also `amqp://` or `amqps://`; default: `PAYOUTS_REDIS_URL`"),
    ] = ""
    hash_secret: Annotated[
        str,
        Meta(
            min_length=HASH_SECRET_CHARACTERS_MIN,
            description="key of the payout hashes, at least 32 characters; if it changes, so does every hash",
        ),
    ]
    group_max: Annotated[int, Meta(ge=1, le=10_000, description="allocations that one Celery task carries")] = 500
    in_flight_max: Annotated[int, Meta(ge=1, le=64, description="Celery tasks in flight for one API process")] = 2
    rate_limit_per_s: Annotated[
        int, Meta(ge=0, le=1_000_000, description="calls a second that each API key may make; 0: no limit")
    ] = 0
    rate_limit_burst: Annotated[
        int, Meta(ge=0, le=1_000_000, description="calls that a key may make at once after a pause; 0: one second's")
    ] = 0
    reply_timeout_s: Annotated[float, _seconds("an allocation's deadline, from its arrival")] = 6.0
    resolve_timeout_s: Annotated[
        float,
        _seconds("time after the deadline to resolve an allocation before the answer is 500"),
    ] = 3.0
    transaction_timeout_s: Annotated[
        float,
        Meta(
            ge=0.1,
            le=_TIME_LIMIT_MAX_S,
            description="PostgreSQL ends a longer transaction, so a stalled worker frees its rows",
        ),
    ] = 2.0
    redis_timeout_s: Annotated[
        float, _seconds("longest wait on one Redis operation; on RabbitMQ, it is a sixth of `PAYOUTS_REPLY_TIMEOUT_S`")
    ] = 0.5
    state_dir: Annotated[
        str,
        Meta(
            min_length=1,
            description="folder of this machine where what is answered 500 in doubt is recorded beside Redis; it must "
            "outlive the process",
        ),
    ] = ".payouts/state"
    database_pool_size: Annotated[int, Meta(ge=1, le=1_000, description="connections that one process keeps open")] = 8
    database_pooler: Annotated[
        str,
        Meta(
            pattern=f"^{POOLER_TRANSACTION}$",
            description="`transaction` when PgBouncer serves the database, in transaction mode",
        ),
    ] = ""
    metrics_port: Annotated[
        int,
        Meta(
            ge=0,
            le=65_516,
            description="port of a worker's metrics: the first free one of this and the next 19; 0: none",
        ),
    ] = 0
    metrics_host: Annotated[str, Meta(description="address at which a worker serves metrics")] = "127.0.0.1"
    verify_every_s: Annotated[
        float,
        Meta(
            ge=0,
            le=31_536_000,
            description="how often a worker proves that the books balance, as `payouts verify` does; 0: never",
        ),
    ] = 86_400.0
    log_format: Annotated[
        Literal["auto", "json", "text"],
        Meta(description="`json` or `text` lines on standard error; `auto`: text on a terminal, JSON elsewhere"),
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="lowest level that is logged")
    ] = "info"
    access_log: Annotated[bool, Meta(description="log one line for each request except health probes")] = True
    startup_timeout_s: Annotated[
        float,
        _seconds("how long a starting process waits for PostgreSQL and the broker; then it ends with exit code 1"),
    ] = _STARTUP_TIMEOUT_S
    flower_host: Annotated[str, Meta(description="address at which Flower listens")] = "127.0.0.1"
    flower_port: Annotated[int, Meta(ge=1, le=65_535, description="Flower's port")] = 5555
    flower_password: Annotated[
        str,
        Meta(
            min_length=_PASSWORD_CHARACTERS_MIN,
            pattern=r"^[!-~]+\Z",
            description="Flower's password, at least 12 visible ASCII characters; without one, Flower does not start",
        ),
    ] = ""

    # These follow from the settings above, by the rules of `DERIVED`.
    waiting_max: Annotated[int, Meta(ge=1, description="callers waiting in one API process; beyond, 429")] = _FOLLOWS
    request_body_max_bytes: Annotated[int, Meta(ge=1024, description="largest body of an ordinary request")] = _FOLLOWS
    resend_after_s: Annotated[float, _seconds("without a reply, a group is published again")] = _FOLLOWS
    row_lock_timeout_s: Annotated[
        float,
        Meta(
            ge=0.05,
            le=_TIME_LIMIT_MAX_S,
            description="longest wait for a row that another transaction holds, in all that is no call",
        ),
    ] = _FOLLOWS
    lock_wait_s: Annotated[
        float, _seconds("a worker waits this long for another's Redis locks, then goes on without")
    ] = _FOLLOWS
    lock_ttl_s: Annotated[float, _seconds("a Redis lock whose worker died ends after this")] = _FOLLOWS
    database_connect_timeout_s: Annotated[
        int, Meta(ge=2, le=_TIME_LIMIT_MAX_S, description="longest wait for one connection to PostgreSQL")
    ] = _FOLLOWS
    batch_stalled_after_s: Annotated[
        float, _seconds("a payout batch on which no worker has worked for this long is sent to the workers again")
    ] = _FOLLOWS
    flower_user: Annotated[
        str, Meta(pattern=r"^[!-9;-~]+\Z", description="user name for Flower; visible ASCII characters except `:`")
    ] = _FOLLOWS

    def __post_init__(self) -> None:
        """Give each setting that follows from others its value, unless it was given one."""
        for name, rule in DERIVED.items():
            if getattr(self, name) is _FOLLOWS:
                msgspec.structs.force_setattr(self, name, rule.compute(self))

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show nothing to rich either, which prefers this."""
        return []

    def __repr__(self) -> str:
        """Show nothing: URLs and the hash secret are secrets."""
        return "Settings(…)"

    @property
    def held_row_wait_s(self) -> float:
        """How long a worker waits for a business's row that another transaction holds, before calls of others go on."""
        return self.transaction_timeout_s / 8

    @property
    def hash_secret_bytes(self) -> bytes:
        """The key of the payout hashes."""
        return self.hash_secret.encode()


_SCHEMES = {
    "database_url": ("postgresql://", "postgres://"),
    "migration_database_url": ("postgresql://", "postgres://"),
    "redis_url": ("redis://", "rediss://", "redis+sentinel://", "rediss+sentinel://"),
    "broker_url": (
        *("redis://", "rediss://", "redis+sentinel://", "rediss+sentinel://"),
        *("amqp://", "amqps://", "redis+socket://"),
    ),
}
SECRETS = (*_SCHEMES, "database_password", "migration_database_password", "hash_secret", "flower_password")
"""Never shown; each may be given as the path of a file, too."""
_WITHOUT_SETTING = ("HOST", "KEY", "URL")
"""Variables that are read elsewhere: by the Procfile, and by `payouts push`."""


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read and check the settings.

    Raises:
        SettingsError: with every mistake, not just the first.

    """
    required = {field.name for field in msgspec.structs.fields(Settings) if field.required}
    values, mistakes = _read_values(environment, required)
    if values.get("environment") == "production":
        mistakes += find_unsafe(values, mistakes, environment)
    if mistakes:
        raise SettingsError(mistakes)
    values.setdefault("broker_url", values["redis_url"])
    settings = Settings(**values)
    if mistakes := _broken_relations(settings):
        raise SettingsError(mistakes)
    return settings


def load_database_url(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the URL of the database for commands that need nothing else; None where it is not set.

    What is set must be right all the same; in production, everything must be.

    Raises:
        SettingsError: with every mistake.

    """
    values, mistakes = _read_values(environment, required=())
    if values.get("environment") == "production":
        return load_settings(environment).database_url
    if mistakes:
        raise SettingsError(mistakes)
    url: str | None = values.get("database_url")
    return url


def load_migration_database_url(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the URL by which the database is migrated; None where it is not set, so that the ordinary one is meant.

    Raises:
        SettingsError: with every mistake.

    """
    values, mistakes = _read_values(environment, required=())
    if mistakes:
        raise SettingsError(mistakes)
    url: str | None = values.get("migration_database_url")
    return url


def load_hash_secret(environment: Mapping[str, str] = os.environ) -> bytes | None:
    """Return the hash secret, for commands that need no more than it and the database; None where it is not set.

    Raises:
        SettingsError: it is set, and wrong.

    """
    values, mistakes = _read_values(environment, required=())
    if "hash_secret" not in values and (own := [each for each in mistakes if variable_name("hash_secret") in each]):
        raise SettingsError(own)
    secret: str | None = values.get("hash_secret")
    return None if secret is None else secret.encode()


def load_startup_timeout_s(environment: Mapping[str, str] = os.environ) -> float:
    """Return how long to wait for the database, for a command that needs no other setting."""
    values, _ = _read_values(environment, ())
    return float(values.get("startup_timeout_s", _STARTUP_TIMEOUT_S))


def find_unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a line for each `PAYOUTS_…` variable that nothing reads, which may be a misspelt one.

    It is no mistake: Kubernetes, say, sets some of its own for a service that is called `payouts`.
    """
    known = [*setting_variables(), *map(variable_name, _WITHOUT_SETTING)]
    replaced = {*RENAMED, *map(variable_name, DERIVED)}
    suggested = [name.removeprefix(PREFIX) for name in known if name not in replaced]
    lines = []
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            nearest = get_close_matches(name.removeprefix(PREFIX), suggested, n=1)
            lines.append(f"{name} is no setting" + (f"; did you mean {PREFIX}{nearest[0]}?" if nearest else ""))
    return lines


def find_doubtful_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a line for each variable that is about to end, and for each that nothing reads."""
    return find_replaced_variables(environment) + find_unknown_variables(environment)


def warn_of_doubtful_variables(environment: Mapping[str, str] = os.environ) -> None:
    """Write these lines to standard error."""
    for line in find_doubtful_variables(environment):
        sys.stderr.write(f"Warning: {line}\n")


def setting_variables() -> list[str]:
    """Return the names of all variables that are read as settings, those that name files and replaced ones too."""
    names = [variable_name(field.name) for field in msgspec.structs.fields(Settings)]
    return [*names, *(variable_name(name) + FILE_SUFFIX for name in SECRETS), *RENAMED]


def documented_settings() -> list[str]:
    """Return the names of the settings that an operator chooses: not of those that follow from them."""
    return [field.name for field in msgspec.structs.fields(Settings) if field.name not in DERIVED]


def read_secret_files(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with each `…_FILE` replaced by what is in the file, without empty ones.

    Raises:
        SettingsError: a file cannot be read, or a secret is given twice.

    """
    texts, mistakes = _read_secret_files(environment)
    if mistakes:
        raise SettingsError(mistakes)
    return texts


def _read_secret_files(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    texts = {name: text.strip() for name, text in environment.items() if text.strip()}
    mistakes = []
    for variable in map(variable_name, SECRETS):
        path = texts.pop(variable + FILE_SUFFIX, None)
        if path is None:
            continue
        if variable in texts:
            mistakes.append(f"{variable} and {variable}{FILE_SUFFIX} are both set: set one of them")
            continue
        text, problem = _read_secret_file(Path(path))
        if problem:
            mistakes.append(
                f"{variable}{FILE_SUFFIX}: {_shorten(path)} {problem}: expected a file that holds {variable}"
            )
        else:
            texts[variable] = text
    return texts, mistakes


def _read_secret_file(path: Path) -> tuple[str, str | None]:
    """Return what the file holds, or what is wrong with it."""
    try:
        if path.exists() and not path.is_file():
            return "", "is not a file"
        with path.open("rb") as file:
            content = file.read(_SECRET_FILE_BYTES_MAX + 1)
        text = content.decode().strip()
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            return "", "is not text in UTF-8"
        return "", f"cannot be read ({getattr(error, 'strerror', None) or 'no such path'})"
    if len(content) > _SECRET_FILE_BYTES_MAX:
        return "", "is too large"
    return (text, None) if text else ("", "is empty")


def _read_values(environment: Mapping[str, str], required: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Return what is set, each as its type, and what is wrong with each; relations are not looked at."""
    texts, mistakes = _read_secret_files(environment)
    old_names = rename(texts)
    values: dict[str, Any] = {}
    for name, hint in _hints().items():
        variable = variable_name(name)
        if variable not in texts:
            if name in required and not any(variable in mistake for mistake in mistakes):
                mistakes.append(f"{variable} is not set: {_meta(hint).description}")
            continue
        text = texts[variable]
        shown = f"a value of {len(text)} characters" if name in SECRETS else _shorten(text)
        is_file = bool(environment.get(variable + FILE_SUFFIX, "").strip())
        source = variable + FILE_SUFFIX if is_file else old_names.get(variable, variable)
        try:
            is_choice = bool(get_args(get_args(hint)[0]))
            values[name] = msgspec.convert(text.lower() if is_choice else text, hint, strict=False)
        except msgspec.ValidationError:
            mistakes.append(f"{source}: {shown} does not fit: expected {_expected(hint)}")
            continue
        if name in _SCHEMES and (problem := _find_wrong_url(name, text)):
            del values[name]
            mistakes.append(f"{source}: {shown} does not fit: {problem}")
    for url, password in (
        ("database_url", "database_password"),
        ("migration_database_url", "migration_database_password"),
    ):
        if password not in values or url not in values:
            continue
        if read_url(values[url]).has_password:
            both = f"{variable_name(password)} and the one in {variable_name(url)}"
            mistakes.append(f"There are two passwords, {both}: set one of them")
        else:
            values[url] = _add_password(values[url], values[password])
    return values, mistakes


def _add_password(url: str, password: str) -> str:
    """Return the database's URL with its password; where it names no user, as a parameter."""
    scheme, _, rest = url.partition("://")
    quoted = quote(password, safe="")
    user = read_url(url).user_info
    if user is not None:
        return f"{scheme}://{user}:{quoted}{rest.removeprefix(user)}"
    return f"{url}{'&' if '?' in url else '?'}password={quoted}"


def _find_wrong_url(setting: str, url: str) -> str | None:
    try:
        check_url(url, _SCHEMES[setting])
    except UrlError as error:
        return str(error)
    return None


def _hints() -> dict[str, Any]:
    return get_type_hints(Settings, include_extras=True)


def _meta(hint: Any) -> Meta:
    meta: Meta = hint.__metadata__[0]
    return meta


def _expected(hint: Any) -> str:
    """Say in words what a setting's type takes."""
    meta, kind = _meta(hint), get_args(hint)[0]
    if choices := get_args(kind):
        return " or ".join(choices)
    if kind is bool:
        return "true or false"
    if kind is str:
        return str(meta.description)
    limits = [
        f"{words} {limit:g}" if isinstance(limit, float) else f"{words} {limit}"
        for words, limit in (("more than", meta.gt), ("at least", meta.ge), ("at most", meta.le))
        if limit is not None
    ]
    return " ".join(["a whole number," if kind is int else "a number,", " and ".join(limits)])


def _shorten(text: str) -> str:
    shown = text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "…"
    return repr(shown)


def _broken_relations(settings: Settings) -> list[str]:
    """Check that the time limits nest: what waits must outlast what it waits for."""
    nesting = [
        ("lock_wait_s", "lock_ttl_s"),
        ("row_lock_timeout_s", "transaction_timeout_s"),
        ("transaction_timeout_s", "lock_ttl_s"),
        ("redis_timeout_s", "lock_ttl_s"),
        ("resend_after_s", "reply_timeout_s"),
        ("transaction_timeout_s", "resolve_timeout_s"),
    ]
    mistakes = [
        f"{_show(settings, shorter)} must be smaller than {_show(settings, longer)}"
        for shorter, longer in nesting
        if getattr(settings, shorter) >= getattr(settings, longer)
    ]
    worker_s = settings.lock_wait_s + settings.transaction_timeout_s
    if worker_s >= settings.reply_timeout_s:
        mistakes.append(
            f"{_show(settings, 'lock_wait_s')} and {_show(settings, 'transaction_timeout_s')} together ({worker_s:g}) "
            f"must be smaller than {_show(settings, 'reply_timeout_s')}"
        )
    return mistakes


def _show(settings: Settings, name: str) -> str:
    """Return a setting's variable and value and, where the value follows from others, how."""
    value, rule = getattr(settings, name), DERIVED.get(name)
    how = f", that is {rule.words}" if rule is not None and value == rule.compute(settings) else ""
    return f"{variable_name(name)} ({value:g}{how})"
