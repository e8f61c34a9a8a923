"""What looks like a secret or an e-mail is hidden, and nothing else."""

import pytest

from core.logging.masking import hide_secrets, holds_secret
from tests.core.logging.records import EMAIL

KEY = "sk_live_" + "A1" * 20


@pytest.mark.parametrize(
    "text",
    [KEY, f"key {KEY}!", "a" * 64, "A" * 64, EMAIL, f"<{EMAIL}>", EMAIL.replace("@", "%40"), "redis://:word@host/0",
     "postgresql://me:word@host/name", "pk_test_x"],
)  # fmt: skip
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    assert holds_secret(text)
    hidden = hide_secrets(f"before {text} after")
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")
    assert not any(word in hidden for word in (KEY, "a" * 64, "A" * 64, "somebody", "word", "pk_test_x"))


@pytest.mark.parametrize("text", ["worker-123@host.example.com ready.", "txn_" + "a" * 32, "redis://host/0", "a@b"])
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert not holds_secret(text)
    assert hide_secrets(text) == text
