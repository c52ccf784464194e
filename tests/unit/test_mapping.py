"""The law of rows: nothing is dropped, nothing is invented, for every legal document."""

import math
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    LargeBinary,
    MetaData,
    Table,
)
from sqlalchemy.dialects.postgresql import JSONB

from crossfade import wire
from crossfade.document import Fields, GeoPoint, Reference, identical
from crossfade.mapping import (
    INDEXED_TEXT_BYTES,
    CollectionMapping,
    Mappings,
    document_columns,
    escape_path,
    from_json,
    text_column,
    to_json,
    unescape_path,
)
from crossfade.stores.postgres.decoder import make_decoder
from crossfade_api.v1 import document_pb2 as pb
from tests import strategies
from violet.mapping import MAPPINGS

TABLE = Table(
    "everything",
    MetaData(),
    *document_columns(),
    text_column("text"),
    text_column("status"),
    Column("number", BigInteger),
    Column("score", Double),
    Column("flag", Boolean),
    Column("at", DateTime(timezone=True)),
    Column("nested", JSONB),
    Column("uids", ARRAY(BigInteger)),
    Column("blob", LargeBinary),
    Column("reported_epoch", BigInteger, info={"field": "epoch"}),
    Index("everything_status", "status"),
)
MAPPING = CollectionMapping("everything", TABLE)
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "text": st.sampled_from(["", "a", "ä"]),
    "status": st.sampled_from(["done", "x" * INDEXED_TEXT_BYTES, "x" * (INDEXED_TEXT_BYTES + 1)]),
    "number": st.integers(-(2**63), 2**63 - 1),
    "score": st.floats(),
    "flag": st.booleans(),
    "at": st.datetimes(timezones=st.just(UTC)),
    "nested": st.dictionaries(st.sampled_from(["a", "$d", "n\0l"]), strategies.values(1)),
    "uids": st.lists(st.integers(-5, 5), max_size=3),
    "blob": st.binary(max_size=3),
    "epoch": st.integers(0, 9),
}
NAMES = st.sampled_from(["$d", "$m", "$", "n\0l", "other", "id", "remainder", "reported_epoch"])


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Each field that has a column: absent, of its type, or anything; and other fields."""
    fields = draw(st.dictionaries(NAMES, strategies.values(2), max_size=3))
    for name, fitting in FITTING.items():
        choice = draw(st.integers(0, 3))
        if choice:
            fields[name] = draw(fitting if choice > 1 else strategies.values(2))
    return fields


def through_json(value: Any) -> Any:
    return from_json(orjson.loads(orjson.dumps(to_json(value))))


@given(strategies.values())
def test_tagged_json_keeps_every_value(value: Any):
    assert identical(through_json(value), value)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), strategies.values(1)))
def test_tagged_json_keeps_every_key(value: dict[str, Any]):
    assert identical(through_json(value), value)


def test_tagged_json_can_be_read():
    value: Fields = {
        "n": 1,
        "d": 1.5,
        "nan": math.nan,
        "zero": -0.0,
        "t": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        "b": b"hi",
        "r": Reference("projects/p/databases/d/documents/c/1"),
        "g": GeoPoint(1.0, 2.0),
        "s": "a\0b",
        "odd": {"$x": None},
        "list": [True, "x"],
    }
    assert to_json(value) == {
        "n": 1,
        "d": {"$d": 1.5},
        "nan": {"$d": "NaN"},
        "zero": {"$d": "-0.0"},
        "t": {"$t": 1_000_000},
        "b": {"$b": "aGk="},
        "r": {"$r": "projects/p/databases/d/documents/c/1"},
        "g": {"$g": [{"$d": 1.0}, {"$d": 2.0}]},
        "s": {"$s": ["a", "b"]},
        "odd": {"$m": [["$x", None]]},
        "list": [True, "x"],
    }


def test_numbers_that_a_json_store_writes_its_own_way():
    assert identical(from_json({"$d": 5}), 5.0)
    assert identical(from_json({"$d": 100_000_000_000_000_000_000}), 1e20)


@given(documents())
@settings(max_examples=400)
def test_a_row_gives_its_document_back(fields: dict[str, Any]):
    row = MAPPING.to_row(fields)
    remainder = orjson.loads(orjson.dumps(row.remainder))
    assert identical(MAPPING.to_fields(row.values, remainder), fields)


@given(documents())
def test_misfits_name_the_columned_fields_of_the_remainder(fields: dict[str, Any]):
    row = MAPPING.to_row(fields)
    rest = {} if row.remainder is None else from_json(row.remainder)
    assert isinstance(rest, dict)
    expected = {name for name in rest if name in MAPPING.by_field}
    odd = any(name.startswith("$") or "\0" in name for name in rest)
    assert set(row.misfits or ()) == expected | ({"$m"} if odd else set())
    for entry, value in zip(MAPPING.columns, row.values, strict=True):
        assert (value is not None) == (entry.field in fields and entry.field not in rest)


@given(documents())
@settings(max_examples=400)
def test_the_generated_decoder_does_what_the_plain_way_does(fields: dict[str, Any]):
    row = MAPPING.to_row(fields)
    remainder = orjson.loads(orjson.dumps(row.remainder))
    generated = pb.Document()
    make_decoder(MAPPING)(("key", *row.values, remainder, 1_500_000, -1, 7), generated)
    plain = pb.Document()
    wire.encode_fields(MAPPING.to_fields(row.values, remainder), plain.fields)
    wire.encode_time(1_500_000, plain.create_time)
    wire.encode_time(-1, plain.update_time)
    assert generated.SerializeToString(deterministic=True) == plain.SerializeToString(
        deterministic=True
    )


@given(strategies.fields())
def test_the_decoder_of_the_generic_table(fields: dict[str, Any]):
    message = pb.Document()
    make_decoder(None)(("key", orjson.loads(orjson.dumps(to_json(fields))), 0, 0, 1), message)
    assert identical(wire.decode_fields(message.fields), fields)


def test_times_of_zero_are_present():
    row = MAPPING.to_row({"at": datetime(1970, 1, 1, tzinfo=UTC)})
    message = pb.Document()
    make_decoder(MAPPING)(("key", *row.values, row.remainder, 0, 0, 1), message)
    assert message.HasField("create_time")
    assert message.HasField("update_time")
    assert message.fields["at"].WhichOneof("value_type") == "timestamp_value"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", None),
        ("text", "a\0"),
        ("text", 1),
        ("status", "x" * (INDEXED_TEXT_BYTES + 1)),
        ("status", "ä" * (INDEXED_TEXT_BYTES // 2 + 1)),
        ("number", True),
        ("number", 1.0),
        ("score", 1),
        ("score", math.nan),
        ("flag", 0),
        ("blob", "a"),
        ("at", "2026-01-01T00:00:00"),
        ("at", datetime.max.replace(tzinfo=UTC)),
        ("at", datetime.min.replace(tzinfo=UTC)),
        ("nested", "text"),
        ("uids", [1, 2.0]),
        ("uids", [True]),
        ("uids", [1, None]),
        ("uids", {"a": 1}),
    ],
)
def test_what_a_column_cannot_hold_goes_to_the_remainder(field: str, value: Any):
    row = MAPPING.to_row({field: value})
    assert row.values == (None,) * len(MAPPING.columns)
    assert row.misfits == [field]
    assert identical(from_json(row.remainder), {field: value})


def test_absent_is_nothing_and_null_is_something():
    assert MAPPING.to_row({}).remainder is None
    assert MAPPING.to_row({"status": None}).remainder == {"status": None}


def test_a_text_in_an_index_may_be_as_long_as_the_limit():
    assert MAPPING.to_row({"status": "x" * INDEXED_TEXT_BYTES}).remainder is None
    assert MAPPING.to_row({"text": "x" * 100_000}).remainder is None


@given(st.text(st.sampled_from("\0\1\2a/"), max_size=8), st.text(st.sampled_from("\0\1\2a/")))
def test_escaped_paths_keep_path_and_order(one: str, other: str):
    assert unescape_path(escape_path(one)) == one
    assert "\0" not in escape_path(one)
    assert (escape_path(one) < escape_path(other)) == (one < other)


def test_only_root_collections_are_mapped():
    mappings = Mappings([MAPPING])
    assert mappings.get("everything") is MAPPING
    assert mappings.get("tasks/1/everything") is None


def test_the_field_of_a_column_may_have_another_name():
    status = MAPPINGS.get("miner_status")
    assert status is not None
    assert status.by_field["epoch"].column == "reported_epoch"


def test_a_column_of_an_unknown_type_is_refused():
    table = Table("t", MetaData(), *document_columns(), Column("x", ARRAY(Double)))
    with pytest.raises(TypeError, match="column x"):
        CollectionMapping("t", table)
