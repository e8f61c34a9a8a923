"""Ids, inside and outside."""

import subprocess
import sys
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ids import IdKind, format_id, new_id, parse_id


@given(st.sampled_from(IdKind), st.uuids())
def test_an_id_that_was_written_can_be_read(kind: IdKind, id_: UUID) -> None:
    assert parse_id(kind, format_id(kind, id_)) == id_


@given(st.sampled_from(IdKind), st.sampled_from(IdKind), st.uuids())
def test_an_id_of_another_kind_is_none(kind: IdKind, other: IdKind, id_: UUID) -> None:
    assert (parse_id(other, format_id(kind, id_)) is None) == (kind is not other)


@given(st.text(st.characters()))
def test_any_other_text_is_none(text: str) -> None:
    assert parse_id(IdKind.BUSINESS, text) is None
    assert parse_id(IdKind.BUSINESS, f"biz_{text}") is None


@pytest.mark.parametrize(
    "text",
    [
        "biz_" + "0" * 31,
        "biz_" + "0" * 33,
        "biz_" + "g" * 32,
        "biz_" + "0" * 31 + "_",
        "biz_" + "0" * 31 + "\n",
        "biz_" + "\u0660" * 32,
        "BIZ_" + "0" * 32,
        "biz" + "0" * 32,
        "biz_00000000-0000-0000-0000-000000000000",
        "biz_{" + "0" * 30 + "}",
    ],
)
def test_nearly_an_id_is_none(text: str) -> None:
    assert parse_id(IdKind.BUSINESS, text) is None


def test_upper_case_digits_are_not_how_we_write_an_id() -> None:
    assert parse_id(IdKind.BUSINESS, "biz_" + "ABCDEF01" * 4) is None


def test_ids_are_version_7_different_and_in_order_of_time() -> None:
    ids = [new_id() for _ in range(2_000)]
    assert {id_.version for id_ in ids} == {7}
    assert len(set(ids)) == len(ids)
    assert [id_.int >> 80 for id_ in ids] == sorted(id_.int >> 80 for id_ in ids)


def test_a_forked_child_makes_other_ids() -> None:
    script = """
import os
from core.ids import new_id
new_id()
child = os.fork()
if child:
    os.waitpid(child, 0)
print(new_id(), flush=True)
"""
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    mine, theirs = (UUID(line) for line in printed.split())
    assert mine.int % 2**62 != theirs.int % 2**62
