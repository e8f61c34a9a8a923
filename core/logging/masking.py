"""Secrets and e-mails are masked in every log line."""

import re

# The names of Celery's nodes look like e-mails.
_PRIVATE = re.compile(
    r"[sp]k_(?:live|test)_\w+|\b[0-9A-Fa-f]{64}\b|(?<=://)[^/\s@]+(?=@)"
    r"|(?<![\w.+%-])(?!(?:worker|batches|celery)(?:-\d+)?@)[\w.+%-]+(?:@|%40)[\w-]+(?:\.[\w-]+)+"
)


def hide_secrets(text: str) -> str:
    """Return a text without what looks like an API key, a hash, a password in a URL or an e-mail."""
    return _PRIVATE.sub("…", text)


def holds_secret(text: str) -> bool:
    """Tell whether something in a text looks like an API key, a hash, a password in a URL or an e-mail."""
    return _PRIVATE.search(text) is not None
