"""The writer's thread: no reader of the log holds a process up."""

import json
import os
import time
from contextlib import suppress

from core.logging.writer import LineWriter
from tests.core.logging.records import JSON
from tests.polling import wait_until


def test_a_reader_who_reads_nothing_blocks_nobody_and_is_told_how_much_was_dropped() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(JSON, writing, waiting_max=200)
    begun = time.monotonic()
    for number in range(100_000):
        writer.add(f"{number:>1000}")
    assert time.monotonic() - begun < 20
    os.set_blocking(reading, False)
    lines: list[str] = []
    rest = b""

    def read() -> tuple[list[int], int]:
        nonlocal rest
        with suppress(BlockingIOError):
            rest += os.read(reading, 1 << 20)
        *whole, rest = rest.split(b"\n")
        lines.extend(line.decode() for line in whole)
        kept = [int(line) for line in lines if line.strip().isdigit()]
        return kept, sum(json.loads(line)["dropped"] for line in lines if "were dropped" in line)

    def is_complete() -> bool:
        kept, dropped = read()
        return len(kept) + dropped >= 100_000

    wait_until(is_complete, read)
    time.sleep(0.3)
    kept, dropped = read()
    assert kept == sorted(kept)
    assert len(kept) + dropped == 100_000
    assert dropped > 0
    writer.close()
    os.close(reading)
    os.close(writing)


def test_a_reader_who_has_gone_is_no_reason_to_fail() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(JSON, writing, waiting_max=10)
    writer.add("a line")
    writer.close()
    os.close(writing)
