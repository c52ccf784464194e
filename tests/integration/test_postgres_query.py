"""Queries: whatever SQL narrows, orders or cuts, the answer is the pure evaluator's."""

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
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

from crossfade import query as queries
from crossfade.aggregate import Aggregation, AggregationKind
from crossfade.document import INT64_MAX, NAME, Document, Reference, identical
from crossfade.errors import InvalidArgument
from crossfade.mapping import (
    CollectionMapping,
    Mappings,
    document_columns,
    misfit_index,
    text_column,
)
from crossfade.query import (
    LISTS,
    CompositeFilter,
    Cursor,
    FieldFilter,
    Filter,
    Op,
    Order,
    Query,
)
from crossfade.store import MirrorState, Page
from crossfade.stores.postgres.rows import DocumentTable
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.statement import compile_query
from crossfade.stores.postgres.store import PostgresStore
from crossfade.wire import decode_document
from crossfade.write import Write
from crossfade_api.v1 import crossfade_pb2
from tests import strategies
from tests.integration.test_postgres_store import mark_pending
from tests.postgres_fixture import DATABASE, MakeLanes, MakeStore
from violet.mapping import MAPPINGS

DATASETS = int(os.environ.get("CROSSFADE_TEST_DATASETS", "4"))
QUERIES = int(os.environ.get("CROSSFADE_TEST_QUERIES", "60"))

_time = DateTime(timezone=True)


def mapping(*columns: Column[Any]) -> Mappings:
    table = Table("c", MetaData(schema="mapped"), *document_columns(), *columns)
    misfit_index(table)
    Index("c_a", table.c.a, postgresql_using="gin" if table.c.a.type.python_type is list else None)
    return Mappings([CollectionMapping("c", table)])


SHAPES: dict[str, Callable[[], Mappings]] = {
    "generic": Mappings,
    "text-int-double": lambda: mapping(
        text_column("a"), Column("b", BigInteger), Column("c", Double)
    ),
    "bool-time-json": lambda: mapping(Column("a", Boolean), Column("b", _time), Column("c", JSONB)),
    "bytes": lambda: mapping(Column("a", LargeBinary), Column("b", LargeBinary)),
    "ints-json-text": lambda: mapping(
        Column("a", ARRAY(BigInteger)), Column("b", JSONB), text_column("c")
    ),
}
FITTING: dict[str, Any] = {
    "generic": {},
    "bytes": {
        "a": st.sampled_from([b"", b"a", b"\x00", b"a\x00", b"\xff"]),
        "b": st.sampled_from([b"", b"b", b"ab"]),
    },
    "text-int-double": {
        "a": st.sampled_from(["", "a", "b", "ä", "z", "\uffff", "\U0001f600"]),
        "b": st.sampled_from([0, 1, 2, -1, 48, 2**53, 2**53 + 1, 2**63 - 1]),
        "c": st.sampled_from([0.0, -0.0, 1.0, 1.5, 48.0, float(2**53), 1e300, float("inf")]),
    },
    "bool-time-json": {
        "a": st.booleans(),
        "b": st.sampled_from([v for v in strategies.SCALARS if isinstance(v, datetime)]),
        "c": strategies.arrays() | st.dictionaries(st.sampled_from("ab"), strategies.values(1)),
    },
    "ints-json-text": {
        "a": st.lists(st.sampled_from([0, 1, 2, 48, 2**53 + 1]), max_size=3),
        "b": st.lists(strategies.scalars(), max_size=3),
        "c": st.sampled_from(["", "a", "b", "ä", "\U0001f600"]),
    },
}


@st.composite
def datasets(draw: st.DrawFn, shape: str) -> dict[str, dict[str, Any]]:
    """Documents by path; two of three columned fields fit their column."""
    documents = {}
    for path in draw(st.lists(strategies.paths(), min_size=12, max_size=30, unique=True)):
        fields = draw(strategies.fields())
        for name, fitting in FITTING[shape].items():
            if draw(st.integers(0, 3)):
                fields[name] = draw(fitting)
        documents[path] = fields
    return documents


@st.composite
def near_queries(draw: st.DrawFn, documents: dict[str, dict[str, Any]]) -> Query:
    """Queries that find something: operands are values the documents have."""
    present = [
        (name, value) for fields in documents.values() for name, value in fields.items()
    ] or [("a", 1)]

    def leaf() -> FieldFilter:
        name, value = draw(st.sampled_from(present))
        path: tuple[str, ...] = (name,)
        op = draw(st.sampled_from(list(Op)))
        if op in {Op.ARRAY_CONTAINS, Op.ARRAY_CONTAINS_ANY} and isinstance(value, list) and value:
            value = draw(st.sampled_from(value))
        elif isinstance(value, dict) and value and draw(st.booleans()):
            inner = draw(st.sampled_from(sorted(value)))
            path, value = (name, inner), value[inner]
        if op in LISTS:
            value = [value, *draw(st.lists(strategies.scalars(), max_size=2))]
        if op in {Op.IS_NULL, Op.IS_NOT_NULL, Op.IS_NAN, Op.IS_NOT_NAN}:
            value = None
        return FieldFilter(path, op, value)

    where: Filter | None = leaf() if draw(st.integers(0, 4)) else None
    if where is not None and not draw(st.integers(0, 2)):
        where = CompositeFilter(draw(st.booleans()), (where, leaf()))
    names = draw(st.sampled_from([(), (), ("a",), ("b",), ("c",), ("b", "a"), ("ünï",)]))
    orders = [Order((name,), draw(st.booleans())) for name in names]
    if draw(st.booleans()):
        orders.append(Order(NAME, draw(st.booleans())))

    def cursor() -> Cursor | None:
        if not orders or orders[-1].path != NAME or draw(st.booleans()):
            return None
        path = draw(st.sampled_from(sorted(documents)) | strategies.paths())
        values = [documents.get(path, {}).get(order.path[0], 1) for order in orders[:-1]]
        return Cursor((*values, Reference(path)), draw(st.booleans()))

    parent, collection, group = draw(
        st.sampled_from(
            [("", "c", False)] * 5
            + [("", "d", False), ("c/a", "sub", False), ("", "sub", True), ("", "c", True)]
        )
    )
    return Query(
        parent=parent,
        collection=collection,
        all_descendants=group,
        where=where,
        order_by=tuple(orders),
        start=cursor(),
        end=cursor(),
        offset=draw(st.sampled_from([0, 0, 0, 1, 3])),
        limit=draw(st.sampled_from([None, 0, 1, 2, 5, 50])),
        select=draw(st.sampled_from([None, None, None, (("a",),), (NAME,), (("b", "a"),)])),
    )


@st.composite
def kindless(draw: st.DrawFn, documents: dict[str, dict[str, Any]]) -> Query:
    """Scans of everything below the root or a document."""

    def cursor() -> Cursor | None:
        if draw(st.booleans()):
            return None
        path = draw(st.sampled_from(sorted(documents)) | strategies.paths())
        return Cursor((Reference(path),), draw(st.booleans()))

    return Query(
        parent=draw(st.sampled_from(["", "", "c/a"])),
        all_descendants=draw(st.booleans()),
        order_by=(Order(NAME),),
        start=cursor(),
        end=cursor(),
        limit=draw(st.sampled_from([None, 1, 3, 10])),
    )


def decoded(pages: Sequence[Page]) -> list[Document]:
    reply = crossfade_pb2.QueryReply.FromString(b"".join(page.frames for page in pages))
    return [decode_document(message, DATABASE) for message in reply.documents]


async def ask(store: PostgresStore, query: Query) -> list[Document]:
    return decoded([page async for page in store.query(query, timeout=20)])


def found(documents: Sequence[Document]) -> list[tuple[str, dict[str, Any]]]:
    return [(document.path, document.fields) for document in documents]


def examples(make: Callable[[st.DataObject], Any], count: int, number: int) -> list[Any]:
    made: list[Any] = []

    @seed(number)
    @given(st.data())
    @settings(
        max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    def collect(data: st.DataObject) -> None:
        made.append(make(data))

    collect()
    return made


@pytest.mark.parametrize("shape", SHAPES)
async def test_answers_are_those_of_the_evaluator(postgres_lanes: MakeLanes, shape: str):
    mappings = SHAPES[shape]()
    loop = asyncio.get_running_loop()
    answered = refused = 0
    for number in range(DATASETS):
        lanes = await postgres_lanes()
        await create_schema(lanes, mappings)
        store = PostgresStore(lanes, mappings, DATABASE)
        made = await loop.run_in_executor(
            None, examples, lambda data: data.draw(datasets(shape)), 6, number
        )
        contents = max(made, key=len)
        await store.commit([Write(path, fields) for path, fields in contents.items()], timeout=20)
        documents = [Document(path, fields, 1, 1) for path, fields in contents.items()]

        def draw(data: st.DataObject, contents: dict[str, dict[str, Any]] = contents) -> Query:
            near, scan = near_queries(contents), kindless(contents)
            query: Query = data.draw(st.one_of(near, near, near, scan, strategies.queries()))
            return query

        for query in await loop.run_in_executor(None, examples, draw, QUERIES, number):
            try:
                expected = found(queries.run(query, documents))
            except InvalidArgument:
                refused += 1
                with pytest.raises(InvalidArgument):
                    await ask(store, query)
                continue
            answered += bool(expected)
            actual = found(await ask(store, query))
            assert [path for path, _ in actual] == [path for path, _ in expected], query
            assert identical([fields for _, fields in actual], [fields for _, fields in expected])
        await lanes.close()
    assert answered > DATASETS * QUERIES / 10


# --- directed ----------------------------------------------------------------------------------


async def test_the_limit_is_cut_in_name_order_with_numeric_ids_first(
    make_store: MakeStore,
):
    for mapped in (True, False):
        store = await make_store(mapped)
        ids = ["b", "__id10__", "a", "__id9__", "__idx", "__a"]
        writes = [Write(f"tasks/{name}", {"status": "done"}) for name in ids]
        await store.commit(writes, timeout=5)
        done = FieldFilter(("status",), Op.EQUAL, "done")
        names = ["__id9__", "__id10__", "__a", "__idx", "a", "b"]
        for limit in range(7):
            answer = await ask(store, Query(collection="tasks", where=done, limit=limit))
            assert [document.path for document in answer] == [f"tasks/{n}" for n in names[:limit]]


async def test_every_number_against_every_number(postgres_lanes: MakeLanes):
    """Integers and doubles compare exactly, also where a double cannot hold the integer."""
    for shape in ("text-int-double", "generic"):
        lanes = await postgres_lanes()
        mappings = SHAPES[shape]()
        await create_schema(lanes, mappings)
        store = PostgresStore(lanes, mappings, DATABASE)
        documents = [
            Document(f"c/{n:02}", {"b": value, "c": value, "l": [value]}, 1, 1)
            for n, value in enumerate(strategies.NUMBERS)
        ]
        await store.commit([Write(d.path, d.fields) for d in documents], timeout=10)
        compared = [Op.EQUAL, Op.NOT_EQUAL, *queries.RANGES]
        filters = [
            FieldFilter((field,), op, operand)
            for operand in strategies.NUMBERS
            for field in ("b", "c")
            for op in compared
        ]
        filters += [
            FieldFilter(("l",), Op.ARRAY_CONTAINS, operand) for operand in strategies.NUMBERS
        ]
        for where in filters:
            for limit in (None, 3):
                query = Query(collection="c", where=where, limit=limit)
                expected = [document.path for document in queries.run(query, documents)]
                answer = [document.path for document in await ask(store, query)]
                assert answer == expected, (shape, query)


async def test_fields_inside_maps_with_odd_names(postgres_lanes: MakeLanes):
    """Such maps are lists of pairs in JSON: plain containment would not find their fields."""
    inner = {"$odd": 1, "b": "v", "l": ["v"]}
    contents: dict[str, dict[str, Any]] = {
        "1": {"a": {"b": "v", "l": ["v"]}, "c": {"b": "v"}},
        "2": {"a": inner, "c": inner},
        "3": {"a": {"b": inner}, "c": {"b": inner}},
        "4": {"$odd": 1, "a": {"b": "v"}, "c": {"b": "v"}},
        "5": {"a": {"b": "other"}, "c": [{"b": "v"}]},
    }
    for shape in ("generic", "bool-time-json"):
        lanes = await postgres_lanes()
        mappings = SHAPES[shape]()
        await create_schema(lanes, mappings)
        store = PostgresStore(lanes, mappings, DATABASE)
        documents = [Document(f"c/{n}", fields, 1, 1) for n, fields in contents.items()]
        await store.commit([Write(d.path, d.fields) for d in documents], timeout=10)
        for root, limit in itertools.product("ac", (None, 1, 2)):
            for where in (
                FieldFilter((root, "b"), Op.EQUAL, "v"),
                FieldFilter((root, "b", "b"), Op.EQUAL, "v"),
                FieldFilter((root, "l"), Op.ARRAY_CONTAINS, "v"),
                FieldFilter((root, "$odd"), Op.EQUAL, 1),
                FieldFilter(("$odd",), Op.EQUAL, 1),
            ):
                query = Query(collection="c", where=where, limit=limit)
                expected = [document.path for document in queries.run(query, documents)]
                answer = [document.path for document in await ask(store, query)]
                assert answer == expected, (shape, query)


async def test_every_position_of_a_scan(make_store: MakeStore):
    """Pages of a scan over all tables begin and end at any document, there or not."""
    store = await make_store(True)
    paths = ["a/1", "tasks/1", "tasks/1/chunks/1", "tasks/2", "tasks-x/1", "users/1", "z/1"]
    documents = [Document(path, {}, 1, 1) for path in paths]
    await store.commit([Write(path, {}) for path in paths], timeout=10)
    for path in [
        *paths,
        "tasks/0",
        "tasks/1/chunks/0",
        "tasks/1/chunks/2",
        "tasks/3",
        "users/0/x/1",
    ]:
        for before, starts, limit in itertools.product((True, False), (True, False), (None, 1, 2)):
            cursor = Cursor((Reference(path),), before)
            query = Query(
                all_descendants=True,
                order_by=(Order(NAME),),
                start=cursor if starts else None,
                end=None if starts else cursor,
                limit=limit,
            )
            expected = [document.path for document in queries.run(query, documents)]
            answer = [document.path for document in await ask(store, query)]
            assert answer == expected, query


async def test_a_misfit_is_found_and_counts_within_the_limit(make_store: MakeStore):
    store = await make_store(True)
    contents: dict[str, dict[str, Any]] = {
        "miner_status/1": {"current_load": 3.0},
        "miner_status/2": {"current_load": 3},
        "miner_status/3": {"current_load": 4},
        "miner_status/4": {"current_load": 3.0},
        "miner_status/5": {"current_load": None},
    }
    await store.commit([Write(path, fields) for path, fields in contents.items()], timeout=5)

    async def paths(op: Op, value: Any, **more: Any) -> list[str]:
        where = FieldFilter(("current_load",), op, value)
        query = Query(collection="miner_status", where=where, **more)
        return [document.path[-1] for document in await ask(store, query)]

    assert await paths(Op.EQUAL, 3, limit=2) == ["1", "2"]
    assert await paths(Op.EQUAL, 3.0, offset=1) == ["2", "4"]
    assert await paths(Op.GREATER_THAN, 2, limit=3) == ["1", "2", "4"]
    assert await paths(Op.IS_NULL, None) == ["5"]


async def test_pages_hold_300_documents_and_the_first_the_state(make_store: MakeStore):
    store = await make_store(True)
    await store.commit([Write(f"tasks/{n:04}", {"n": n}) for n in range(650)], timeout=20)
    pages = [page async for page in store.query(Query(collection="tasks"), timeout=10)]
    assert [len(decoded([page])) for page in pages] == [300, 300, 50]
    assert [page.state for page in pages] == [MirrorState(0, 0, pending=False), None, None]
    assert [document.fields["n"] for document in decoded(pages)] == list(range(650))


async def test_pages_end_at_a_mebibyte(make_store: MakeStore):
    store = await make_store(True)
    for n in range(4):
        await store.commit([Write(f"tasks/{n}", {"text": "x" * 600_000})], timeout=10)
    pages = [page async for page in store.query(Query(collection="tasks"), timeout=10)]
    assert [len(decoded([page])) for page in pages] == [2, 2]


async def test_an_empty_result_is_one_page_with_state_and_time(make_store: MakeStore):
    store = await make_store(True)
    for query in (Query(collection="tasks"), Query(collection="x", all_descendants=True)):
        (page,) = [page async for page in store.query(query, timeout=5)]
        reply = crossfade_pb2.QueryReply.FromString(page.frames)
        assert not reply.documents
        assert reply.read_time.seconds > 1_700_000_000
        assert page.state == MirrorState(0, 0, pending=False)


@pytest.mark.parametrize(
    ("query", "row", "pending"),
    [
        (Query(collection="tasks"), "tasks/9", True),
        (Query(collection="tasks"), "tasks", True),
        (Query(collection="tasks"), "", True),
        (Query(collection="tasks"), "users/9", False),
        (Query(collection="tasks"), "users/9/tasks/1", False),
        (Query(collection="tasks", all_descendants=True), "users/9/tasks/1", True),
        (Query(collection="tasks", all_descendants=True), "tasks/9", True),
        (Query(collection="tasks", all_descendants=True), "tasks", True),
        (Query(collection="tasks", all_descendants=True), "users", False),
        (Query(parent="tasks/1", collection="sub"), "tasks/1/sub/9", True),
        (Query(parent="tasks/1", collection="sub"), "sub", True),
        (Query(parent="tasks/1", collection="sub"), "tasks/2/sub/9", False),
        (Query(all_descendants=True), "users/9", True),
    ],
)
async def test_what_makes_a_query_pending(
    postgres_lanes: MakeLanes, query: Query, row: str, pending: bool
):
    lanes = await postgres_lanes()
    await lanes.execute(
        """insert into crossfade.control (grp, stage, authority, epoch, generation)
        values ('default', 'shadow', 'firestore', 7, 3)""",
        timeout=5,
    )
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    await mark_pending(lanes, row)
    pages = [page async for page in store.query(query, timeout=5)]
    assert pages[0].state == MirrorState(7, 3, pending)


async def test_a_query_over_several_tables_is_of_one_moment(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=6)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    paths = ["tasks/1", "x/1/tasks/1", "y/1/tasks/1"]

    async def put(number: int) -> None:
        await store.commit([Write(path, {"n": number}) for path in paths], timeout=10)

    await put(0)
    stop = False

    async def write() -> None:
        number = 0
        while not stop:
            number += 1
            await put(number)

    writer = asyncio.create_task(write())
    seen: set[Any] = set()
    while len(seen) < 5:
        answer = await ask(store, Query(collection="tasks", all_descendants=True))
        numbers = {document.fields["n"] for document in answer}
        assert (len(answer), len(numbers)) == (3, 1)
        seen |= numbers
    stop = True
    await writer


async def test_an_illegal_query_is_refused_before_it_is_asked(make_store: MakeStore):
    store = await make_store(True)
    with pytest.raises(InvalidArgument):
        await ask(store, Query(collection="tasks", limit=-1))


# --- indexes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collection", "field", "op", "value", "index"),
    [
        ("tasks", "assigned_miners", Op.ARRAY_CONTAINS, 48, "tasks_assigned_miners"),
        ("tasks", "assigned_miners", Op.ARRAY_CONTAINS_ANY, [1, 2], "tasks_assigned_miners"),
        ("tasks", "status", Op.EQUAL, "assigned", "tasks_status"),
        ("tasks", "status", Op.IN, ["done", "approved"], "tasks_status"),
        ("tasks", "created_at", Op.LESS_THAN, datetime(2020, 1, 1, tzinfo=UTC), "tasks_created_at"),
        ("users", "email", Op.EQUAL, "a@example.org", "users_email"),
        ("users", "api_key", Op.EQUAL, "key", "users_api_key"),
    ],
)
async def test_queries_of_the_application_use_their_index(
    postgres_lanes: MakeLanes, collection: str, field: str, op: Op, value: Any, index: str
):
    lanes = await postgres_lanes(size=1)
    table = DocumentTable(MAPPINGS.get(collection), DATABASE)
    query = Query(collection=collection, where=FieldFilter((field,), op, value), limit=100)
    statement = compile_query(query, queries.check(query), table, "default")
    async with lanes.transaction(10) as connection:
        await connection.execute("set local enable_seqscan = off")
        # A limit in name order would else be answered by walking the key.
        await connection.execute("set local enable_indexscan = off")
        plan = await connection.fetch(f"explain {statement.sql}", *statement.values)
    text = "\n".join(row[0] for row in plan)
    assert f"Bitmap Index Scan on {index}" in text, text
    # The rows that do not fit their columns are found without reading the others.
    assert f"Bitmap Index Scan on {collection}_misfits" in text, text
    assert "Seq Scan on " not in text.replace("Seq Scan on control", ""), text


async def test_aggregations(make_store: MakeStore):
    """Over one table and over several: what is summed may be in a column or beside it."""
    store = await make_store(True)
    values: list[Any] = [1, 2.5, -0.0, None, "x", INT64_MAX]
    writes = [Write(f"tasks/{n}", {"v": value}) for n, value in enumerate(values)]
    made = await store.commit(
        [*writes, Write("notes/1", {"v": 7}), Write("notes/2", {})], timeout=5
    )
    wanted = [
        Aggregation(AggregationKind.COUNT, "n"),
        Aggregation(AggregationKind.COUNT, "few", up_to=2),
        Aggregation(AggregationKind.SUM, "sum", ("v",)),
        Aggregation(AggregationKind.AVERAGE, "avg", ("v",)),
    ]
    found = await store.aggregate(Query(collection="tasks"), wanted, timeout=5)
    tasks = found.values
    assert tasks["n"] == 6
    assert tasks["few"] == 2
    assert tasks["sum"] == float(INT64_MAX + 1) + 2.5
    assert tasks["avg"] == (float(INT64_MAX + 1) + 2.5) / 4
    assert found.read_time >= made.commit_time
    everywhere = await store.aggregate(Query(all_descendants=True), wanted[:1], timeout=5)
    assert everywhere.values == {"n": 8}
    with pytest.raises(InvalidArgument):
        await store.aggregate(Query(collection="tasks"), [], timeout=5)
