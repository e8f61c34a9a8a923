"""Array literals mean to PostgreSQL what the lists meant to Python."""

import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.database.arrays import integer_array, text_array, uuid_array
from core.database.connection import Database

any_values = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def read_back(database: Database, literal: str, type_name: str) -> object:
    with database.transaction() as connection:
        return connection.execute(sa.text(f"SELECT CAST(:literal AS {type_name})"), {"literal": literal}).scalar_one()


@any_values
@given(values=st.lists(TEXTS | st.none() | st.sampled_from(["", "NULL", "null", "{}", ",", '"', "\\", " ", "'"])))
def test_texts_come_back_as_they_were(shared_database: Database, values: list[str | None]) -> None:
    assert read_back(shared_database, text_array(values), "text[]") == values


@any_values
@given(values=st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_integers_come_back_as_they_were(shared_database: Database, values: list[int]) -> None:
    assert read_back(shared_database, integer_array(values), "bigint[]") == values


@any_values
@given(values=st.lists(st.uuids()))
def test_uuids_come_back_as_they_were(shared_database: Database, values: list[object]) -> None:
    assert read_back(shared_database, uuid_array(values), "uuid[]") == values  # type: ignore[arg-type]
