"""A head that was kept elsewhere: finds what seals alone cannot, and is refused where it is not this installation's."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from core.chain.head import HeadError, make_head, read_head
from core.chain.proof import prove
from core.chain.sealer import seal_all
from core.database.connection import Database
from core.ids import IdKind, format_id
from tests.core.builders import HASH_SECRET, allocate, allocation_of, run_sql
from tests.core.chain.conftest import World, make_world
from tests.servers import open_account


def read(database: Database) -> dict[str, Any]:
    seal_all(database, HASH_SECRET)
    with database.snapshot() as connection:
        return make_head(connection, HASH_SECRET)


def compare(database: Database, head: dict[str, Any], hash_secret: bytes = HASH_SECRET) -> list[tuple[str, str]]:
    with database.snapshot() as connection:
        known = read_head(connection, hash_secret, json.dumps(head).encode())
        proof = prove(connection, HASH_SECRET, known)
    return [(each.id, each.text) for each in proof.alterations]


def test_what_was_added_since_is_no_difference(world: World) -> None:
    head = read(world.database)
    assert compare(world.database, head) == []
    for number in range(3):
        paid = [allocation_of(world.account, f"{each}@example.com", 1) for each in range(700)]
        allocate(world.database, *paid)
        if number == 1:
            seal_all(world.database, HASH_SECRET)
        assert compare(world.database, head) == []


def test_what_was_lost_at_the_end_is_counted_with_the_time_of_the_head(world: World) -> None:
    """As after a failover to a replica that lacked the last transactions, or the restoring of a backup."""
    allocate(world.database, allocation_of(world.account, "a@example.com", 7))
    head = read(world.database)
    name = format_id(IdKind.BUSINESS, world.account.business.id)
    rows = next(each["history_rows"] for each in head["businesses"] if each["id"] == name)
    for statement in (
        "DELETE FROM payout_transactions WHERE amount = 7 AND batch_id IS NULL",
        "UPDATE payout_users SET balance = balance - 7 WHERE id = :a",
        "UPDATE businesses SET payout_balance = payout_balance + 7 WHERE id = :business",
        "UPDATE businesses SET last_sequence = last_sequence - 1 WHERE id = :business",
        "DELETE FROM history_seals WHERE business_id = :business",
    ):
        names = {name: world.ids[name] for name in ("a", "business") if f":{name}" in statement}
        run_sql(world.database, statement, **names)
    with world.database.snapshot() as connection:
        assert prove(connection, HASH_SECRET).balanced
    ((id_, text),) = compare(world.database, head)
    assert id_ == name
    assert text == f"history rows {rows} to {rows} are missing, which the head of {head['made_at']} has"
    # Paid anew, the same number is another row.
    allocate(world.database, allocation_of(world.account, "a@example.com", 7))
    seal_all(world.database, HASH_SECRET)
    ((id_, text),) = compare(world.database, head)
    assert (id_, f"its first {rows} history rows are not those of the head of {head['made_at']}") == (name, text)


def test_what_was_rewritten_and_sealed_anew_is_found(world: World) -> None:
    head = read(world.database)
    run_sql(
        world.database,
        "UPDATE payout_transactions SET created_at = created_at - interval '1 hour' WHERE id = :id",
        id=world.ids["kept"],
    )
    run_sql(world.database, "DELETE FROM history_seals")
    seal_all(world.database, HASH_SECRET)
    (name, text) = next(each for each in compare(world.database, head))
    assert name == format_id(IdKind.BUSINESS, world.account.business.id)
    assert "are not those of the head" in text


def test_a_database_that_was_emptied_lacks_every_business_of_the_head(world: World) -> None:
    head = read(world.database)
    tables = "businesses, api_keys, payout_users, payout_transactions, main_transactions, history_seals, row_seals, "
    run_sql(world.database, f"TRUNCATE {tables} seal_progress, audit_log, claims, payout_batches, payout_batch_items")
    named = {id_ for id_, _ in compare(world.database, head)}
    assert {each["id"] for each in head["businesses"]} <= named


def test_other_rows_that_were_lost_are_noticed(world: World) -> None:
    head = read(world.database)
    run_sql(world.database, "DELETE FROM audit_log")
    run_sql(world.database, "DELETE FROM row_seals WHERE kind = 'audit' OR number > 3")
    texts = [text for _, text in compare(world.database, head)]
    assert any("some of its audit log, keys or batches are missing" in text for text in texts)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda head: head | {"made_at": "2020-01-01T00:00:00Z"}, "signature is broken"),
        (lambda head: head | {"businesses": head["businesses"][1:]}, "signature is broken"),
        (lambda head: head | {"signature": "0" * 64}, "signature is broken"),
        (lambda head: head | {"signature": "é"}, "signature is broken"),
        (lambda head: head | {"installation": "0" * 32}, "another installation's"),
        (lambda head: head | {"version": 2}, "version 2"),
        (lambda _: {"businesses": []}, "no head of a history"),
        (lambda _: [], "no head of a history"),
    ],
)
def test_a_head_that_is_wrong_is_refused_in_one_line(
    world: World, change: Callable[[dict[str, Any]], Any], text: str
) -> None:
    with pytest.raises(HeadError, match=text) as refused:
        compare(world.database, change(read(world.database)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 5_000, b"null"])
def test_what_is_no_json_is_refused(world: World, text: bytes) -> None:
    with world.database.snapshot() as connection, pytest.raises(HeadError, match="no head of a history"):
        read_head(connection, HASH_SECRET, text)


def test_a_head_of_another_hash_secret_is_refused(world: World) -> None:
    with pytest.raises(HeadError, match="another hash secret"):
        compare(world.database, read(world.database), b"quite another secret, which is long")


def test_a_head_of_another_installation_is_refused(world: World, database_url: str) -> None:
    head = read(world.database)
    run_sql(world.database, "UPDATE installation SET id = uuidv7()")
    with pytest.raises(HeadError, match="another installation's"):
        compare(world.database, head)
    run_sql(world.database, "DELETE FROM installation")
    with pytest.raises(HeadError, match="which installation it is"):
        compare(world.database, head)


def test_no_e_mail_and_no_secret_is_in_a_head(world: World) -> None:
    text = json.dumps(read(world.database))
    assert "example.com" not in text
    assert HASH_SECRET.decode() not in text


def test_a_head_of_an_empty_database_holds_no_business_and_stays_good(database: Database) -> None:
    head = read(database)
    assert head["businesses"] == []
    open_account(database)
    assert compare(database, head) == []
    make_world(database)
    assert compare(database, head) == []


def test_the_numbers_of_a_head_are_those_of_the_history(world: World) -> None:
    head = read(world.database)
    with world.database.transaction() as connection:
        rows = connection.execute(sa.text("SELECT id, last_sequence FROM businesses")).all()
    assert {each["id"]: each["history_rows"] for each in head["businesses"]} == {
        format_id(IdKind.BUSINESS, id_): number for id_, number in rows
    }
