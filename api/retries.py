"""What callers of the API share: which keys and URLs can be sent, and how long to wait before trying again."""

import random
import re

import httpx

_API_KEY = re.compile(r"[\x21-\x7e]+\Z")
_BACKOFF_S = 0.2
_DOUBLINGS_MAX = 10


def may_be_api_key(key: str) -> bool:
    """Tell whether a key can stand in a header."""
    return _API_KEY.match(key) is not None


def parse_server_url(url: str) -> httpx.URL | None:
    """Return a server's URL; None where nothing can be reached by it."""
    try:
        parsed = httpx.Request("GET", url).url
    except (httpx.InvalidURL, UnicodeError, ValueError, TypeError):
        return None
    is_port = parsed.port is None or 0 < parsed.port < 65536
    return parsed if parsed.scheme in {"http", "https"} and parsed.host and is_port else None


def choose_backoff_s(failures: int, max_s: float) -> float:
    """Return how long to wait: "full jitter", so that those who failed together come back apart."""
    return random.uniform(0, min(_BACKOFF_S * 2 ** min(failures, _DOUBLINGS_MAX), max_s))  # noqa: S311


def read_retry_after_s(response: httpx.Response, max_s: float) -> float:
    """Return what the server asks to wait."""
    text = response.headers.get("retry-after", "")
    return min(float(text), max_s) if text.isascii() and text.isdigit() else 0.0
