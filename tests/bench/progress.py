"""Lines on standard error that say what a long run does."""

import sys
import time

_started = time.monotonic()


def report_progress(text: str) -> None:
    print(f"{time.monotonic() - _started:4.0f} s  {text}", file=sys.stderr, flush=True)
