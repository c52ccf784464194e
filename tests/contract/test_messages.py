"""What an illegal request is told: Firestore's status and Firestore's words.

`words` stand in our message, which may name the field before them and say more behind
them. `source` says how we know them:

EMULATOR  the official emulator says just this (and the test asks it)
CLOUD     messages of the cloud that its documentation, its clients or its users quote;
          the emulator has the same status with other words
STATUS    only the status is known; the words are ours
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import grpc.aio
import pytest
from google.cloud.firestore_v1 import types

from crossfade import wire
from crossfade.aggregate import Aggregation, AggregationKind
from crossfade.document import NAME, Database, Fields, GeoPoint, Reference, Value
from crossfade.nearest import Measure, Nearest
from crossfade.query import CompositeFilter, Cursor, FieldFilter, Filter, Op, Order, Query
from crossfade.write import Transform, TransformKind, Write
from tests.contract.protocol import Server, fill_aggregation
from tests.firestore_fixture import fresh_database


class Source(Enum):
    EMULATOR = auto()
    CLOUD = auto()
    STATUS = auto()


EMULATOR, CLOUD, STATUS = Source
INVALID, PRECONDITION = "INVALID_ARGUMENT", "FAILED_PRECONDITION"
Message = Any
Make = Callable[[Database], tuple[str, Message]]
"""A method and its request."""


@dataclass(frozen=True)
class Row:
    make: Make
    code: str
    words: str
    source: Source


# --- requests ----------------------------------------------------------------------------------


def commit(*writes: Write, broken: Callable[[Message], None] | None = None) -> Make:
    def make(database: Database) -> tuple[str, Message]:
        request = types.CommitRequest.pb()(database=database.name)
        for write in writes:
            wire.encode_write(write, database, request.writes.add())
        if broken is not None:
            broken(request)
        return "Commit", request

    return make


def put(value: Value, name: str = "v") -> Make:
    return commit(Write("c/new", {name: value}))


def run(query: Query, broken: Callable[[Message], None] | None = None) -> Make:
    def make(database: Database) -> tuple[str, Message]:
        request = types.RunQueryRequest.pb()(parent=database.full(query.parent))
        request.structured_query.ParseFromString(wire.encode_query(query, database))
        if broken is not None:
            broken(request.structured_query)
        return "RunQuery", request

    return make


def where(*filters: Filter, any_of: bool = False, orders: tuple[Order, ...] = ()) -> Make:
    whole = filters[0] if len(filters) == 1 else CompositeFilter(any_of, filters)
    return run(Query(collection="c", where=whole, order_by=orders))


def aggregate(*aggregations: Aggregation, **query: Any) -> Make:
    def make(database: Database) -> tuple[str, Message]:
        asked = Query(**{"collection": "c"} | query)
        request = types.RunAggregationQueryRequest.pb()(parent=database.full(asked.parent))
        message = request.structured_aggregation_query
        message.structured_query.ParseFromString(wire.encode_query(asked, database))
        for aggregation in aggregations:
            fill_aggregation(aggregation, message.aggregations.add())
        return "RunAggregationQuery", request

    return make


def near(**changes: Any) -> Make:
    """A query for the nearest neighbour, and what else is asked of it or beside it."""
    beside = {
        name: changes.pop(name) for name in ("offset", "order_by", "start") if name in changes
    }
    top = changes.pop("most", None)
    nearest = replace(Nearest(("v",), vector(1.0), Measure.EUCLIDEAN, 1), **changes)
    return run(Query(collection="c", nearest=nearest, limit=top, **beside))


def call(method: str, kind: Any, **fields: Any) -> Make:
    """A request whose texts may hold {root} and {name} of the database."""

    def make(database: Database) -> tuple[str, Message]:
        def filled(value: Any) -> Any:
            if isinstance(value, str):
                return value.format(root=database.root, name=database.name)
            return [filled(item) for item in value] if isinstance(value, list) else value

        return method, kind.pb()(**{name: filled(value) for name, value in fields.items()})

    return make


def vector(*items: Value) -> Fields:
    return {"__type__": "__vector__", "value": list(items)}


def deep(levels: int) -> Value:
    value: Value = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def is_(path: str, op: Op, value: Value = None) -> FieldFilter:
    return FieldFilter((path,), op, value)


def set_filter(message: Message, op: int, *, value: bool = True) -> None:
    leaf = message.where.field_filter
    leaf.field.field_path, leaf.op = "v", op
    if value:
        leaf.value.integer_value = 1


def order(message: Message, path: str, direction: int) -> None:
    message.order_by.add(direction=direction).field.field_path = path


def many(size: int) -> list[Value]:
    return list(range(size))


def transform(kind: TransformKind, operand: Value, *path: str) -> Transform:
    return Transform(path or ("v",), kind, operand)


COUNT = Aggregation(AggregationKind.COUNT, "n")
SUM = Aggregation(AggregationKind.SUM, "s", ("v",))
FIRST = Reference("projects/p/databases/(default)/documents/c/a")
OLD, LATE = 1_700_000_000_000_000, 4_000_000_000_000_000
A = "c/a"  # exists, with v = 1
BY_V = (Order(("v",)),)
BY_NAME = (Order(NAME),)
REGEX = (
    r"Unquoted property paths must match regex ([a-zA-Z_][a-zA-Z_0-9]*), and quoted property "
    r"paths must match regex (`(?:[^`\\]|(?:\\.))+`)"
)

ROWS: dict[str, Row] = {
    # --- preconditions
    "create what is there": Row(
        commit(Write(A, {}, exists=False)),
        "ALREADY_EXISTS",
        "Document already exists: {root}/c/a",
        CLOUD,
    ),
    "update what is not there": Row(
        commit(Write("c/no", {}, exists=True)),
        "NOT_FOUND",
        "No document to update: {root}/c/no",
        CLOUD,
    ),
    "delete what is not there": Row(
        commit(Write("c/no", None, exists=True)),
        "NOT_FOUND",
        "No document to update: {root}/c/no",
        CLOUD,
    ),
    "an old update_time": Row(
        commit(Write(A, {}, update_time=OLD)),
        PRECONDITION,
        f"does not match the required base version ({OLD})",
        EMULATOR,
    ),
    "an update_time of nothing": Row(
        commit(Write("c/no", {}, update_time=OLD)),
        PRECONDITION,
        f"the stored version (0) does not match the required base version ({OLD})",
        EMULATOR,
    ),
    "an update_time to come": Row(
        commit(Write(A, {}, update_time=LATE)),
        INVALID,
        "Invalid base version, it is greater than the stored version: ",
        EMULATOR,
    ),
    "set, then create": Row(
        commit(Write("c/no", {}), Write("c/no", {}, exists=False)),
        INVALID,
        "Cannot upsert then insert an entity in the same request.",
        EMULATOR,
    ),
    "delete, then update": Row(
        commit(Write(A, None), Write(A, {}, exists=True)),
        INVALID,
        "Cannot delete then update an entity in the same request.",
        EMULATOR,
    ),
    "two different update_times": Row(
        commit(Write(A, {}), Write(A, {}, update_time=OLD)),
        INVALID,
        "Cannot collapse mutations with different version preconditions",
        EMULATOR,
    ),
    # --- values
    "array in array": Row(
        put([[1]]), INVALID, "Cannot convert an array value in an array value.", EMULATOR
    ),
    "vector in array": Row(
        put([vector(1.0)]), INVALID, "Cannot convert a vector value in an array value.", EMULATOR
    ),
    "21 maps": Row(
        put(deep(21)), INVALID, "Property v contains an invalid nested entity.", EMULATOR
    ),
    "an empty name in a map": Row(
        put({"": 1}), INVALID, "Property v contains an invalid nested entity.", EMULATOR
    ),
    "a long name in a map": Row(
        put({"x" * 1501: 1}), INVALID, "Property v contains an invalid nested entity.", EMULATOR
    ),
    "an odd __type__": Row(
        put({"__type__": "?"}), INVALID, "Property v contains an invalid nested entity.", EMULATOR
    ),
    "a reserved name in a map": Row(
        put({"__x__": 1}), INVALID, "field name '__x__' is reserved.", EMULATOR
    ),
    "a reserved name": Row(put(1, "__x__"), INVALID, "field name '__x__' is reserved.", CLOUD),
    "an empty name": Row(put(1, ""), INVALID, "The property.name is the empty string.", EMULATOR),
    "a long name": Row(
        put(1, "x" * 1501), INVALID, "The property.name is longer than 1500 bytes.", EMULATOR
    ),
    "a long text": Row(
        put("x" * 1_048_488),
        INVALID,
        'The value of property "v" is longer than 1048487 bytes.',
        EMULATOR,
    ),
    "a large document": Row(
        commit(Write("c/new", {"v": "x" * 600_000, "w": "x" * 600_000})),
        INVALID,
        "exceeds the maximum allowed size of 1,048,576 bytes.",
        CLOUD,
    ),
    "a latitude": Row(put(GeoPoint(90.5, 0.0)), INVALID, "-90.0 to 90.0", EMULATOR),
    "a longitude": Row(put(GeoPoint(0.0, 180.5)), INVALID, "-180.0 to 180.0.", EMULATOR),
    "a vector of none": Row(put(vector()), INVALID, "Cannot have a zero length vector.", EMULATOR),
    "a vector of integers": Row(
        put(vector(1)), INVALID, "Vector must only contain values of type 'double'", EMULATOR
    ),
    "a vector with NaN": Row(
        put(vector(float("nan"))), INVALID, "Vector cannot contain NaN values.", EMULATOR
    ),
    "a long vector": Row(
        put(vector(*[1.0] * 2049)), INVALID, "Vectors must be at most 2048 dimensions.", EMULATOR
    ),
    "a vector and more": Row(
        put(vector(1.0) | {"more": 1}),
        INVALID,
        "Vector Value map has extraneous entries.",
        EMULATOR,
    ),
    "a vector without value": Row(
        put({"__type__": "__vector__"}), INVALID, "Vector map is missing key 'value'.", EMULATOR
    ),
    "a reference to nothing": Row(put(Reference("c/a")), INVALID, "full name", STATUS),
    "a reference with a reserved id": Row(
        put(Reference(FIRST.name.replace("/a", "/__x__"))),
        INVALID,
        'Resource id "__x__" is invalid because it is reserved.',
        EMULATOR,
    ),
    "no value": Row(
        commit(Write(A, {"v": 1}), broken=lambda m: m.writes[0].update.fields["v"].Clear()),
        INVALID,
        "Cannot convert firestore.v1.Value with type unset",
        EMULATOR,
    ),
    "the year 10000": Row(
        commit(Write(A, {}), broken=lambda m: _year_10000(m.writes[0].update.fields["v"])),
        INVALID,
        "Timestamp seconds exceeds limit for field",
        EMULATOR,
    ),
    # --- names
    "a collection": Row(commit(Write("c", {})), INVALID, 'lacks "/"', EMULATOR),
    "a reserved id": Row(
        commit(Write("c/__x__", {})),
        INVALID,
        'Resource id "__x__" is invalid because it is reserved.',
        EMULATOR,
    ),
    "a reserved collection": Row(
        commit(Write("__x__/a", {})),
        INVALID,
        'Collection id "__x__" is invalid because it is reserved.',
        EMULATOR,
    ),
    "an empty id": Row(commit(Write("c//d/a", {})), INVALID, "lacks a resource id", EMULATOR),
    "a dot": Row(commit(Write("c/.", {})), INVALID, 'contains a resource id "."', EMULATOR),
    "a long id": Row(
        commit(Write("c/" + "x" * 1501, {})),
        INVALID,
        "The key path element name is longer than 1500 bytes.",
        EMULATOR,
    ),
    "a relative name": Row(
        call("BatchGetDocuments", types.BatchGetDocumentsRequest, database="{name}", documents=[A]),
        INVALID,
        'Document name "c/a" lacks "projects" at index 0.',
        EMULATOR,
    ),
    "a document that is not there": Row(
        call("GetDocument", types.GetDocumentRequest, name="{root}/c/no"),
        "NOT_FOUND",
        'Document "{root}/c/no" not found.',
        CLOUD,
    ),
    # --- writes
    "a write of nothing": Row(
        commit(broken=lambda m: m.writes.add()), INVALID, "empty write operation", EMULATOR
    ),
    "a delete with a mask": Row(
        commit(Write(A, None), broken=lambda m: m.writes[0].update_mask.field_paths.append("v")),
        INVALID,
        "a delete must not specify a document mask.",
        EMULATOR,
    ),
    "a mask of nothing": Row(
        commit(Write(A, {}), broken=lambda m: m.writes[0].update_mask.field_paths.append("")),
        INVALID,
        "Invalid empty property path string.",
        EMULATOR,
    ),
    "a mask with a hole": Row(
        commit(Write(A, {}), broken=lambda m: m.writes[0].update_mask.field_paths.append("a..b")),
        INVALID,
        f'Invalid property path "a..b". {REGEX}',
        EMULATOR,
    ),
    "a mask with a digit": Row(
        commit(Write(A, {}), broken=lambda m: m.writes[0].update_mask.field_paths.append("1")),
        INVALID,
        f'Invalid property path "1". {REGEX}',
        EMULATOR,
    ),
    "a reserved mask": Row(
        commit(Write(A, {}, (("a", "__x__"),))),
        INVALID,
        "Invalid reserved name in field path __x__",
        EMULATOR,
    ),
    "an increment by a text": Row(
        commit(Write(A, {}, (), (transform(TransformKind.INCREMENT, "1"),))),
        INVALID,
        "Input must be int64 or double.",
        EMULATOR,
    ),
    "a transform inside another": Row(
        commit(
            Write(
                *(A, {}, ()),
                (
                    transform(TransformKind.INCREMENT, 1, "v"),
                    transform(TransformKind.INCREMENT, 1, "v", "w"),
                ),
            )
        ),
        INVALID,
        "Cannot transform property v and its nested property at the same time.",
        EMULATOR,
    ),
    "a transform of no kind": Row(
        commit(
            Write(A, {}),
            broken=lambda m: m.writes[0].update_transforms.add(field_path="v"),
        ),
        INVALID,
        "Operation type must be specified for field transformation.",
        EMULATOR,
    ),
    "a server value of no kind": Row(
        commit(
            Write(A, {}),
            broken=lambda m: m.writes[0].update_transforms.add(
                field_path="v", set_to_server_value=0
            ),
        ),
        INVALID,
        "ServerValue type must be specified for set_to_server_value transformation",
        EMULATOR,
    ),
    # --- filters
    "31 in": Row(
        where(is_("v", Op.IN, many(31))),
        INVALID,
        "'IN' supports up to 30 comparison values.",
        EMULATOR,
    ),
    "31 of any": Row(
        where(is_("v", Op.ARRAY_CONTAINS_ANY, many(31))),
        INVALID,
        "'ARRAY_CONTAINS_ANY' supports up to 30 comparison values.",
        EMULATOR,
    ),
    "11 not-in": Row(
        where(is_("v", Op.NOT_IN, many(11))),
        INVALID,
        "'NOT_IN' supports up to 10 comparison values.",
        EMULATOR,
    ),
    "in nothing": Row(
        where(is_("v", Op.IN, [])), INVALID, "'IN' requires an non-empty ArrayValue.", EMULATOR
    ),
    "in a number": Row(
        where(is_("v", Op.NOT_IN, 1)), INVALID, "'NOT_IN' requires an ArrayValue.", EMULATOR
    ),
    "32 disjunctions": Row(
        where(is_("v", Op.IN, many(16)), is_("w", Op.IN, [1, 2])),
        INVALID,
        "Too many disjunctions after normalization. Result had 32 disjunctions which is more "
        "than the maximum of 30",
        EMULATOR,
    ),
    "two arrays": Row(
        where(is_("v", Op.ARRAY_CONTAINS, 1), is_("w", Op.ARRAY_CONTAINS_ANY, [1])),
        INVALID,
        "A maximum of 1 'ARRAY_CONTAINS' filter is allowed per disjunction.",
        EMULATOR,
    ),
    "two negations": Row(
        where(is_("v", Op.NOT_EQUAL, 1), is_("w", Op.NOT_IN, [1])),
        INVALID,
        "Only a single 'NOT_EQUAL', 'NOT_IN', 'IS_NOT_NAN', or 'IS_NOT_NULL' filter allowed per "
        "query.",
        EMULATOR,
    ),
    "not-in beside in": Row(
        where(is_("v", Op.NOT_IN, [1]), is_("w", Op.IN, [1])),
        INVALID,
        "'NOT_IN' cannot be used in the same query with 'IN', 'ARRAY_CONTAINS_ANY' or 'OR'.",
        EMULATOR,
    ),
    "11 inequalities": Row(
        where(*(is_(f"f{index}", Op.GREATER_THAN, 1) for index in range(11))),
        INVALID,
        "A query may not have more than 10 distinct inequality fields.",
        EMULATOR,
    ),
    "a text as name": Row(
        where(FieldFilter(NAME, Op.EQUAL, "a")),
        INVALID,
        "__key__ filter value must be a Key",
        EMULATOR,
    ),
    "an array in a name": Row(
        where(FieldFilter(NAME, Op.ARRAY_CONTAINS, Reference(A))),
        INVALID,
        "the name __key__ is reserved",
        EMULATOR,
    ),
    "a reserved field": Row(
        where(is_("__x__", Op.EQUAL, 1)),
        INVALID,
        "Invalid reserved name in field path __x__",
        EMULATOR,
    ),
    "no operator": Row(
        run(Query(collection="c"), lambda m: set_filter(m, 0)),
        INVALID,
        "Unknown FieldFilter operator",
        EMULATOR,
    ),
    "no operand": Row(
        run(Query(collection="c"), lambda m: set_filter(m, 5, value=False)),
        INVALID,
        "Cannot convert firestore.v1.Value with type unset",
        EMULATOR,
    ),
    "no unary operator": Row(
        run(
            Query(collection="c"),
            lambda m: setattr(m.where.unary_filter.field, "field_path", "v"),
        ),
        INVALID,
        "Unknown UnaryFilter operator",
        EMULATOR,
    ),
    "no composite operator": Row(
        run(
            Query(
                collection="c", where=CompositeFilter(any_of=True, filters=(is_("v", Op.IS_NULL),))
            ),
            lambda m: setattr(m.where.composite_filter, "op", 0),
        ),
        INVALID,
        "Unsupported CompositeFilter operator",
        EMULATOR,
    ),
    "no filter": Row(
        run(Query(collection="c"), lambda m: m.where.SetInParent()),
        INVALID,
        "Unknown Filter type",
        EMULATOR,
    ),
    # --- orders, cursors, scope
    "a field twice": Row(
        run(Query(collection="c", order_by=BY_V * 2)),
        INVALID,
        "order by clause cannot contain duplicate fields v",
        EMULATOR,
    ),
    "after the name": Row(
        run(Query(collection="c", order_by=BY_NAME + BY_V)),
        INVALID,
        "order by clause cannot contain more fields after the key",
        EMULATOR,
    ),
    "an inequality after the name": Row(
        where(is_("v", Op.GREATER_THAN, 1), orders=BY_NAME),
        INVALID,
        "order by clause cannot contain more fields after the key",
        EMULATOR,
    ),
    "an unknown direction": Row(
        run(Query(collection="c"), lambda m: order(m, "v", 9)),
        INVALID,
        "Unrecognized ordering",
        EMULATOR,
    ),
    "a long cursor": Row(
        run(Query(collection="c", order_by=BY_V, start=Cursor((1, 2), before=True))),
        INVALID,
        "Cursor has too many values.",
        EMULATOR,
    ),
    "a name as cursor": Row(
        run(Query(collection="c", order_by=BY_NAME, end=Cursor(("a",), before=True))),
        INVALID,
        "Cursor __key__ value is not a document reference.",
        EMULATOR,
    ),
    "a negative offset": Row(
        run(Query(collection="c", offset=-1)), INVALID, "offset is negative", EMULATOR
    ),
    "a negative limit": Row(
        run(Query(collection="c", limit=-1)), INVALID, "limit is negative", EMULATOR
    ),
    "two collections": Row(
        run(Query(collection="c"), lambda m: m.from_.add(collection_id="d")),
        INVALID,
        "StructuredQuery.from cannot have more than one collection selector.",
        EMULATOR,
    ),
    "a path as collection": Row(
        run(Query(collection="a/b")),
        INVALID,
        'Collection id "a/b" is invalid because it contains "/".',
        EMULATOR,
    ),
    "all collections, by a field": Row(
        run(Query(where=is_("v", Op.EQUAL, 1))), INVALID, "kind is required for", EMULATOR
    ),
    "a group below a document": Row(
        run(Query("c/a", "c", all_descendants=True, order_by=BY_V)),
        INVALID,
        "collection group queries are only allowed at the root parent",
        EMULATOR,
    ),
    "no query": Row(
        call("RunQuery", types.RunQueryRequest, parent="{root}"),
        INVALID,
        "only structured queries are supported",
        EMULATOR,
    ),
    # --- aggregations
    "no aggregation": Row(aggregate(), INVALID, "Aggregations can not be empty.", EMULATOR),
    "six aggregations": Row(
        aggregate(*(Aggregation(AggregationKind.COUNT, f"n{index}") for index in range(6))),
        INVALID,
        "The maximum number of aggregations allowed in an aggregation query is 5. Received: 6",
        CLOUD,
    ),
    "an alias twice": Row(
        aggregate(COUNT, COUNT),
        INVALID,
        "Aggregation aliases contain duplicate alias: n.",
        EMULATOR,
    ),
    "a reserved alias": Row(
        aggregate(Aggregation(AggregationKind.COUNT, "__x__")),
        INVALID,
        'The property.name "__x__" is reserved.',
        EMULATOR,
    ),
    "a long alias": Row(
        aggregate(Aggregation(AggregationKind.COUNT, "x" * 1501)),
        INVALID,
        "The property.name is longer than 1500 bytes.",
        EMULATOR,
    ),
    "up to less than nothing": Row(
        aggregate(Aggregation(AggregationKind.COUNT, "n", up_to=-1)),
        INVALID,
        "The `up_to` value in a COUNT aggregation must be greater than",
        EMULATOR,
    ),
    "a sum of names": Row(
        aggregate(Aggregation(AggregationKind.SUM, "s", NAME)),
        INVALID,
        "Aggregations are not supported for the property: __",
        EMULATOR,
    ),
    "a sum of a projection": Row(
        aggregate(SUM, select=(("v",),)),
        INVALID,
        "Cannot apply property masks when aggregation fields are present.",
        EMULATOR,
    ),
    "a sum by name": Row(
        aggregate(SUM, order_by=BY_NAME),
        INVALID,
        "This query requires an index that has fields [v] after __name__ and Firestore does not "
        "currently support such an index.",
        EMULATOR,
    ),
    # --- nearest neighbours
    "no nearest": Row(
        near(limit=0),
        INVALID,
        "FindNearest.limit must be a positive integer of no more than 1000",
        EMULATOR,
    ),
    "1001 nearest": Row(
        near(limit=1001),
        INVALID,
        "FindNearest.limit must be a positive integer of no more than 1000",
        EMULATOR,
    ),
    "near an array": Row(
        near(vector=[1.0]), INVALID, "Query Value must be of type vector.", EMULATOR
    ),
    "near a vector of none": Row(
        near(vector=vector()), INVALID, "Cannot have a zero length vector.", EMULATOR
    ),
    "within infinity": Row(
        near(threshold=float("inf")),
        INVALID,
        "distanceThreshold must be a finite number.",
        EMULATOR,
    ),
    "nearest and a limit": Row(
        near(most=1), INVALID, "A query limit cannot be used with FindNearest", EMULATOR
    ),
    "nearest and an offset": Row(
        near(offset=1), INVALID, "A query offset cannot be used with FindNearest", EMULATOR
    ),
    "nearest and a cursor": Row(
        near(order_by=BY_V, start=Cursor((1,), before=True)),
        INVALID,
        "A cursor cannot be used with FindNearest",
        EMULATOR,
    ),
    "nearest by nothing": Row(
        run(
            Query(collection="c", nearest=Nearest(("v",), vector(1.0), Measure.COSINE, 1)),
            lambda m: setattr(m.find_nearest, "distance_measure", 0),
        ),
        INVALID,
        "Unknown Distance Measure",
        EMULATOR,
    ),
    # --- lists
    "a negative page": Row(
        call(
            *("ListDocuments", types.ListDocumentsRequest),
            parent="{root}",
            collection_id="c",
            page_size=-1,
        ),
        INVALID,
        "Page size must be nonnegative.",
        EMULATOR,
    ),
    "missing ones in order": Row(
        call(
            *("ListDocuments", types.ListDocumentsRequest),
            parent="{root}",
            collection_id="c",
            order_by="v",
            show_missing=True,
        ),
        INVALID,
        "cannot specify an order when show_missing is true",
        EMULATOR,
    ),
}


def _year_10000(value: Message) -> None:
    value.timestamp_value.seconds = 253_402_300_800


@pytest.fixture
def database() -> Database:
    return fresh_database()


async def answer(address: str, database: Database, make: Make) -> tuple[str, str]:
    """The status and the message of a request to a database with one document."""
    server = Server("", address)
    try:
        await server.unary(*commit(Write(A, {"v": 1}))(database))
        method, request = make(database)
        streamed = method in {"RunQuery", "RunAggregationQuery", "BatchGetDocuments"}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await (server.stream if streamed else server.unary)(method, request)
    finally:
        await server.close()
    return refused.value.code().name, refused.value.details() or ""


@pytest.mark.parametrize("what", ROWS)
async def test_words(embedded_firestore: str, database: Database, what: str) -> None:
    row = ROWS[what]
    code, message = await answer(embedded_firestore, database, row.make)
    words = row.words.replace("{root}", database.root)
    assert (code, words in message) == (row.code, True), message


# The emulator fails at what the cloud refuses.
FAILS = {"six aggregations"}


@pytest.mark.official
@pytest.mark.parametrize("what", ROWS)
async def test_words_are_the_emulators(
    official_emulator: str, database: Database, what: str
) -> None:
    row = ROWS[what]
    code, message = await answer(official_emulator, database, row.make)
    assert code == ("UNKNOWN" if what in FAILS else row.code)
    if row.source is EMULATOR:
        assert row.words in message
    else:
        assert row.words.replace("{root}", database.root) not in message, "it says so, too"
