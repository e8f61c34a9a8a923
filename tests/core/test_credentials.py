"""API keys and payout hashes."""

import hashlib
import hmac
from itertools import product
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.credentials import (
    KeyKind,
    Mode,
    digest_of,
    looks_like_secret_key,
    make_api_key,
    payout_hash,
)
from tests.core.builders import HASH_SECRET

BUSINESS = UUID(int=1)


@pytest.mark.parametrize(("kind", "mode"), list(product(KeyKind, Mode)))
def test_a_key_says_what_it_is(kind: KeyKind, mode: Mode) -> None:
    prefix = {KeyKind.SECRET: "sk", KeyKind.PUBLIC: "pk"}[kind]
    key = make_api_key(kind, mode)
    assert key.startswith(f"{prefix}_{mode}_")
    assert looks_like_secret_key(key) == (kind is KeyKind.SECRET)


def test_no_two_keys_are_alike() -> None:
    assert len({make_api_key(KeyKind.SECRET, Mode.LIVE) for _ in range(1_000)}) == 1_000


@given(st.text(st.characters()))
def test_other_text_does_not_look_like_a_secret_key(text: str) -> None:
    key = make_api_key(KeyKind.SECRET, Mode.TEST)
    assert not looks_like_secret_key(text)
    assert looks_like_secret_key(key + text) == (text == "")
    assert looks_like_secret_key(text + key) == (text == "")


@pytest.mark.parametrize("key", ["sk_live_", "sk_prod_" + "a" * 40, "SK_LIVE_" + "a" * 40, "sk_live_" + "é" * 40])
def test_nearly_a_secret_key_does_not_look_like_one(key: str) -> None:
    assert not looks_like_secret_key(key)


def test_a_payout_hash_is_an_hmac_in_64_lower_case_hex_digits() -> None:
    message = b"payout user\0" + BUSINESS.bytes + b"user@example.com"
    expected = hmac.new(HASH_SECRET, message, hashlib.sha256).hexdigest()
    assert payout_hash(HASH_SECRET, BUSINESS, "user@example.com") == expected
    assert len(expected) == 64


def test_business_email_and_secret_each_change_the_hash() -> None:
    hashes = {
        payout_hash(secret, business_id, email)
        for secret, business_id, email in product(
            (HASH_SECRET, b"x" * 32), (BUSINESS, UUID(int=2)), ("a@example.com", "b@example.com", "д@example.com")
        )
    }
    assert len(hashes) == 12


def test_the_digest_is_the_sha256_of_the_text() -> None:
    assert digest_of("abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
