"""What a line says about errors and allocations."""

import re

import pytest
import sqlalchemy as sa

from core.credentials import email_digest
from core.database.connection import Database
from core.logging.fields import NAMED_MAX, about, place_of
from tests.core.logging.records import EMAIL, allocations_of


def test_the_place_of_an_error_is_in_our_own_code() -> None:
    with pytest.raises(sa.exc.OperationalError) as caught:
        Database("postgresql://nobody@127.0.0.1:1/none", transaction_timeout_s=None).read(lambda _: None)
    assert re.fullmatch(r"core/database/connection.py:\d+ in transaction", place_of(caught.tb) or "")


def test_of_many_allocations_the_first_are_named() -> None:
    fields = about(allocations=allocations_of(500))["fields"]
    assert fields["allocations"] == 500
    assert len(fields["allocation_ids"]) == len(fields["request_ids"]) == NAMED_MAX


def test_a_request_id_of_ours_is_the_allocation_id() -> None:
    (allocation,) = allocations_of(1)
    fields = about(allocations=[allocation])["fields"]
    assert fields["request_ids"] == [allocation.id.hex]
    assert fields["allocation_ids"] == [f"txn_{allocation.id.hex}"]


def test_users_are_told_apart_by_digests_that_no_dictionary_finds() -> None:
    one, other = b"one secret, long enough for all of it", b"another secret, long enough for all"
    fields = about(allocations=allocations_of(3), hash_secret=one)["fields"]
    assert fields["users"] == sorted(email_digest(one, f"{n}{EMAIL}") for n in range(3))
    assert len(set(fields["users"])) == 3
    assert not set(fields["users"]) & {email_digest(other, f"{n}{EMAIL}") for n in range(3)}
