"""Messages to values and back, for the messages of both packages."""

import struct
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from google.cloud.firestore_v1 import types
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from crossfade import wire
from crossfade.aggregate import Aggregation, AggregationKind
from crossfade.document import NAME, Database, Document, Fields, Reference, identical
from crossfade.errors import InvalidArgument, Unimplemented
from crossfade.nearest import Measure, Nearest
from crossfade.query import Cursor, FieldFilter, Op, Order, Query, full_order
from crossfade.write import Transform, TransformKind, Write
from crossfade_api.v1 import crossfade_pb2, document_pb2, query_pb2
from tests import strategies as some

DATABASE = Database("p")
PACKAGES: dict[str, Any] = {"crossfade": document_pb2, "google": types}


def message(package: str, name: str) -> Any:
    if package == "crossfade":
        return getattr(document_pb2, name)()
    return getattr(types, name).pb()()


@pytest.fixture(params=["crossfade", "google"])
def package(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# --- values and documents ----------------------------------------------------------------------


@given(some.values())
def test_values_come_back(value: Any) -> None:
    ours = document_pb2.Value()
    wire.encode_value(value, ours)
    assert identical(wire.decode_value(ours), value)
    theirs = types.Value.pb().FromString(ours.SerializeToString())
    assert identical(wire.decode_value(theirs), value)


@given(some.fields(), st.integers(1, 2**50), st.integers(1, 2**50))
def test_documents_come_back(content: dict[str, Any], created: int, updated: int) -> None:
    document = Document("c/a", content, created, updated)
    data = wire.document_bytes(document, DATABASE)
    back = wire.parse_document(data, DATABASE)
    assert (back.path, back.create_time, back.update_time) == ("c/a", created, updated)
    assert identical(back.fields, content)
    assert types.Document.pb().FromString(data).name == DATABASE.full("c/a")


def test_an_empty_value_is_no_value(package: str) -> None:
    with pytest.raises(InvalidArgument):
        wire.decode_value(message(package, "Value"))


@pytest.mark.parametrize("kind", ["field_reference_value", "function_value", "pipeline_value"])
def test_values_that_may_not_be_stored(kind: str) -> None:
    value = types.Value.pb()()
    if kind == "field_reference_value":
        value.field_reference_value = "x"
    else:
        getattr(value, kind).SetInParent()
    with pytest.raises(InvalidArgument):
        wire.decode_value(value)


@pytest.mark.parametrize(("seconds", "nanos"), [(2**60, 0), (0, -1), (0, 10**9), (-(2**40), 0)])
def test_times_out_of_range(seconds: int, nanos: int) -> None:
    value = document_pb2.Value()
    value.timestamp_value.seconds = seconds
    value.timestamp_value.nanos = nanos
    with pytest.raises(InvalidArgument, match="timestamp"):
        wire.decode_value(value)


@given(st.integers(-(2**55), 2**57))
def test_time_bytes(micros: int) -> None:
    assert wire.parse_time(wire.time_bytes(micros)) == micros


def test_nanoseconds_are_cut() -> None:
    value = document_pb2.Value()
    value.timestamp_value.nanos = 1_999
    moment: Any = wire.decode_value(value)
    assert moment.microsecond == 1


# --- envelopes ---------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300)), st.integers(0, 2**31 - 1), st.booleans())
def test_scan_reads_what_protobuf_wrote(documents: list[bytes], skipped: int, done: bool) -> None:
    reply = crossfade_pb2.QueryReply(skipped_results=skipped, done=done)
    data = wire.join_documents(documents) + reply.SerializeToString()
    scanned = list(wire.scan(data))
    assert [value for number, value in scanned if number == 1] == documents
    rest = {number: value for number, value in scanned if number != 1}
    assert rest.get(4, 0) == skipped
    assert bool(rest.get(6, 0)) is done


def test_scan_reads_fixed_widths() -> None:
    geo = struct.pack("<Bd", 1 << 3 | 1, 1.5) + struct.pack("<BI", 2 << 3 | 5, 7)
    assert list(wire.scan(geo)) == [(1, struct.pack("<d", 1.5)), (2, struct.pack("<I", 7))]


@pytest.mark.parametrize(
    "data", [b"\x0a", b"\x0a\x05abc", b"\x80", b"\x0b", b"\x09\x00", b"\x08\xff"]
)
def test_scan_refuses_what_ends_early(data: bytes) -> None:
    with pytest.raises(DecodeError):
        list(wire.scan(data))


@given(st.integers(0, 2**63))
def test_varints(number: int) -> None:
    assert list(wire.scan(b"\x08" + wire.varint(number))) == [(1, number)]


# --- writes ------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Data that is equal just when the values are identical, whatever the order of maps."""
    if is_dataclass(value):
        compared = [field.name for field in fields(value) if field.compare]
        return [type(value).__name__, *(plain(getattr(value, name)) for name in compared)]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return type(value).__name__, repr(value)


@given(some.writes())
def test_writes_come_back(write: Write) -> None:
    for name in PACKAGES:
        into = message(name, "Write")
        wire.encode_write(write, DATABASE, into)
        assert plain(wire.decode_write(into, DATABASE)) == plain(write)


def test_request_time_and_update_time_come_back(package: str) -> None:
    write = Write(
        "c/a",
        {},
        (("a.b", "c"),),
        (Transform(("t",), TransformKind.REQUEST_TIME),),
        None,
        5_000_001,
    )
    into = message(package, "Write")
    wire.encode_write(write, DATABASE, into)
    assert wire.decode_write(into, DATABASE) == write


def test_a_transform_alone_is_a_merge_of_nothing(package: str) -> None:
    into = message(package, "Write")
    into.transform.document = DATABASE.full("c/a")
    into.transform.field_transforms.add(field_path="n").increment.integer_value = 1
    write = wire.decode_write(into, DATABASE)
    assert write == Write("c/a", {}, (), (Transform(("n",), TransformKind.INCREMENT, 1),))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("c", "even number"),
        ("projects/x/databases/(default)/documents/c/a", "another database"),
        ("", "even number"),
        ("c/__x__", "reserved"),
    ],
)
def test_illegal_names_name_the_write(package: str, name: str, shown: str) -> None:
    into = message(package, "Write")
    into.delete = name
    with pytest.raises(InvalidArgument, match="writes\\[3\\]") as error:
        wire.decode_write(into, DATABASE, "writes[3]")
    assert shown in str(error.value)


def test_empty_writes_and_transforms(package: str) -> None:
    with pytest.raises(InvalidArgument, match="update, delete or transform"):
        wire.decode_write(message(package, "Write"), DATABASE)
    into = message(package, "Write")
    into.update.name = "c/a"
    item = into.update_transforms.add(field_path="a")
    with pytest.raises(InvalidArgument, match="type"):
        wire.decode_write(into, DATABASE)
    item.set_to_server_value = 0
    with pytest.raises(InvalidArgument, match="REQUEST_TIME"):
        wire.decode_write(into, DATABASE)


# --- queries -----------------------------------------------------------------------------------


def query_message(package: str, data: bytes = b"") -> Any:
    if package == "crossfade":
        return query_pb2.StructuredQuery.FromString(data)
    return types.StructuredQuery.pb().FromString(data)


@given(some.queries())
def test_queries_come_back(query: Query) -> None:
    data = wire.encode_query(query, DATABASE)
    for name in PACKAGES:
        back = wire.decode_query(query_message(name, data), query.parent, DATABASE)
        assert plain(back) == plain(query)


@given(some.queries())
def test_raw_queries_say_the_same(query: Query) -> None:
    """The bytes that came are kept unless they name documents, and mean the same."""
    data = wire.encode_query(query, DATABASE)
    decoded = wire.decode_query(query_message("crossfade", data), query.parent, DATABASE)
    sent = wire.encode_query(decoded, DATABASE)
    back = wire.decode_query(query_message("google", sent), query.parent, DATABASE)
    assert plain(back) == plain(query)
    at_names = any(
        order.path == NAME and index < len(cursor.values)
        for cursor in (query.start, query.end)
        if cursor is not None
        for index, order in enumerate(full_order(query))
    )
    assert (decoded.raw is None) is at_names


def test_relative_names_become_full_ones() -> None:
    asked = query_pb2.StructuredQuery()
    getattr(asked, "from").add(collection_id="c")
    leaf = asked.where.field_filter
    leaf.field.field_path = "__name__"
    leaf.op = query_pb2.StructuredQuery.FieldFilter.EQUAL
    leaf.value.reference_value = "c/a"
    query = wire.decode_query(asked, "", DATABASE)
    assert query.where == FieldFilter(NAME, Op.EQUAL, Reference("c/a"))
    assert query.raw is None
    sent = query_message("google", wire.encode_query(query, DATABASE))
    assert sent.where.field_filter.value.reference_value == DATABASE.full("c/a")


def test_what_is_not_known_is_refused_and_not_ignored() -> None:
    asked = types.StructuredQuery.pb()()
    asked.from_.add(collection_id="c")
    asked.find_nearest.vector_field.field_path = "v"
    with pytest.raises(Unimplemented):
        wire.decode_query(query_message("crossfade", asked.SerializeToString()), "", DATABASE)


def test_bad_queries(package: str) -> None:
    asked = query_message(package)
    asked.where.composite_filter.op = 1
    with pytest.raises(InvalidArgument, match="without filters"):
        wire.decode_query(asked, "", DATABASE)
    asked = query_message(package)
    asked.where.SetInParent()
    with pytest.raises(InvalidArgument, match="empty filter"):
        wire.decode_query(asked, "", DATABASE)
    asked = query_message(package)
    asked.where.field_filter.field.field_path = "a"
    asked.where.field_filter.value.null_value = 0
    with pytest.raises(InvalidArgument, match="operator"):
        wire.decode_query(asked, "", DATABASE)
    with pytest.raises(InvalidArgument, match="parent"):
        wire.decode_query(query_message(package), "c", DATABASE)


def test_zero_is_a_limit_and_none_is_none() -> None:
    for limit in (0, None, 5):
        data = wire.encode_query(Query(collection="c", limit=limit), DATABASE)
        assert wire.decode_query(query_message("crossfade", data), "", DATABASE).limit == limit
    for cursor in (None, Cursor((), before=False), Cursor((1,), before=True)):
        query = Query(collection="c", order_by=(Order(("a",)),), start=cursor)
        data = wire.encode_query(query, DATABASE)
        assert wire.decode_query(query_message("crossfade", data), "", DATABASE).start == cursor


def test_a_delete_has_no_mask() -> None:
    message = types.Write.pb()(delete=DATABASE.full("c/a"))
    message.update_mask.field_paths.append("v")
    with pytest.raises(InvalidArgument, match="must not specify a document mask"):
        wire.decode_write(message, DATABASE)


# --- aggregations and neighbours ----------------------------------------------------------------


def test_aggregations() -> None:
    message = types.StructuredAggregationQuery.pb()()
    assert wire.decode_aggregations(message) == ()
    message.aggregations.add().count.up_to.value = 7
    message.aggregations.add(alias="total").sum.field.field_path = "a.b"
    message.aggregations.add().avg.field.field_path = "`a.b`"
    assert wire.decode_aggregations(message) == (
        Aggregation(AggregationKind.COUNT, "field_1", up_to=7),
        Aggregation(AggregationKind.SUM, "total", ("a", "b")),
        Aggregation(AggregationKind.AVERAGE, "field_2", ("a.b",)),
    )
    message.aggregations.add(alias="of what?")
    with pytest.raises(InvalidArgument):
        wire.decode_aggregations(message)


@pytest.mark.parametrize("threshold", [None, 0.0, 1.5])
@pytest.mark.parametrize("result_field", [None, "far away"])
def test_nearest_comes_back(threshold: float | None, result_field: str | None) -> None:
    vector: Fields = {"__type__": "__vector__", "value": [1.0, -0.0]}
    nearest = Nearest(("a b", "c"), vector, Measure.COSINE, 10, result_field, threshold)
    query = Query(collection="c", nearest=nearest)
    message = types.StructuredQuery.pb().FromString(wire.encode_query(query, DATABASE))
    assert wire.decode_query(message, "", DATABASE) == query
    with pytest.raises(Unimplemented):
        wire.decode_query(
            query_pb2.StructuredQuery.FromString(wire.encode_query(query, DATABASE)), "", DATABASE
        )
    message.find_nearest.distance_measure = 4
    with pytest.raises(InvalidArgument):
        wire.decode_query(message, "", DATABASE)
