"""Settings' variables for tests."""

import pytest

from core.settings.loader import (
    Settings,
    SettingsError,
    load_settings,
)
from core.settings.variables import variable_name

REQUIRED = {
    "PAYOUTS_DATABASE_URL": "postgresql://user:db-password@host/name",
    "PAYOUTS_REDIS_URL": "redis://:redis-password@host/0",
    "PAYOUTS_HASH_SECRET": "the hash secret of these tests, long enough",
}
SECRETS = ["db-password", "redis-password", "broker-password", "hash secret of"]


def load(**settings: str) -> Settings:
    """Load the required settings, with changes (`group_max="5"`)."""
    return load_settings(REQUIRED | {variable_name(name): value for name, value in settings.items()})


def mistakes_of(**settings: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(**settings)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    for secret in SECRETS:
        assert secret not in str(caught.value) + repr(caught.value)
    return caught.value.mistakes
