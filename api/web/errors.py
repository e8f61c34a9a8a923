"""Errors that endpoints of every kind answer alike."""


class TooManyWaitingError(Exception):
    """Too many callers wait in this process already: 429."""
