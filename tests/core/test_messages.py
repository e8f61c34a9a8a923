"""Messages between API and workers: sealed, and open to both sides of a rolling deploy."""

import base64
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.messages import Allocation, Group, GroupCodec, MessageError, Outcome, Reply
from core.sealing import ForgeryError, Seal
from tests import previous_release
from tests.core.builders import HASH_SECRET, groups, make_allocation, seal_by_hand

CODEC = GroupCodec(HASH_SECRET)
TASK_ID = "api-0-1"
EMAIL = "somebody@secret.example"
GROUP = [make_allocation(UUID(int=1), UUID(int=2), email=EMAIL, amount_cents=7, idempotency_key="the key")]
NOT_TEXT = "the message is not text"
UNKNOWN_VERSION = "the message has an unknown version"
DAMAGED = "the message is damaged, copied, or sealed with another PAYOUTS_HASH_SECRET"

REPLY = Reply([Outcome.ALLOCATED, Outcome.FAILED], [1])

_encode = msgspec.msgpack.Encoder(uuid_format="bytes").encode


def refusal_of(message: object, codec: GroupCodec = CODEC) -> str:
    with pytest.raises(MessageError) as caught:
        codec.open(message, TASK_ID)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


@given(groups)
def test_what_is_sealed_can_be_opened(group: list[Allocation]) -> None:
    assert CODEC.open(CODEC.seal(group, TASK_ID), TASK_ID) == Group(group, wants_sealed_reply=True)


def test_a_sealed_message_shows_nothing_of_the_group() -> None:
    sealed = CODEC.seal(GROUP, TASK_ID)
    assert sealed.isascii()
    raw = base64.b64decode(sealed.removeprefix("2:"))
    for secret in (EMAIL.encode(), b"secret", b"the key", GROUP[0].id.bytes, HASH_SECRET):
        assert secret not in raw
        assert secret not in sealed.encode()


def test_the_same_group_is_never_sealed_the_same_way() -> None:
    assert len({CODEC.seal(GROUP, TASK_ID) for _ in range(20)}) == 20


def test_another_secret_does_not_open_it() -> None:
    assert refusal_of(CODEC.seal(GROUP, TASK_ID), GroupCodec(b"x" * 32)) == DAMAGED


@pytest.mark.parametrize("version", ["", "0", "3", "22", " 2", "２"])  # noqa: RUF001 (a full-width 2)
def test_another_version_is_not_opened(version: str) -> None:
    assert refusal_of(version + CODEC.seal(GROUP, TASK_ID).removeprefix("2")) == UNKNOWN_VERSION


@pytest.mark.parametrize("message", [None, 1, 1.5, b"1:AAAA", ["1:AAAA"], {"1": 1}, CODEC, True])
def test_what_is_not_text_is_refused(message: object) -> None:
    assert refusal_of(message) == NOT_TEXT


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_message_with_one_byte_changed_is_refused(position: int, change: int) -> None:
    raw = bytearray(base64.b64decode(CODEC.seal(GROUP, TASK_ID).removeprefix("2:")))
    raw[position % len(raw)] ^= change
    assert refusal_of(f"2:{base64.b64encode(raw).decode()}") == DAMAGED


@given(st.integers(min_value=0))
def test_a_message_that_is_cut_short_is_refused(length: int) -> None:
    sealed = CODEC.seal(GROUP, TASK_ID)
    assert refusal_of(sealed[: length % len(sealed)]) in {DAMAGED, UNKNOWN_VERSION}


@given(st.text(st.characters()))
def test_any_other_text_is_refused(text: str) -> None:
    assert refusal_of(text) in {DAMAGED, UNKNOWN_VERSION}
    assert refusal_of(f"2:{text}") == DAMAGED


@given(st.binary())
def test_sealed_bytes_that_are_no_group_are_refused(plain: bytes) -> None:
    if plain != b"\x90":  # an empty group
        assert refusal_of(seal_by_hand(plain, TASK_ID)) == DAMAGED


@pytest.mark.parametrize(
    "plain",
    [
        {"id": EMAIL},
        [[EMAIL]],
        [EMAIL],
        [[*msgspec.structs.astuple(GROUP[0])[:4], "seven", 1]],
        [[*msgspec.structs.astuple(GROUP[0])[:5]]],
        [[EMAIL, *msgspec.structs.astuple(GROUP[0])[1:]]],
    ],
)
def test_a_sealed_message_of_another_shape_is_refused_and_not_repeated(plain: object) -> None:
    assert refusal_of(seal_by_hand(_encode(plain), TASK_ID)) == DAMAGED


def test_a_sealed_email_that_is_not_utf8_is_refused() -> None:
    plain = _encode(GROUP).replace(EMAIL.encode(), b"\xff" * len(EMAIL))
    assert refusal_of(seal_by_hand(plain, TASK_ID)) == DAMAGED


def test_sealed_nesting_without_end_is_refused() -> None:
    assert refusal_of(seal_by_hand(b"\x91" * 100_000 + b"\x90", TASK_ID)) == DAMAGED


@pytest.mark.parametrize("piece", ["A", "\ud800", "{", "é", "\0", f"{EMAIL} "])
def test_ten_megabytes_of_garbage_are_refused(piece: str) -> None:
    garbage = piece * (10_000_000 // len(piece))
    assert refusal_of(garbage) == UNKNOWN_VERSION
    assert refusal_of(f"2:{garbage}") == DAMAGED


def test_a_field_that_a_newer_process_added_is_ignored() -> None:
    newer = [[*msgspec.structs.astuple(each), "a field of tomorrow", {"more": 1}] for each in GROUP]
    assert CODEC.open(seal_by_hand(_encode(newer), TASK_ID), TASK_ID).allocations == GROUP


def test_a_field_that_an_older_process_does_not_know_has_its_default() -> None:
    older = [msgspec.structs.astuple(each)[:6] for each in GROUP]
    assert CODEC.open(seal_by_hand(_encode(older), TASK_ID), TASK_ID).allocations == [
        msgspec.structs.replace(GROUP[0], idempotency_key=None, request_id="")
    ]


def test_an_allocation_is_shown_by_its_id_alone() -> None:
    assert repr(GROUP[0]) == f"Allocation(txn_{GROUP[0].id.hex})"


# A message of the release before, as it was on the queue; frozen, as `tests/previous_release.py` is.
VERSION_1_SECRET = b"a hash secret of the release before"
VERSION_1_MESSAGE = (
    "1:Mu7bs8BuEv0VB1DaAhMgJlHCXWpeAQEgcgWfgFNTw1PZ2h5vp1GPgOpCW5chCpIzsZZDuD/XTvM8zbEHX4a2pBVl8c0CAqC/M8"
    "7NXJtPjT4+j2k+SkkcXUu8IjW2MP/DvdPh6XW0uxydaiUCWD9By9RLbv1UUFl2prbFYoxjO5wgGRQK31ZJVDJXnhve8uGDQrbUoF"
    "wzQH7c1PNa/Uw7eLq/aU5yLH2nBosI9VzX3ieXjHeIiynaW6i794L7mQ2ZpZNnBwGi"
)
VERSION_1_GROUP = [
    Allocation(UUID(int=1), UUID(int=2), UUID(int=3), "a@example.com", 100, 1_700_000_000_000_000, None),
    Allocation(UUID(int=4), UUID(int=2), UUID(int=3), "b@example.com", 10_000_000, 1_700_000_000_000_001, "a key"),
]


def test_message_of_the_release_before_can_be_opened() -> None:
    opened = GroupCodec(VERSION_1_SECRET).open(VERSION_1_MESSAGE, TASK_ID).allocations
    assert [msgspec.structs.astuple(each)[:7] for each in opened] == [
        msgspec.structs.astuple(each)[:7] for each in VERSION_1_GROUP
    ]
    added = {field.name for field in msgspec.structs.fields(Allocation)[7:]}
    assert all(getattr(each, name) == getattr(VERSION_1_GROUP[0], name) for each in opened for name in added)


@given(groups)
def test_message_that_the_release_before_encodes_can_be_opened(group: list[Allocation]) -> None:
    older = [previous_release.Allocation(*msgspec.structs.astuple(each)[:7]) for each in group]
    opened = CODEC.open(previous_release.seal(older, HASH_SECRET), TASK_ID)
    assert not opened.wants_sealed_reply
    assert [msgspec.structs.astuple(each)[:7] for each in opened.allocations] == [
        msgspec.structs.astuple(each) for each in older
    ]


def test_message_of_today_has_a_version_that_the_release_before_refuses() -> None:
    """It would not seal its reply, which no API process of today believes: workers are upgraded first."""
    with pytest.raises(AssertionError):
        previous_release.open_sealed(CODEC.seal(GROUP, TASK_ID), HASH_SECRET)


def test_the_release_before_drops_a_group_with_references() -> None:
    """It would pay, and forget the references, so that a retry could pay again."""
    sealed = CODEC.seal([GROUP[0], msgspec.structs.replace(GROUP[0], reference="march")], TASK_ID)
    assert sealed.startswith("2:")
    assert CODEC.open(sealed, TASK_ID).allocations[1].reference == "march"
    with pytest.raises(AssertionError):
        previous_release.open_sealed(sealed, HASH_SECRET)


def test_replies_to_the_release_before_are_ones_that_it_knows() -> None:
    """A new outcome has to be one that it never gets, or to come a release after its meaning.

    It sends no references, and the setting that requires keys is switched on when all processes are new.
    """
    never = {Outcome.REFERENCE_REUSED, Outcome.IDEMPOTENCY_KEY_REQUIRED}
    assert {outcome.value for outcome in set(Outcome) - never} == previous_release.OUTCOMES


def test_message_is_opened_under_its_own_task_id_alone() -> None:
    with pytest.raises(MessageError, match="copied"):
        CODEC.open(CODEC.seal(GROUP, TASK_ID), f"{TASK_ID}0")


@given(st.text(st.characters()))
def test_any_text_may_be_a_task_id(task_id: str) -> None:
    assert CODEC.open(CODEC.seal(GROUP, task_id), task_id).allocations == GROUP
    assert CODEC.open_reply(CODEC.seal_reply(REPLY, task_id), task_id) == REPLY


def test_reply_is_opened_under_its_own_task_id_and_with_its_own_secret_alone() -> None:
    sealed = CODEC.seal_reply(REPLY, TASK_ID)
    assert b"allocated" not in base64.b64decode(sealed.removeprefix("2:"))
    for codec, task_id in ((CODEC, f"{TASK_ID}0"), (GroupCodec(b"x" * 32), TASK_ID)):
        with pytest.raises(ForgeryError):
            codec.open_reply(sealed, task_id)


def test_message_is_no_reply_and_reply_is_no_message() -> None:
    with pytest.raises(ForgeryError):
        CODEC.open_reply(CODEC.seal([], TASK_ID), TASK_ID)
    assert refusal_of(CODEC.seal_reply(Reply([]), TASK_ID)) == DAMAGED


def test_reply_of_an_older_worker_touches_what_it_failed_at() -> None:
    older = msgspec.msgpack.encode([["failed"]])
    sealed = Seal(HASH_SECRET, "reply").seal(older, f"2:{TASK_ID}".encode())
    assert CODEC.open_reply(f"2:{base64.b64encode(sealed).decode()}", TASK_ID) == Reply([Outcome.FAILED], [])
