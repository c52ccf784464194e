"""The in-memory store: what its indexes, its past and its transactions promise."""

import copy
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossfade import query as queries
from crossfade.document import Database, Document, Fields, Reference, identical
from crossfade.errors import (
    Aborted,
    CrossfadeError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from crossfade.query import CompositeFilter, FieldFilter, Op, Order, Query
from crossfade.store import At
from crossfade.stores.memory import MemoryStore, MemoryStores, history, index, transactions
from crossfade.stores.memory import store as store_module
from crossfade.write import Transform, TransformKind, Write
from tests import strategies as some

DATABASE = Database("p")


class Clock:
    """Microseconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(DATABASE, clock)


@pytest.fixture
def _indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every collection is large enough to be indexed."""
    monkeypatch.setattr(index, "SMALL", 0)


def attempt(work: Any) -> Any:
    try:
        return work()
    except CrossfadeError as error:
        return type(error)


def commit(store: MemoryStore, writes: list[Write]) -> None:
    attempt(lambda: store.apply_commit(writes))


def same(left: Any, right: Any) -> bool:
    if not isinstance(left, list) or not isinstance(right, list):
        return bool(left == right)
    return len(left) == len(right) and all(
        a.path == b.path and a.update_time == b.update_time and identical(a.fields, b.fields)
        for a, b in zip(left, right, strict=True)
    )


# --- indexes -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_indexed")
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    commits=st.lists(some.commits(), min_size=1, max_size=6),
    later=st.lists(some.commits(), max_size=3),
    asked=st.lists(some.queries(), min_size=1, max_size=6),
)
def test_an_indexed_query_finds_what_a_scan_finds(
    commits: list[list[Write]], later: list[list[Write]], asked: list[Query]
) -> None:
    store = MemoryStore(DATABASE)
    for writes in commits:
        commit(store, writes)
    for round_ in ([], *later):  # the first round makes the indexes, the next ones keep them
        commit(store, round_)
        for query in asked:
            scanned = attempt(lambda query=query: queries.run(query, store.dump()))
            found = attempt(lambda query=query: store.run(query))
            assert same(found, scanned), query


def _some_query(random: Random) -> Query:
    """A query of fields that are there, as applications ask them."""
    values = [None, 0, 1, 1.5, 2, "a", "b"]
    path = (random.choice("nmt"),)
    operator = random.choice(list(Op))
    operand: Any = random.choice(values)
    if operator in queries.LISTS:
        operand = random.sample(values, 3)
    where: Any = FieldFilter(path, operator, operand)
    if random.random() < 0.5:
        other = FieldFilter((random.choice("nm"),), random.choice([Op.EQUAL, Op.LESS_THAN]), 2)
        where = CompositeFilter(random.random() < 0.3, (where, other))
    field = (random.choice("nm"),)
    cursor = queries.Cursor((random.choice(values),), random.random() < 0.5)
    return (
        Query(
            collection="c",
            where=where if random.random() < 0.8 else None,
            order_by=(Order(field, random.random() < 0.5),) if random.random() < 0.6 else (),
            limit=random.choice([None, 1, 3]),
            offset=random.choice([0, 0, 2]),
            all_descendants=random.random() < 0.2,
        )
        if random.random() < 0.7
        else Query(
            collection="c",
            order_by=(Order(field, random.random() < 0.5),),
            start=cursor if random.random() < 0.7 else None,
            end=cursor if random.random() < 0.3 else None,
            limit=random.choice([None, 2, 5]),
        )
    )


@pytest.mark.usefixtures("_indexed")
def test_indexes_follow_what_changes() -> None:
    random = Random(1)
    store = MemoryStore(DATABASE)
    values: list[Any] = [None, 0, 1, 1.5, 2, 2.0, "a", "b", [1], {"x": 1}]
    refused = 0
    for _ in range(1500):
        path = f"{random.choice(['c', 'c', 'c/1/c'])}/{random.randrange(12)}"
        fields: Any = {name: random.choice(values) for name in "nm" if random.random() < 0.8} | {
            "t": random.sample(values[:5], 2)
        }
        commit(store, [Write(path, None if random.random() < 0.3 else fields)])
        query = _some_query(random)
        scanned = attempt(lambda q=query: queries.run(q, store.dump()))
        refused += not isinstance(scanned, list)
        assert same(attempt(lambda q=query: store.run(q)), scanned), query
    assert refused < 500


def many(store: MemoryStore, count: int) -> None:
    store.load(
        Document(
            f"c/{n:05}",
            {"n": n, "tens": n // 10, "tags": [n % 7, "all"], "odd": n % 2 == 1},
            n + 1,
            n + 1,
        )
        for n in range(count)
    )


NARROW: dict[str, tuple[Query, int]] = {
    "equality": (Query(collection="c", where=FieldFilter(("tens",), Op.EQUAL, 5)), 10),
    "range": (
        Query(
            collection="c",
            where=CompositeFilter(
                any_of=False,
                filters=(
                    FieldFilter(("n",), Op.GREATER_THAN_OR_EQUAL, 100),
                    FieldFilter(("n",), Op.LESS_THAN, 110),
                ),
            ),
        ),
        11,
    ),
    "in": (Query(collection="c", where=FieldFilter(("tens",), Op.IN, [5, 7, 1])), 30),
    "or": (
        Query(
            collection="c",
            where=CompositeFilter(
                any_of=True,
                filters=(
                    FieldFilter(("n",), Op.EQUAL, 7),
                    FieldFilter(("tens",), Op.EQUAL, 3),
                ),
            ),
        ),
        11,
    ),
    "both of two": (
        Query(
            collection="c",
            where=CompositeFilter(
                any_of=False,
                filters=(
                    FieldFilter(("odd",), Op.EQUAL, True),
                    FieldFilter(("tens",), Op.EQUAL, 3),
                ),
            ),
        ),
        10,
    ),
    "the highest": (Query(collection="c", order_by=(Order(("n",), True),), limit=3), 3),
    "a page": (
        Query(
            collection="c",
            order_by=(Order(("n",)),),
            start=queries.Cursor((700,), before=False),
            limit=3,
        ),
        4,
    ),
    "names": (
        Query(
            collection="c",
            where=CompositeFilter(
                any_of=False,
                filters=(
                    FieldFilter(("__name__",), Op.GREATER_THAN, Reference("c/00100")),
                    FieldFilter(("__name__",), Op.LESS_THAN_OR_EQUAL, Reference("c/00105")),
                ),
            ),
        ),
        6,
    ),
    "a name": (
        Query(collection="c", where=FieldFilter(("__name__",), Op.EQUAL, Reference("c/00100"))),
        1,
    ),
    "below a name": (Query(collection="c", limit=5), 5),
    "array": (Query(collection="c", where=FieldFilter(("tags",), Op.ARRAY_CONTAINS, 3)), 143),
}


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_query_looks_at_few(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    many(store, 1000)
    query, most = NARROW[name]
    looked: list[str] = []
    made = queries.matcher

    def counting(*arguments: Any) -> Any:
        matches = made(*arguments)

        def counted(document: Document) -> bool:
            looked.append(document.path)
            return bool(matches(document))

        return counted

    monkeypatch.setattr(queries, "matcher", counting)
    found = store.run(query)
    assert found
    assert len(looked) <= most


def test_only_so_many_indexes_are_kept(store: MemoryStore) -> None:
    store.load(Document(f"c/{n:03}", {f"f{n % 40}": n}, 1, 1) for n in range(400))
    for number in range(40):
        found = store.run(Query(collection="c", where=FieldFilter((f"f{number}",), Op.EQUAL, 80)))
        assert [document.path for document in found] == (["c/080"] if number == 0 else [])
    assert len(store._indexes._groups["c"]._indexes) == index.MOST_INDEXES


# --- the past ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_indexed")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    commits=st.lists(some.commits(), min_size=2, max_size=8),
    asked=st.lists(some.queries(), min_size=1, max_size=4),
)
async def test_the_past_is_read_as_it_was(commits: list[list[Write]], asked: list[Query]) -> None:
    store = MemoryStore(DATABASE)
    moments: list[tuple[int, list[Document]]] = []
    for writes in commits:
        commit(store, writes)
        moments.append((store.now(), copy.deepcopy(list(store.dump()))))
    for moment, documents in moments:
        at = At(read_time=moment)
        paths = sorted({write.path for writes in commits for write in writes})
        reading = await store.get(paths, timeout=1, at=at)
        assert [s.path for s in reading.documents if s.data is not None] == sorted(
            document.path for document in documents
        )
        for query in asked:
            then = attempt(lambda q=query, d=documents: queries.run(q, d))
            now = attempt(lambda q=query, a=at: store.run(q, a))
            assert same(now, then), query
        ids = {document.path.split("/")[0] for document in documents}
        assert set(await store.list_collection_ids("", at=at)) == ids
        listed = await store.list_documents("c", limit=100, missing=True, at=at)
        assert set(listed) == {
            "/".join(d.path.split("/")[:2]) for d in documents if d.path.startswith("c/")
        }


async def test_times_outside_the_window(store: MemoryStore, clock: Clock) -> None:
    store.apply_commit([Write("c/a", {"n": 1})])
    with pytest.raises(InvalidArgument, match="future"):
        await store.get(["c/a"], timeout=1, at=At(read_time=clock.now + 1))
    early = clock.now
    for _ in range(2):
        clock.now += history.WINDOW + 1
        store.apply_commit([Write("c/a", {"n": clock.now})])
    with pytest.raises(FailedPrecondition, match="too old"):
        await store.get(["c/a"], timeout=1, at=At(read_time=early))


def test_the_window_is_bounded_in_changes(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_CHANGES", 10)
    first = store.apply_commit([Write("c/a", {"n": 0})]).commit_time
    for n in range(20):
        last = store.apply_commit([Write("c/a", {"n": n + 1})]).commit_time
    assert store.run(Query(collection="c"), At(read_time=last - 5))[0].fields == {"n": 15}
    with pytest.raises(FailedPrecondition):
        store.run(Query(collection="c"), At(read_time=first))


def test_the_window_is_bounded_in_bytes(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_BYTES", 100_000)
    for n in range(40):
        store.apply_commit([Write("c/a", {"text": f"{n}" + "x" * 10_000})])
    assert len(store._history._changes) < 10


# --- transactions ------------------------------------------------------------------------------


async def read(store: MemoryStore, path: str, transaction: bytes) -> Fields | None:
    reading = await store.get([path], timeout=1, at=At(transaction=transaction))
    data = reading.documents[0].data
    from crossfade import wire

    return None if data is None else wire.parse_document(data, DATABASE).fields


async def test_a_transaction_sees_one_state(store: MemoryStore) -> None:
    store.apply_commit([Write("c/a", {"n": 1}), Write("c/b", {"n": 1})])
    ours = await store.begin()
    assert await read(store, "c/a", ours) == {"n": 1}
    store.apply_commit([Write("c/a", {"n": 2}), Write("c/b", {"n": 2})])
    assert await read(store, "c/b", ours) == {"n": 1}
    with pytest.raises(Aborted):
        await store.commit([Write("c/d", {})], timeout=1, transaction=ours)
    assert store.read("c/d") is None


CONFLICTS: dict[str, tuple[Any, Write, bool]] = {
    "a document that was read": ("c/a", Write("c/a", {"n": 2}), True),
    "a document that was deleted": ("c/a", Write("c/a", None), True),
    "a document that was not there": ("c/new", Write("c/new", {}), True),
    "another document": ("c/a", Write("c/b", {"n": 9}), False),
    "a write that changes nothing": ("c/a", Write("c/a", {"n": 1}), False),
    "a phantom of a query": (
        Query(collection="c", where=FieldFilter(("n",), Op.EQUAL, 7)),
        Write("c/new", {"n": 7}),
        True,
    ),
    "a match that goes": (
        Query(collection="c", where=FieldFilter(("n",), Op.EQUAL, 1)),
        Write("c/a", {"n": 2}),
        True,
    ),
    "what a query does not match": (
        Query(collection="c", where=FieldFilter(("n",), Op.EQUAL, 7)),
        Write("c/new", {"n": 8}),
        False,
    ),
}


@pytest.mark.parametrize("name", CONFLICTS)
async def test_conflicts_are_found_at_the_commit(store: MemoryStore, name: str) -> None:
    seen, write, conflict = CONFLICTS[name]
    store.apply_commit([Write("c/a", {"n": 1}), Write("c/b", {"n": 2})])
    ours = await store.begin()
    if isinstance(seen, Query):
        store.run(seen, At(transaction=ours))
    else:
        await read(store, seen, ours)
    store.apply_commit([write])
    work = store.commit([Write("d/x", {})], timeout=1, transaction=ours)
    if conflict:
        with pytest.raises(Aborted):
            await work
    else:
        await work
    assert (store.read("d/x") is None) == conflict
    with pytest.raises(InvalidArgument, match="expired or is no longer valid"):
        await read(store, "c/a", ours)


async def test_what_a_transaction_lists_may_not_change(store: MemoryStore) -> None:
    store.apply_commit([Write("c/a", {})])
    ours = await store.begin()
    await store.list_documents("c", limit=10, at=At(transaction=ours))
    store.apply_commit([Write("c/b", {})])
    with pytest.raises(Aborted):
        await store.commit([Write("d/x", {})], timeout=1, transaction=ours)


async def test_a_refused_write_leaves_the_transaction_open(store: MemoryStore) -> None:
    ours = await store.begin()
    with pytest.raises(NotFound):
        await store.commit([Write("c/a", {}, exists=True)], timeout=1, transaction=ours)
    await store.commit([Write("c/a", {})], timeout=1, transaction=ours)


async def test_a_read_only_transaction(store: MemoryStore) -> None:
    first = store.apply_commit([Write("c/a", {"n": 1})]).commit_time
    store.apply_commit([Write("c/a", {"n": 2})])
    ours = await store.begin(read_only=True, read_time=first)
    assert await read(store, "c/a", ours) == {"n": 1}
    with pytest.raises(InvalidArgument, match="read-only"):
        await store.commit([Write("c/a", {})], timeout=1, transaction=ours)
    await store.commit([], timeout=1, transaction=ours)


async def test_transactions_end_by_themselves(
    store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = await store.begin()
    clock.now += transactions.IDLE - 1
    await read(store, "c/a", ours)
    clock.now += transactions.IDLE + 1
    with pytest.raises(InvalidArgument):
        await read(store, "c/a", ours)
    monkeypatch.setattr(transactions, "MOST_OPEN", 2)
    await store.begin()
    await store.begin()
    with pytest.raises(ResourceExhausted, match="2 transactions are open"):
        await store.begin()
    clock.now += transactions.LIFETIME + 1
    await store.begin()


async def test_rollback_and_retry(store: MemoryStore) -> None:
    ours = await store.begin()
    await store.rollback(ours)
    await store.rollback(ours)
    with pytest.raises(InvalidArgument):
        await store.commit([], timeout=1, transaction=ours)
    first = await store.begin()
    await store.begin(retry=first)
    with pytest.raises(InvalidArgument):
        await read(store, "c/a", first)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("brqwc"), st.integers(0, 2)), max_size=40)
)
async def test_transactions_are_serializable(steps: list[tuple[int, str, int]]) -> None:
    """Four callers, three counters. A commit adds one to each counter that it read and to
    the sum of all: whatever happens in between, the committed ones explain the result."""
    store = MemoryStore(DATABASE)
    open_: dict[int, bytes] = {}
    seen: dict[int, dict[str, int]] = {}
    expected = {f"c/{n}": 0 for n in range(3)}
    store.apply_commit([Write(path, {"n": 0}) for path in expected])
    for caller, what, target in steps:
        if what == "b":
            open_[caller], seen[caller] = await store.begin(), {}
        elif caller not in open_:
            continue
        elif what == "r":
            path = f"c/{target}"
            fields = await read(store, path, open_[caller])
            seen[caller][path] = fields["n"]  # type: ignore[index, assignment]
        elif what == "q":
            for document in store.run(Query(collection="c"), At(transaction=open_[caller])):
                seen[caller][document.path] = document.fields["n"]  # type: ignore[assignment]
        elif what == "w":  # somebody without a transaction
            path = f"c/{target}"
            plus = Transform(("n",), TransformKind.INCREMENT, 1)
            store.apply_commit([Write(path, {}, (), (plus,))])
            expected[path] += 1
        else:
            writes = [Write(path, {"n": value + 1}) for path, value in seen[caller].items()]
            try:
                await store.commit(writes, timeout=1, transaction=open_.pop(caller))
            except Aborted:
                continue
            for path in seen.pop(caller):
                expected[path] += 1
    found = {document.path: document.fields["n"] for document in store.dump()}
    assert found == expected


# --- limits and watchers -----------------------------------------------------------------------


def test_max_documents(clock: Clock) -> None:
    store = MemoryStore(DATABASE, clock, max_documents=2)
    store.apply_commit([Write("c/a", {}), Write("c/b", {})])
    with pytest.raises(ResourceExhausted, match="3 documents would be stored, the limit"):
        store.apply_commit([Write("c/a", {"n": 1}), Write("c/c", {})])
    assert store.read("c/a").fields == {}
    store.apply_commit([Write("c/a", None), Write("c/c", {})])
    store.apply_commit([Write("c/c", {"n": 2})])


def test_a_commit_that_the_journal_refuses_changes_nothing(clock: Clock) -> None:
    told: list[Any] = []

    def journal(database: Database, time: int, changes: Any) -> None:
        told.append((database, time, changes))
        if len(told) == 2:
            raise ResourceExhausted("the disk is full")

    store = MemoryStore(DATABASE, clock, journal=journal)
    store.apply_commit([Write("c/a", {"n": 1})])
    with pytest.raises(ResourceExhausted):
        store.apply_commit([Write("c/a", {"n": 2}), Write("c/b", {})])
    assert [d.path for d in store.dump()] == ["c/a"]
    assert store.read("c/a").fields == {"n": 1}
    store.apply_commit([Write("c/a", {"n": 1})])  # changes nothing
    assert len(told) == 2


def test_watchers_hear_of_changes(store: MemoryStore) -> None:
    heard: list[tuple[int, list[str]]] = []
    unsubscribe = store.subscribe(lambda time, paths: heard.append((time, list(paths))))
    time = store.apply_commit([Write("c/a", {}), Write("c/none", None)]).commit_time
    store.apply_commit([Write("c/a", {})])
    assert heard == [(time, ["c/a"])]
    unsubscribe()
    unsubscribe()
    store.apply_commit([Write("c/b", {})])
    assert len(heard) == 1


def test_reset_and_expiry(store: MemoryStore, clock: Clock) -> None:
    soon = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=clock.now + 5)
    store.apply_commit([Write("c/a", {"until": soon}), Write("d/b", {"until": soon})])
    assert store.expire("c", "until") == 0
    clock.now += 10
    assert store.expire("c", "until") == 1
    assert [d.path for d in store.dump()] == ["d/b"]
    store.reset()
    assert len(store) == 0
    assert store.run(Query(all_descendants=True)) == []


async def test_listing(store: MemoryStore) -> None:
    paths = ["c/a", "c/b/d/x", "c/b/e/y", "c/__id7__/d/z", "e/q", "c/a/d/x"]
    store.apply_commit([Write(path, {}) for path in paths])
    assert await store.list_collection_ids("") == ["c", "e"]
    assert await store.list_collection_ids("c/b") == ["d", "e"]
    assert await store.list_collection_ids("c/a") == ["d"]
    assert await store.list_collection_ids("c/nobody") == []
    everyone = ["c/__id7__", "c/a", "c/b"]
    assert await store.list_documents("c", limit=10) == ["c/a"]
    assert await store.list_documents("c", limit=10, missing=True) == everyone
    assert await store.list_documents("c", limit=1, after="c/a", missing=True) == ["c/b"]
    assert await store.list_documents("c/b/d", limit=10) == ["c/b/d/x"]


async def test_partitions_cut_evenly(store: MemoryStore) -> None:
    many(store, 100)
    query = Query(collection="c", all_descendants=True)
    cuts = await store.partition(query, 3)
    assert cuts == ["c/00025", "c/00050", "c/00075"]
    assert await store.partition(Query(collection="none", all_descendants=True), 3) == []
    assert len(await store.partition(query, 1000)) == 99


def test_databases_that_were_only_named_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_DATABASES", 3)
    stores = MemoryStores()
    kept = stores(Database("kept"))
    kept.apply_commit([Write("c/a", {})])
    for number in range(10):
        stores(Database(f"p{number}"))
    assert stores(Database("kept")) is kept
    assert len(list(stores)) <= 3
    for number in range(2):
        stores(Database(f"used{number}")).apply_commit([Write("c/a", {})])
    with pytest.raises(ResourceExhausted, match="3 databases hold documents"):
        stores(Database("another"))
