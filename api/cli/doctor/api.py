"""Is the API ready?"""

import json
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from api.cli.doctor.findings import Finding, Status, host_of

_API_TIMEOUT_S = 6.0


def check_api(url: str) -> Finding:
    """Ask the API at a URL whether it is ready."""
    shown = host_of(url, None)
    fix = "start the Procfile's `web`, or correct --url"
    try:
        if urlsplit(url).scheme not in {"http", "https"}:
            return Finding("api", Status.PROBLEM, "its address is no http:// or https:// URL", "correct --url")
        request = urllib.request.Request(f"{url.rstrip('/')}/health/ready")  # noqa: S310 (checked above)
        with urllib.request.urlopen(request, timeout=_API_TIMEOUT_S):  # noqa: S310 (checked above)
            return Finding("api", Status.OK, f"ready at {shown}")
    except urllib.error.HTTPError as error:
        with error:
            try:
                reason = str(json.load(error)["error"])
            except (ValueError, KeyError, TypeError, OSError):
                return Finding("api", Status.PROBLEM, f"{shown} answers {error.code}, and is none of ours", fix)
        return Finding("api", Status.PROBLEM, f"at {shown}: {reason}", "mend what it names; it is found above, too")
    except (OSError, ValueError) as error:
        return Finding("api", Status.PROBLEM, f"{shown} does not answer ({type(error).__name__})", fix)
