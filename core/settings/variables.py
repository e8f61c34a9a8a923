"""The names of the environment variables from which settings are read."""

PREFIX = "PAYOUTS_"
FILE_SUFFIX = "_FILE"


def variable_name(setting: str) -> str:
    """Return a setting's environment variable, for instance `PAYOUTS_GROUP_MAX`."""
    return PREFIX + setting.upper()
