"""What exists after start is not collected again, and what calls leave behind still is."""

import subprocess
import sys

PROGRAM = """
import gc
from core.garbage_collection import freeze_startup_objects

class Cycle:
    alive = 0
    def __init__(self):
        self.itself = self
        Cycle.alive += 1
    def __del__(self):
        Cycle.alive -= 1

freeze_startup_objects()
assert gc.get_freeze_count() > 1_000
most = 0
for _ in range(100_000):
    Cycle()
    most = max(most, Cycle.alive)
assert 0 < most < 50_000, most
"""


def test_after_start_only_what_is_new_is_collected() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
