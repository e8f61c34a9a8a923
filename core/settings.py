"""All settings and limits: one typed object, read from environment variables with the prefix `PAYOUTS_`."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from core.errors import UserError
from core.server_urls import UrlError, check_url

PREFIX = "PAYOUTS_"
HASH_SECRET_CHARACTERS_MIN = 32
_TIME_LIMIT_MAX_S = 3600


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
    """Every setting, with its unit in its name. README's table has these descriptions."""

    database_url: Annotated[str, Meta(description="PostgreSQL 18, as `postgresql://user:password@host/name`")]
    redis_url: Annotated[
        str,
        Meta(description="Redis or Valkey for locks and replies, as `redis://`, `rediss://` or `redis+sentinel://`"),
    ]
    broker_url: Annotated[
        str,
        Meta(description="Celery's broker, `amqp://` or `amqps://` too; the same as `PAYOUTS_REDIS_URL` if not set"),
    ] = ""
    hash_secret: Annotated[
        str,
        Meta(
            min_length=HASH_SECRET_CHARACTERS_MIN,
            description="key of the payout hashes, at least 32 characters; if it changes, so does every hash",
        ),
    ]
    batch_max: Annotated[int, Meta(ge=1, le=10_000, description="allocations that one Celery task carries")] = 500
    in_flight_max: Annotated[int, Meta(ge=1, le=64, description="Celery tasks under way for one API process")] = 2
    waiting_max: Annotated[int, Meta(ge=1, description="callers waiting in one API process; beyond, 429")] = 5_000
    request_body_max_bytes: Annotated[int, Meta(ge=1024, description="largest body of an ordinary request")] = 65_536
    rate_limit_per_s: Annotated[
        int, Meta(ge=0, le=1_000_000, description="calls a second that each API key may make; 0: no limit")
    ] = 0
    rate_limit_burst: Annotated[
        int, Meta(ge=0, le=1_000_000, description="calls that a key may make at once after a pause; 0: one second's")
    ] = 0
    batch_stalled_after_s: Annotated[
        float, _seconds("a payout batch on which nobody has worked for this long is sent to the workers again")
    ] = 10.0
    resend_after_s: Annotated[float, _seconds("without a reply, a batch is published again")] = 1.0
    reply_timeout_s: Annotated[float, _seconds("an allocation's deadline, from its arrival")] = 6.0
    settle_timeout_s: Annotated[
        float,
        _seconds("after the deadline, time to find out for certain before the answer is 500"),
    ] = 3.0
    transaction_timeout_s: Annotated[
        float,
        Meta(
            ge=0.1,
            le=_TIME_LIMIT_MAX_S,
            description="PostgreSQL ends a longer transaction, so a stalled worker frees its rows",
        ),
    ] = 2.0
    row_lock_timeout_s: Annotated[
        float,
        Meta(
            ge=0.1,
            le=_TIME_LIMIT_MAX_S,
            description="longest wait for a business's row; the other businesses of its batch then go on without it",
        ),
    ] = 1.0
    lock_wait_s: Annotated[
        float,
        _seconds("a worker waits this long for another's Redis locks, then goes on without"),
    ] = 1.0
    lock_ttl_s: Annotated[float, _seconds("a Redis lock whose worker died ends after this")] = 2.5
    redis_timeout_s: Annotated[
        float, _seconds("longest wait on one Redis operation; RabbitMQ has `PAYOUTS_RESEND_AFTER_S`")
    ] = 0.5
    database_connect_timeout_s: Annotated[
        int, Meta(ge=2, description="longest wait for one connection to PostgreSQL")
    ] = 2
    database_pool_size: Annotated[int, Meta(ge=1, description="connections that one process keeps open")] = 8
    startup_timeout_s: Annotated[float, _seconds("how long a starting process waits for PostgreSQL")] = 30.0

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show nothing to rich either, which prefers this."""
        return []

    def __repr__(self) -> str:
        """Show nothing: URLs and the hash secret are secrets."""
        return "Settings(…)"

    @property
    def hash_secret_bytes(self) -> bytes:
        """The key of the payout hashes."""
        return self.hash_secret.encode()


_SCHEMES = {
    "database_url": ("postgresql://", "postgres://"),
    "redis_url": ("redis://", "rediss://", "redis+sentinel://", "rediss+sentinel://"),
    "broker_url": (
        *("redis://", "rediss://", "redis+sentinel://", "rediss+sentinel://"),
        *("amqp://", "amqps://", "redis+socket://"),
    ),
}
_SECRETS = {*_SCHEMES, "hash_secret"}


def variable_name(setting: str) -> str:
    """Return a setting's environment variable, for instance `PAYOUTS_BATCH_MAX`."""
    return PREFIX + setting.upper()


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read and check the settings.

    Raises:
        SettingsError: with every mistake, not just the first.

    """
    mistakes: list[str] = []
    values: dict[str, Any] = {}
    hints = get_type_hints(Settings, include_extras=True)
    for info in msgspec.structs.fields(Settings):
        variable = variable_name(info.name)
        text = environment.get(variable, "").strip()
        if not text:
            if info.required:
                mistakes.append(f"{variable} is not set: {_description(hints[info.name])}")
            continue
        shown = "its value" if info.name in _SECRETS else repr(text)
        try:
            values[info.name] = msgspec.convert(text, hints[info.name], strict=False)
        except msgspec.ValidationError as error:
            mistakes.append(f"{variable}: {shown} does not fit: {error}")
            continue
        if info.name in _SCHEMES and (mistake := _find_wrong_url(info.name, text)):
            mistakes.append(mistake)
    if mistakes:
        raise SettingsError(mistakes)
    values.setdefault("broker_url", values["redis_url"])
    settings = Settings(**values)
    mistakes = _broken_relations(settings)
    if mistakes:
        raise SettingsError(mistakes)
    return settings


def check_database_url(url: str) -> str:
    """Return the URL where it is one of PostgreSQL's.

    Raises:
        SettingsError: it is not.

    """
    if mistake := _find_wrong_url("database_url", url):
        raise SettingsError([mistake])
    return url


def _find_wrong_url(setting: str, url: str) -> str | None:
    try:
        check_url(url, _SCHEMES[setting])
    except UrlError as error:
        return f"{variable_name(setting)}: its value does not fit: {error}"
    return None


def _description(hint: Any) -> str:
    metadata: Meta = hint.__metadata__[0]
    return str(metadata.description)


def _broken_relations(settings: Settings) -> list[str]:
    """Check that the time limits nest: what waits must outlast what it waits for."""
    nesting = [
        ("lock_wait_s", "lock_ttl_s"),
        ("row_lock_timeout_s", "transaction_timeout_s"),
        ("transaction_timeout_s", "lock_ttl_s"),
        ("redis_timeout_s", "lock_ttl_s"),
        ("resend_after_s", "reply_timeout_s"),
        ("transaction_timeout_s", "settle_timeout_s"),
    ]
    mistakes = [
        f"{variable_name(shorter)} ({getattr(settings, shorter):g}) must be smaller than "
        f"{variable_name(longer)} ({getattr(settings, longer):g})"
        for shorter, longer in nesting
        if getattr(settings, shorter) >= getattr(settings, longer)
    ]
    worker_s = settings.lock_wait_s + settings.transaction_timeout_s
    if worker_s >= settings.reply_timeout_s:
        mistakes.append(
            f"{variable_name('lock_wait_s')} and {variable_name('transaction_timeout_s')} together ({worker_s:g}) "
            f"must be smaller than {variable_name('reply_timeout_s')} ({settings.reply_timeout_s:g})"
        )
    return mistakes
