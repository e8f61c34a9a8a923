"""Is there room on the disk for what `payouts up` keeps?"""

import shutil
from pathlib import Path

from api.cli.doctor.findings import Finding, Status

_DISK_FREE_MIN_BYTES = 1 << 30


def check_disk(data_dir: Path) -> Finding:
    """Tell how much is free for a data directory."""
    free = shutil.disk_usage(data_dir).free
    text = f"{free / (1 << 30):.1f} GiB are free for {data_dir}"
    if free >= _DISK_FREE_MIN_BYTES:
        return Finding("disk", Status.OK, text)
    return Finding("disk", Status.PROBLEM, text, "make room: without any, every call is answered 500")
