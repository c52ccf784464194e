"""Legal conversations of every kind: what the mutations start from.

A conversation is a few calls, one after the other; a call of a streaming method holds
several messages. Tokens that the server hands out (transactions, stream tokens, resume
and page tokens) stand as placeholders and are filled in when they are there.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from google.cloud.firestore_v1 import types

from tests.fuzz.methods import methods
from tests.fuzz.tree import Tree, parse

DATABASE = "projects/fuzz/databases/(default)"
ROOT = f"{DATABASE}/documents"
TRANSACTION = b"\0the transaction"
STREAM_TOKEN = b"\0the stream token"
RESUME_TOKEN = b"\0the resume token"
PAGE_TOKEN = b"\0the page token"


@dataclass(frozen=True, slots=True)
class Call:
    method: str
    messages: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    name: str
    calls: tuple[Call, ...]
    refused: str = ""
    """The status that the last call has to end with, where it is not OK."""


@cache
def conversations() -> tuple[Conversation, ...]:
    return tuple(_conversation(*entry) for entry in _all())


def _conversation(title: str, calls: "Calls", refused: str = "") -> Conversation:
    return Conversation(
        title, tuple(Call(method, _messages(method, made)) for method, *made in calls), refused
    )


def _messages(method: str, made: list[dict[str, Any]]) -> tuple[Tree, ...]:
    request = methods()[method].request
    return tuple(parse(request(**fields)) for fields in made)


# --- pieces --------------------------------------------------------------------------------------

Fields: TypeAlias = dict[str, Any]
Calls: TypeAlias = list[tuple[Any, ...]]
"""Of each call the method's name and its messages' fields."""


def name(path: str) -> str:
    return f"{ROOT}/{path}"


def text(value: str) -> Fields:
    return {"string_value": value}


def number(value: int) -> Fields:
    return {"integer_value": value}


def array(*values: Fields) -> Fields:
    return {"array_value": {"values": list(values)}}


def mapping(**fields: Fields) -> Fields:
    return {"map_value": {"fields": fields}}


def vector(*numbers: float) -> Fields:
    items = array(*({"double_value": value} for value in numbers))
    return mapping(__type__=text("__vector__"), value=items)


EVERY_TYPE: Fields = {
    "null": {"null_value": 0},
    "bool": {"boolean_value": True},
    "int": number(-(2**63)),
    "double": {"double_value": float("nan")},
    "time": {"timestamp_value": {"seconds": 253_402_300_799, "nanos": 999_999_999}},
    "text": text("ä\0\U0001f600"),
    "bytes": {"bytes_value": b"\x00\xff"},
    "reference": {"reference_value": name("c/a")},
    "point": {"geo_point_value": {"latitude": -90.0, "longitude": 180.0}},
    "array": array(number(1), text("a"), mapping(x=number(1))),
    "vector": vector(1.0, -0.0),
    "map": mapping(a=mapping(b=array({"null_value": 0}))),
}
SMALL: Fields = {"n": number(1), "s": text("a"), "tags": array(text("x")), "v": vector(1.0, 2.0)}


def field(path: str) -> Fields:
    return {"field_path": path}


def compare(path: str, operator: str, value: Fields) -> Fields:
    return {"field_filter": {"field": field(path), "op": operator, "value": value}}


def unary(path: str, operator: str) -> Fields:
    return {"unary_filter": {"field": field(path), "op": operator}}


def both(operator: str, *filters: Fields) -> Fields:
    return {"composite_filter": {"op": operator, "filters": list(filters)}}


def query(collection: str = "c", *, group: bool = False, **rest: Any) -> Fields:
    selector = {"collection_id": collection, "all_descendants": group}
    return {"from_": [selector], **rest}


def order(path: str, direction: str = "ASCENDING") -> Fields:
    return {"field": field(path), "direction": direction}


def run(structured: Fields, parent: str = ROOT, **rest: Any) -> tuple[str, Fields]:
    return "RunQuery", {"parent": parent, "structured_query": structured, **rest}


def set_to(path: str, fields: Fields, **rest: Any) -> Fields:
    return {"update": {"name": name(path), "fields": fields}, **rest}


def commit(*writes: Fields, **rest: Any) -> tuple[str, Fields]:
    return "Commit", {"database": DATABASE, "writes": list(writes), **rest}


def begin(**options: Any) -> tuple[str, Fields]:
    return "BeginTransaction", {"database": DATABASE, "options": options}


def batch_get(*paths: str, **rest: Any) -> tuple[str, Fields]:
    return "BatchGetDocuments", {
        "database": DATABASE,
        "documents": [name(path) for path in paths],
        **rest,
    }


def documents() -> list[Fields]:
    """Writes that fill the database: more documents in `c` than are looked through without
    an index, some in groups and below missing ones."""
    values = [*EVERY_TYPE.values(), number(1), text("a"), vector(1.0, 0.5), array(number(1))]
    made = []
    for index in range(DOCUMENTS):
        value, other = values[index % len(values)], values[index * 7 % len(values)]
        fields = {
            "n": number(index % 10),
            "s": value,
            "v": vector(index, 1.0),
            "m": mapping(x=other),
        }
        made.append(set_to(f"c/{index:03}", {**fields, "tags": array(text("x"), number(index))}))
    made += [set_to(f"c/{index:03}/sub/x", {"n": number(index % 3)}) for index in range(40)]
    made += [set_to(f"gone/{index}/sub/y", {"n": number(1)}) for index in range(5)]
    return made


DOCUMENTS = 300


def recently() -> Fields:
    """A read_time that every version window still holds."""
    return {"seconds": int(time.time()) - 1}


# --- the conversations ---------------------------------------------------------------------------


def _all() -> Iterator[tuple[Any, ...]]:
    yield from _documents()
    yield from _writes()
    yield from _transactions()
    yield from _queries()
    yield from _derived()
    yield from _streams()
    # By decision not served.
    yield "explain", [run(query(), explain_options={"analyze": True})], "UNIMPLEMENTED"
    yield "pipeline", [("ExecutePipeline", PIPELINE)], "UNIMPLEMENTED"


def _documents() -> Iterator[tuple[Any, ...]]:
    yield (
        "create and delete",
        [
            ("DeleteDocument", {"name": name("c/new")}),
            (
                "CreateDocument",
                {
                    "parent": ROOT,
                    "collection_id": "c",
                    "document_id": "new",
                    "document": {"fields": EVERY_TYPE},
                    "mask": {"field_paths": ["int"]},
                },
            ),
            ("DeleteDocument", {"name": name("c/new"), "current_document": {"exists": True}}),
        ],
    )
    yield (
        "update and get",
        [
            (
                "UpdateDocument",
                {
                    "document": {"name": name("c/a"), "fields": SMALL},
                    "update_mask": {"field_paths": ["n", "`s`", "m.x"]},
                    "mask": {"field_paths": ["n"]},
                },
            ),
            ("GetDocument", {"name": name("c/a"), "mask": {"field_paths": ["n", "s.t"]}}),
        ],
    )
    then = ("GetDocument", {"name": name("c/never"), "read_time": recently()})
    yield "get at a time", [then], "NOT_FOUND"
    yield (
        "list",
        [
            (
                "ListDocuments",
                {
                    "parent": ROOT,
                    "collection_id": "c",
                    "page_size": 1,
                    "order_by": "n desc, __name__ desc",
                    "mask": {"field_paths": ["n"]},
                },
            ),
            ("ListDocuments", {"parent": ROOT, "collection_id": "c", "show_missing": True}),
        ],
    )
    paged = {"parent": ROOT, "collection_id": "c", "page_size": 1}
    yield (
        "list by pages",
        [
            commit(set_to("c/a", SMALL), set_to("c/b", SMALL)),
            ("ListDocuments", paged),
            ("ListDocuments", {**paged, "page_token": PAGE_TOKEN.decode()}),
        ],
    )
    collections = {"parent": ROOT, "page_size": 1}
    yield (
        "collections",
        [
            commit(set_to("c/a", SMALL), set_to("d/a/sub/x", SMALL)),
            ("ListCollectionIds", collections),
            ("ListCollectionIds", {**collections, "page_token": PAGE_TOKEN.decode()}),
            ("ListCollectionIds", {"parent": name("d/a"), "read_time": recently()}),
        ],
    )
    yield (
        "batch get",
        [
            batch_get("c/a", "c/missing", "c/a", mask={"field_paths": ["n", "m.`x y`"]}),
            batch_get("c/a", read_time=recently()),
        ],
    )


def _writes() -> Iterator[tuple[Any, ...]]:
    yield "set every type", [commit(set_to("c/types", EVERY_TYPE))]
    yield (
        "update with a mask",
        [
            commit(set_to("c/a", SMALL)),
            commit(
                set_to(
                    "c/a",
                    {"n": number(2), "m": mapping(x=number(3))},
                    update_mask={"field_paths": ["n", "m.x", "gone", "`a.b`.c"]},
                    current_document={"exists": True},
                )
            ),
        ],
    )
    transforms: list[Fields] = [
        {"field_path": "t", "set_to_server_value": "REQUEST_TIME"},
        {"field_path": "n", "increment": number(2**63 - 1)},
        {"field_path": "x", "maximum": {"double_value": 1.5}},
        {"field_path": "y.z", "minimum": number(-1)},
        {"field_path": "tags", "append_missing_elements": {"values": [text("y"), number(1)]}},
        {"field_path": "old", "remove_all_from_array": {"values": [text("x")]}},
    ]
    yield (
        "transforms",
        [
            commit(set_to("c/t", SMALL, update_transforms=transforms)),
            commit({"transform": {"document": name("c/t"), "field_transforms": transforms}}),
        ],
    )
    yield (
        "several writes",
        [
            commit(
                set_to("c/a", SMALL),
                set_to("c/b", {}),
                {"delete": name("c/b")},
                {"delete": name("c/missing")},
                set_to("c/a/sub/x", {"n": number(1)}),
            )
        ],
    )
    yield (
        "preconditions",
        [
            commit({"delete": name("c/p")}),
            commit(set_to("c/p", SMALL, current_document={"exists": False})),
            commit({"delete": name("c/p"), "current_document": {"exists": True}}),
        ],
    )
    yield (
        "batch write",
        [
            (
                "BatchWrite",
                {
                    "database": DATABASE,
                    "writes": [
                        set_to("c/a", SMALL),
                        {"delete": name("c/x"), "current_document": {"exists": True}},
                        set_to("c/s", SMALL, current_document={"update_time": {"seconds": 1}}),
                    ],
                    "labels": {"a": "b"},
                },
            )
        ],
    )


def _transactions() -> Iterator[tuple[Any, ...]]:
    in_transaction = {"transaction": TRANSACTION}
    yield (
        "a transaction",
        [
            begin(read_write={}),
            batch_get("c/a", **in_transaction),
            run(query(where=compare("n", "EQUAL", number(1))), **in_transaction),
            commit(set_to("c/a", SMALL), **in_transaction),
        ],
    )
    yield (
        "a transaction that is given up",
        [
            begin(read_write={}),
            ("GetDocument", {"name": name("c/a"), **in_transaction}),
            ("Rollback", {"database": DATABASE, **in_transaction}),
        ],
    )
    yield (
        "a transaction tried again",
        [
            begin(read_write={}),
            ("Rollback", {"database": DATABASE, **in_transaction}),
            begin(read_write={"retry_transaction": TRANSACTION}),
            commit(**in_transaction),
        ],
    )
    yield (
        "a read-only transaction",
        [
            begin(read_only={"read_time": recently()}),
            run(query(), **in_transaction),
            (
                "RunAggregationQuery",
                {
                    "parent": ROOT,
                    "structured_aggregation_query": {
                        "structured_query": query(),
                        "aggregations": [{"alias": "n", "count": {}}],
                    },
                    **in_transaction,
                },
            ),
            ("ListDocuments", {"parent": ROOT, "collection_id": "c", **in_transaction}),
            commit(**in_transaction),
        ],
    )
    yield (
        "a transaction begun by a read",
        [
            batch_get("c/a", new_transaction={"read_write": {}}),
            commit({"delete": name("c/a")}, **in_transaction),
        ],
    )
    yield (
        "a transaction begun by a query",
        [
            run(query(), new_transaction={"read_only": {}}),
            ("Rollback", {"database": DATABASE, **in_transaction}),
        ],
    )
    made_up = commit(set_to("c/a", SMALL), transaction=b"made up 16 bytes")
    yield "a made-up transaction", [made_up], "INVALID_ARGUMENT"
    future = {"seconds": 253_402_300_799, "nanos": 999_999_000}
    yield "a read of the future", [batch_get("c/a", read_time=future)], "INVALID_ARGUMENT"


def _queries() -> Iterator[tuple[Any, ...]]:
    for operator in ("LESS_THAN", "GREATER_THAN_OR_EQUAL", "NOT_EQUAL", "ARRAY_CONTAINS"):
        yield f"query {operator}", [run(query(where=compare("n", operator, number(1))))]
    for operator in ("IN", "NOT_IN", "ARRAY_CONTAINS_ANY"):
        values = array(number(1), text("a"), {"null_value": 0})
        yield f"query {operator}", [run(query(where=compare("n", operator, values)))]
    for operator in ("IS_NULL", "IS_NOT_NAN"):
        yield f"query {operator}", [run(query(where=unary("n", operator)))]
    yield (
        "query and or",
        [
            run(
                query(
                    where=both(
                        "AND",
                        compare("n", "EQUAL", number(1)),
                        both("OR", compare("s", "EQUAL", text("a")), unary("s", "IS_NULL")),
                        compare("m.x", "GREATER_THAN", {"double_value": 0.5}),
                    ),
                    order_by=[order("m.x"), order("s", "DESCENDING")],
                    limit={"value": 10},
                    offset=1,
                    select={"fields": [field("n"), field("__name__")]},
                )
            )
        ],
    )
    reference = {"reference_value": name("c/a")}
    yield (
        "query cursors",
        [
            run(
                query(
                    order_by=[order("n"), order("__name__")],
                    start_at={"values": [number(1), reference], "before": True},
                    end_at={"values": [number(5)]},
                )
            )
        ],
    )
    yield (
        "query names",
        [
            run(query(where=compare("__name__", "GREATER_THAN", reference), limit={"value": 3})),
            run(query(where=compare("__name__", "IN", array(reference)))),
        ],
    )
    yield (
        "query a group",
        [
            run(query("sub", group=True, where=compare("n", "EQUAL", number(1)))),
            run(query("sub"), parent=name("c/a")),
        ],
    )
    yield "query everything", [run({"from_": [{"all_descendants": True}]}, parent=name("c/a"))]
    yield "query at a time", [run(query(), read_time=recently())]
    yield (
        "query nearest",
        [
            run(
                query(
                    find_nearest={
                        "vector_field": field("v"),
                        "query_vector": vector(1.0, 0.0),
                        "distance_measure": types.StructuredQuery.FindNearest.DistanceMeasure.COSINE,
                        "limit": {"value": 10},
                        "distance_result_field": "distance",
                        "distance_threshold": {"value": 0.5},
                    }
                )
            )
        ],
    )


def _derived() -> Iterator[tuple[Any, ...]]:
    yield (
        "aggregation",
        [
            (
                "RunAggregationQuery",
                {
                    "parent": ROOT,
                    "structured_aggregation_query": {
                        "structured_query": query(where=compare("n", "EQUAL", number(1))),
                        "aggregations": [
                            {"alias": "c", "count": {"up_to": {"value": 10}}},
                            {"alias": "s", "sum": {"field": field("n")}},
                            {"alias": "a", "avg": {"field": field("m.x")}},
                        ],
                    },
                    "read_time": recently(),
                },
            )
        ],
    )
    asked = {
        "parent": ROOT,
        "structured_query": query("c", group=True, order_by=[order("__name__")]),
        "partition_count": 3,
        "page_size": 1,
    }
    yield (
        "partitions",
        [
            ("PartitionQuery", asked),
            ("PartitionQuery", {**asked, "page_size": 0, "read_time": recently()}),
        ],
    )


PIPELINE: Fields = {
    "database": DATABASE,
    "structured_pipeline": {
        "pipeline": {
            "stages": [
                {"name": "collection", "args": [{"reference_value": "/c"}]},
                {
                    "name": "where",
                    "args": [
                        {
                            "function_value": {
                                "name": "equal",
                                "args": [{"field_reference_value": "n"}, number(1)],
                            }
                        }
                    ],
                },
                {"name": "limit", "args": [number(10)], "options": {"x": text("y")}},
            ]
        }
    },
}


def _streams() -> Iterator[tuple[Any, ...]]:
    in_stream = {"database": DATABASE}
    asked = {"query": {"parent": ROOT, "structured_query": query(limit={"value": 5})}}
    yield (
        "listen to documents",
        [
            (
                "Listen",
                {
                    **in_stream,
                    "add_target": {"target_id": 1, "documents": {"documents": [name("c/a")]}},
                },
                {**in_stream, "remove_target": 1},
            )
        ],
    )
    yield (
        "listen to a query",
        [
            (
                "Listen",
                {**in_stream, "add_target": {"target_id": 2, **asked}, "labels": {"a": "b"}},
                {**in_stream, "add_target": {"target_id": 4, **asked, "once": True}},
            )
        ],
    )
    yield (
        "listen again",
        [
            ("Listen", {**in_stream, "add_target": {"target_id": 2, **asked}}),
            (
                "Listen",
                {
                    **in_stream,
                    "add_target": {
                        "target_id": 2,
                        "resume_token": RESUME_TOKEN,
                        "expected_count": {"value": 1},
                        **asked,
                    },
                },
            ),
        ],
    )
    yield (
        "listen from a time",
        [
            (
                "Listen",
                {**in_stream, "add_target": {"target_id": 9, "read_time": recently(), **asked}},
            )
        ],
    )
    yield (
        "a stream of writes",
        [
            (
                "Write",
                {**in_stream},
                {**in_stream, "writes": [set_to("c/w", SMALL)], "stream_token": STREAM_TOKEN},
                {**in_stream, "writes": [{"delete": name("c/w")}], "stream_token": STREAM_TOKEN},
            )
        ],
    )
