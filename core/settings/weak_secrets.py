"""Secrets that must not go into production: examples, and what a person typed without thinking."""

import math
from collections import Counter
from itertools import pairwise

_TELLING = ("secret", "password", "example", "change", "payouts", "default", "test", "qwert", "sample", "dummy")
"""Words of examples. In hexadecimal digits there are none of them, and in random base64 next to never."""
_SEQUENCE_PART_MAX = 0.8
_ENTROPY_MIN_BITS_PER_CHARACTER = 2.0


def find_weakness(secret: str) -> str | None:
    """Say what is wrong with a secret; None where it may be random."""
    lower = secret.lower()
    if any(word in lower for word in _TELLING):
        return "looks like an example"
    if _is_repetition(lower):
        return "repeats itself"
    if _is_sequence(lower):
        return "is mostly a sequence of neighbouring characters"
    if _entropy_bits_per_character(secret) < _ENTROPY_MIN_BITS_PER_CHARACTER:
        return "has too few different characters"
    return None


def _is_repetition(text: str) -> bool:
    """Tell whether it is one shorter text again and again; the last time may be cut off."""
    return any(text[length:] == text[:-length] for length in range(1, len(text) // 2 + 1))


def _is_sequence(text: str) -> bool:
    steps = [ord(second) - ord(first) for first, second in pairwise(text)]
    return sum(abs(step) <= 1 for step in steps) > len(steps) * _SEQUENCE_PART_MAX


def _entropy_bits_per_character(text: str) -> float:
    """Return Shannon's entropy; twelve random hexadecimal digits have 3.1 or so."""
    counts = Counter(text).values()
    return -sum(count * math.log2(count / len(text)) for count in counts) / len(text)
