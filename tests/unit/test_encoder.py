"""Messages to rows in one pass: exactly what the plain way makes of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade import wire
from crossfade.document import Database, Fields
from crossfade.errors import InvalidArgument
from crossfade.mapping import Mappings
from crossfade.stores.postgres.rows import DocumentTable, DocumentTables
from crossfade_api.v1 import document_pb2 as pb
from tests import strategies
from tests.unit.test_mapping import MAPPING, documents
from violet import sample
from violet.mapping import MAPPINGS

DATABASE = Database("p")
TABLES = DocumentTables(Mappings([*MAPPINGS, MAPPING]), DATABASE)


def message_of(fields: Fields) -> pb.Document:
    message = pb.Document()
    wire.encode_fields(fields, message.fields)
    return pb.Document.FromString(message.SerializeToString())


def assert_same(table: DocumentTable, path: str, fields: Fields) -> None:
    """To the type and the sign of zero: True is no 1 to a column, and 0.0 no -0.0."""
    message = message_of(fields)
    plain = table.values(path, wire.decode_fields(message.fields))
    assert repr(table.values_sent(path, message)) == repr(plain)


@given(documents() | st.dictionaries(st.sampled_from(["email", "role"]), strategies.values()))
def test_every_document_is_the_row_that_the_plain_way_makes(fields: Fields) -> None:
    for path in ("everything/a", "elsewhere/a", "user_emails/a", "miner_responses/a_1"):
        assert_same(TABLES.of(path), path, fields)


def test_the_documents_of_the_sample() -> None:
    for path, fields in sample.documents(7, 60):
        assert_same(TABLES.of(path), path, fields)


@pytest.mark.parametrize("path", ["everything/a", "elsewhere/a", "user_emails/a"])
def test_a_value_without_a_type_is_refused(path: str) -> None:
    for place in ("nested", "nobody's"):
        message = pb.Document()
        message.fields[place].array_value.values.add().array_value.values.add()
        with pytest.raises(InvalidArgument):
            TABLES.of(path).values_sent(path, message)


def test_whoever_watches_is_told_of_the_same_misfits() -> None:
    told: list[Any] = []
    mappings = Mappings([MAPPING]).watched(lambda *words: told.append(words))
    table = DocumentTables(mappings, DATABASE).of("everything/a")
    fields: Fields = {"number": "7", "score": None, "text": "a\0", "other": 1, "flag": True}
    message = message_of(fields)
    table.values("everything/a", wire.decode_fields(message.fields))
    plain = list(told)
    told.clear()
    table.values_sent("everything/a", message)
    assert told == plain
    assert len(told) == 3
