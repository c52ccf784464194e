"""A strict schema refuses no legal write: what a constraint will not have waits in the
remainder, answers as ever, and goes to its column when it fits."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossfade.document import NAME, Document, Reference, identical
from crossfade.errors import Aborted, CrossfadeError
from crossfade.query import Cursor, FieldFilter, Op, Order, Query
from crossfade.store import DocumentStore
from crossfade.stores.memory import MemoryStore
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Image, Mirror
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.store import PostgresStore
from crossfade.telemetry import MISFITS, Telemetry
from crossfade.wire import decode_document, parse_document
from crossfade.write import Write
from crossfade_api.v1 import crossfade_pb2
from tests import strategies
from tests.library.mapping import MAPPINGS
from tests.postgres_fixture import DATABASE, MakeLanes


class Library:
    """A store with the library's tables, and a look behind it."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.store = PostgresStore(lanes, MAPPINGS, DATABASE)
        self.mirror = Mirror(lanes, MAPPINGS, DATABASE)
        self.time = 0

    async def put(self, **documents: Any) -> None:
        """Sets documents, named as collection__id, one commit each; None deletes."""
        for name, fields in documents.items():
            await self.store.commit([Write(name.replace("__", "/"), fields)], timeout=10)

    async def commit(self, **documents: Any) -> None:
        """The same in one commit."""
        writes = [Write(name.replace("__", "/"), fields) for name, fields in documents.items()]
        await self.store.commit(writes, timeout=10)

    async def control(self) -> None:
        await self.lanes.execute(
            """insert into crossfade.control (grp, stage, authority, epoch, generation)
            values ('default', 'shadow', 'firestore', 1, 1)""",
            timeout=5,
        )

    async def apply(self, by: str, writes: Sequence[Write]) -> int:
        """Commits to the store, or puts of a mirror: one by one where there is one. Returns
        the time of the versions."""
        if by == "commits":
            return (await self.store.commit(writes, timeout=10)).commit_time
        self.time += 1
        time = self.time
        images = [Image(write.path, write.fields, time, None) for write in writes]
        if by == "puts":
            await self.mirror.put(images, epoch=1, allow_equal=False, timeout=10)
        else:
            await self.mirror.begin_copy(time, timeout=5)
            await self.mirror.put_page(images, epoch=1, generation=1, token=time, timeout=10)
        return time

    async def fields(self, path: str) -> Any:
        stored = (await self.store.get([path], timeout=5)).documents[0]
        return None if stored.data is None else parse_document(stored.data, DATABASE).fields

    async def stored(self, path: str) -> Any:
        """Its document and its version."""
        stored = (await self.store.get([path], timeout=5)).documents[0]
        assert stored.data is not None
        return parse_document(stored.data, DATABASE), stored.version

    async def row(self, table: str, key: str) -> dict[str, Any]:
        row = await self.lanes.fetchrow(
            f"select * from library.{table} where id = $1", key, timeout=5
        )
        assert row is not None
        return dict(row)

    async def column(self, table: str, key: str, column: str) -> Any:
        return (await self.row(table, key))[column]

    async def found(self, collection: str, field: str, value: Any) -> list[str]:
        where = FieldFilter((field,), Op.EQUAL, value)
        return [d.path for d in await run(self.store, Query(collection=collection, where=where))]


async def run(store: DocumentStore, query: Query) -> list[Document]:
    frames = b"".join([page.frames async for page in store.query(query, timeout=10)])
    reply = crossfade_pb2.QueryReply.FromString(frames)
    return [decode_document(message, DATABASE) for message in reply.documents]


async def answer(store: DocumentStore, query: Query) -> list[Document] | str:
    """The documents, or the name of the error."""
    try:
        return await run(store, query)
    except CrossfadeError as error:
        return type(error).__name__


@pytest_asyncio.fixture
async def library(postgres_lanes: MakeLanes) -> Library:
    lanes = await postgres_lanes(size=8)
    await create_schema(lanes, MAPPINGS)
    return Library(lanes)


# --- enums -------------------------------------------------------------------------------------


async def test_a_word_outside_the_enum_stays_in_the_remainder(library: Library):
    await library.put(books__1={"state": "burnt"}, books__2={"state": "lent"})
    assert await library.column("books", "1", "state") is None
    assert await library.column("books", "1", "misfits") == ["state"]
    assert await library.fields("books/1") == {"state": "burnt"}
    assert await library.found("books", "state", "burnt") == ["books/1"]
    await library.put(books__1={"state": "shelved"})
    assert await library.row("books", "1") | {"remainder": None, "misfits": None} == (
        await library.row("books", "1")
    )


async def test_the_check_constraint_is_real(library: Library):
    await library.put(books__1={"state": "lent"})
    with pytest.raises(Exception, match="23514"):
        await library.lanes.execute("update library.books set state = 'burnt'", timeout=5)


@pytest.mark.parametrize("by", ["commits", "puts", "pages"])
async def test_misfits_are_counted_as_they_are_written(library: Library, by: str):
    telemetry = Telemetry()
    watched = MAPPINGS.watched(partial(telemetry.count, MISFITS))
    library.store = PostgresStore(library.lanes, watched, DATABASE)
    library.mirror = Mirror(library.lanes, watched, DATABASE)
    await library.control()
    for state in ("burnt", "lost", "burnt"):
        # A reference that waits and a field without a column are the census's to count.
        fields: Any = {"state": state, "pages": 7.5, "title": None, "reader": "r", "x": 1, "$": 1}
        await library.apply(by, [Write("books/1", fields), Write("cards/1", {"name": "n"})])
    await library.apply(by, [Write("books/1", {"state": "lent", "rating": float("nan")})])
    assert telemetry.counts(MISFITS) == {
        ("books", "state", "word"): 2,
        ("books", "pages", "type"): 3,
        ("books", "title", "null"): 3,
        ("books", "rating", "range"): 1,
    }


# --- references --------------------------------------------------------------------------------


async def test_a_reference_waits_for_its_parent(library: Library):
    loan = {"book": "b", "reader": "r", "note": 1}
    await library.put(loans__1=loan, loans__2={"book": "b", "$odd": True})
    assert sorted(await library.column("loans", "1", "misfits")) == ["book", "reader"]
    assert await library.found("loans", "book", "b") == ["loans/1", "loans/2"]
    await library.put(books__b={"title": "t"})
    assert await library.column("loans", "1", "book_id") == "b"
    assert await library.column("loans", "2", "book_id") == "b"
    assert await library.column("loans", "2", "misfits") == ["$m"]
    assert await library.column("loans", "1", "misfits") == ["reader"]
    assert await library.fields("loans/1") == loan
    assert await library.fields("loans/2") == {"book": "b", "$odd": True}
    await library.put(readers__r={"name": "n"})
    assert await library.column("loans", "1", "misfits") is None
    assert await library.column("loans", "1", "remainder") == {"note": 1}
    assert await library.found("loans", "reader", "r") == ["loans/1"]


async def test_deleting_a_parent_demotes_its_references(library: Library):
    await library.commit(books__b={}, loans__1={"book": "b"}, loans__2={"book": "b", "$": 1})
    assert await library.column("loans", "1", "book_id") == "b"
    before = await library.stored("loans/1")
    await library.put(books__b=None)
    assert await library.stored("loans/1") == before
    assert await library.column("loans", "1", "book_id") is None
    assert await library.fields("loans/2") == {"book": "b", "$": 1}
    assert await library.found("loans", "book", "b") == ["loans/1", "loans/2"]
    await library.put(books__b={})
    assert await library.column("loans", "1", "remainder") is None
    assert await library.column("loans", "1", "misfits") is None


async def test_a_document_may_refer_to_itself(library: Library):
    await library.put(books__1={"sequel_of": "1"})
    assert await library.column("books", "1", "sequel_of") == "1"
    await library.put(books__1={"sequel_of": "2"})
    await library.put(books__1={"sequel_of": "1"})
    await library.put(books__1=None)
    assert await library.fields("books/1") is None


async def test_a_whole_commit_in_any_order(library: Library):
    await library.commit(loans__1={"book": "b"}, books__b={"sequel_of": "a"}, books__a={})
    assert await library.column("loans", "1", "book_id") == "b"
    assert await library.column("books", "b", "sequel_of") == "a"
    await library.commit(books__b=None, books__a=None)
    assert await library.fields("loans/1") == {"book": "b"}


@pytest.mark.parametrize("value", [None, 7, "a\0b", "x" * 700, ["b"], {"b": 1}])
async def test_what_is_no_reference_stays_what_it_is(library: Library, value: Any):
    await library.put(loans__1={"book": value}, books__7={}, books__b={})
    assert identical(await library.fields("loans/1"), {"book": value})
    assert await library.column("loans", "1", "misfits") == ["book"]


# --- uniques -----------------------------------------------------------------------------------


async def test_a_second_holder_waits_for_the_first(library: Library):
    await library.put(readers__a={"card": "1"}, readers__c={"card": "1"}, readers__b={"card": "1"})
    assert await library.column("readers", "a", "card") == "1"
    assert await library.column("readers", "b", "misfits") == ["card"]
    assert await library.found("readers", "card", "1") == ["readers/a", "readers/b", "readers/c"]
    await library.put(readers__a={"card": "2"})
    assert await library.column("readers", "b", "card") == "1"
    assert await library.column("readers", "c", "card") is None
    await library.put(readers__b=None)
    assert await library.column("readers", "c", "card") == "1"
    assert await library.column("readers", "c", "misfits") is None
    assert await library.found("readers", "card", "1") == ["readers/c"]


async def test_holders_change_places_in_one_commit(library: Library):
    await library.put(readers__a={"card": "1"}, readers__b={"card": "2"})
    await library.commit(readers__a={"card": "2"}, readers__b={"card": "1"})
    assert await library.column("readers", "a", "card") == "2"
    assert await library.column("readers", "b", "card") == "1"
    assert await library.column("readers", "a", "misfits") is None


async def test_a_value_that_is_let_go_by_becoming_another_type(library: Library):
    await library.put(readers__a={"card": "1"}, readers__b={"card": "1"}, readers__c={"card": "1"})
    await library.put(readers__b={"card": 1})
    await library.put(readers__a={"card": None})
    assert await library.column("readers", "c", "card") == "1"
    assert identical(await library.fields("readers/b"), {"card": 1})


async def test_fifty_writers_of_one_value(library: Library):
    names = [f"readers__{n}" for n in range(50)]
    await asyncio.gather(*(library.put(**{name: {"card": "x"}}) for name in names))
    held = await library.lanes.fetch(
        "select id from library.readers where card = 'x' and misfits is null", timeout=5
    )
    assert len(held) == 1
    assert len(await library.found("readers", "card", "x")) == 50
    for _ in range(3):
        (holder,) = await library.lanes.fetch(
            "select id from library.readers where card = 'x'", timeout=5
        )
        await library.put(**{f"readers__{holder['id']}": None})


async def test_parents_and_children_at_the_same_time(library: Library):
    """Whoever comes first: afterwards every reference is where it belongs."""
    for round_number in range(20):
        name = f"b{round_number}"
        await asyncio.gather(
            library.put(**{f"loans__{name}": {"book": name}}),
            library.put(**{f"books__{name}": {}}),
            library.put(**{f"loans__{name}x": {"book": name}}),
        )
        await asyncio.gather(
            library.put(**{f"loans__{name}y": {"book": name}}),
            *([library.put(**{f"books__{name}": None})] if round_number % 2 else []),
        )
    misplaced = await library.lanes.fetchval(_MISPLACED_REFERENCES, timeout=5)
    assert misplaced == 0


_MISPLACED_REFERENCES = """select count(*) from library.loans l
join library.books b on b.id = crossfade.waiting(l.remainder, 'book')"""


# --- subcollections ----------------------------------------------------------------------------


async def test_a_subcollection_and_its_parent(library: Library):
    await library.put(books__b__notes__1={"text": "a", "by": "r"}, books__a__notes__1={})
    row = await library.row("notes", "b/1")
    assert (row["parent"], row["text"], row["misfits"]) == (None, "a", ["by"])
    await library.put(books__b={}, readers__r={})
    row = await library.row("notes", "b/1")
    assert (row["parent"], row["by"], row["misfits"]) == ("b", "r", None)
    await library.put(books__b=None)
    assert await library.column("notes", "b/1", "parent") is None
    assert await library.fields("books/b/notes/1") == {"text": "a", "by": "r"}
    assert await library.column("notes", "a/1", "parent") is None


async def test_the_same_collection_elsewhere_is_generic(library: Library):
    await library.put(books__a__x__1__notes__1={"n": 1}, readers__a__notes__1={"n": 2})
    count = "select count(*) from crossfade.documents"
    assert await library.lanes.fetchval(count, timeout=5) == 2
    assert await library.fields("readers/a/notes/1") == {"n": 2}


async def test_a_commit_of_thousands_beside_others(library: Library):
    """A lock for each of its names would not fit PostgreSQL's lock table."""
    names = [f"readers__{n}" for n in range(4_000)]
    large = {name: {"card": name, "mail": f"{name}@x"} for name in names}
    await asyncio.gather(
        library.commit(**large),
        *(library.put(**{f"loans__{n}": {"reader": str(n)}}) for n in range(20)),
        *(library.put(**{f"readers__x{n}": {"card": f"readers__{n}"}}) for n in range(20)),
    )
    for sql in _MISPLACED.values():
        assert await library.lanes.fetchval(sql, timeout=10) == 0
    held = "select count(*) from library.readers where card like 'readers\\_\\_%'"
    assert await library.lanes.fetchval(held, timeout=5) == 4_000
    assert await library.lanes.fetchval(
        "select current_setting('crossfade.alone', true)", timeout=5
    ) in {
        None,
        "",
    }


# --- derived collections -----------------------------------------------------------------------


def a_time() -> datetime:
    return datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC)


def owner(**more: Any) -> dict[str, Any]:
    return {"name": "Ada", "card": "k1", "level": 3, "since": a_time(), "extra": 1} | more


def card(**more: Any) -> dict[str, Any]:
    return {"name": "Ada", "level": 3, "since": a_time()} | more


@pytest.mark.parametrize("owner_first", [True, False])
async def test_a_derived_document_is_held_by_its_owner(library: Library, owner_first: bool):
    both = {"readers__r": owner(), "cards__k1": card(note="x")}
    await library.put(**(both if owner_first else dict(reversed(both.items()))))
    row = await library.row("cards", "k1")
    assert (row["owner"], row["remainder"], row["misfits"]) == ("r", {"note": "x"}, None)
    assert identical(await library.fields("cards/k1"), card(note="x"))
    assert await library.found("cards", "name", "Ada") == ["cards/k1"]
    assert await library.found("cards", "level", 3.0) == ["cards/k1"]
    assert await library.found("cards", "note", "x") == ["cards/k1"]


@pytest.mark.parametrize(
    "change",
    [
        owner(name="Bea"),
        owner(level=3.0),
        owner(card="k2"),
        {"card": "k1", "name": "Ada"},
        None,
    ],
)
async def test_a_derived_document_does_not_follow_its_owner(library: Library, change: Any):
    await library.put(readers__r=owner(), cards__k1=card())
    before = await library.stored("cards/k1")
    await library.put(readers__r=change)
    row = await library.row("cards", "k1")
    assert row["owner"] is None
    assert sorted(row["misfits"]) == ["level", "name", "since"]
    assert await library.stored("cards/k1") == before
    assert await library.found("cards", "name", "Ada") == ["cards/k1"]
    await library.put(readers__r=owner())
    assert await library.column("cards", "k1", "owner") == "r"


async def test_an_owner_that_changes_something_else_keeps_its_derived_documents(library: Library):
    await library.put(readers__r=owner(), cards__k1=card())
    where = "select ctid::text from library.cards"
    before = await library.lanes.fetchval(where, timeout=5)
    await library.put(readers__r=owner(visits=[1], mail="m"))
    assert await library.lanes.fetchval(where, timeout=5) == before


@pytest.mark.parametrize(
    "kept",
    [
        card(level=3.0),
        card(name="ada"),
        {"name": "Ada"},
        {},
        {"$": 1} | card(level="3"),
        {"of_name": "x"},
    ],
)
async def test_what_the_owner_does_not_say_is_kept_as_it_is(library: Library, kept: Any):
    await library.put(readers__r=owner(), cards__k1=kept, cards__dangling=card())
    assert await library.column("cards", "k1", "owner") is None
    assert await library.column("cards", "dangling", "owner") is None
    assert identical(await library.fields("cards/k1"), kept)
    assert identical(await library.fields("cards/dangling"), card())


async def test_a_doubled_key_follows_whoever_holds_it(library: Library):
    await library.put(readers__a=owner(name="Bea"), readers__b=owner(), cards__k1=card())
    assert await library.column("cards", "k1", "owner") is None
    await library.put(readers__a=None)
    assert await library.column("readers", "b", "card") == "k1"
    assert await library.column("cards", "k1", "owner") == "b"
    assert identical(await library.fields("cards/k1"), card())


async def test_elements_of_an_array(library: Library):
    visit = {"day": 5, "note": "a", "at": a_time(), "x": None}
    await library.put(readers__r_1={"visits": [visit, {"day": 6}, "other"]}, visits__r_1_5=visit)
    row = await library.row("visits", "r_1_5")
    assert (row["owner"], row["remainder"]) == ("r_1", None)
    assert identical(await library.fields("visits/r_1_5"), visit)
    assert await library.found("visits", "note", "a") == ["visits/r_1_5"]
    await library.put(readers__r_1={"visits": [visit], "name": "n"})
    assert await library.column("visits", "r_1_5", "owner") == "r_1"
    for change in ({"visits": [visit | {"note": "b"}]}, {"visits": [visit, visit]}, {}, None):
        await library.put(readers__r_1=change)
        assert await library.column("visits", "r_1_5", "owner") is None
        assert identical(await library.fields("visits/r_1_5"), visit)
        assert await library.found("visits", "note", "a") == ["visits/r_1_5"]
        await library.put(readers__r_1={"visits": [visit]})
        assert await library.column("visits", "r_1_5", "owner") == "r_1"


async def test_owner_and_derived_document_at_the_same_time(library: Library):
    for number in range(20):
        await asyncio.gather(
            library.put(readers__r=owner(level=number)),
            library.put(cards__k1=card(level=number)),
            library.put(cards__k1=card(level=number)),
        )
        assert identical(await library.fields("cards/k1"), card(level=number))
        assert await library.column("cards", "k1", "owner") == "r"


# --- whatever happens --------------------------------------------------------------------------

IDS = ["a", "b", "c", "a_1"]
_CARDS = st.sampled_from(["a", "b", "k"])
_LEVELS = st.sampled_from([1, 1, 2, 1.0])
_VISIT = st.fixed_dictionaries(
    {"day": st.sampled_from([1, 1, 2, "1"])}, optional={"n": strategies.values(1)}
)
_FITTING: dict[str, dict[str, Any]] = {
    "readers": {
        "name": st.sampled_from(["n", "n", "m"]),
        "card": _CARDS,
        "mail": _CARDS,
        "since": st.just(a_time()),
        "level": _LEVELS,
        "visits": st.lists(_VISIT, max_size=2),
    },
    "books": {
        "state": st.sampled_from(["shelved", "lent", "burnt"]),
        "reader": st.sampled_from(IDS),
        "sequel_of": st.sampled_from(IDS),
        "rating": st.floats(),
    },
    "loans": {"book": st.sampled_from(IDS), "reader": st.sampled_from(IDS)},
    "cards": {"name": st.just("n"), "since": st.just(a_time()), "level": _LEVELS},
    "visits": {"day": st.sampled_from([1, 1, 2, "1"])},
    "notes": {"text": st.text(max_size=2), "by": st.sampled_from(IDS)},
}
_PATHS = {name: [f"{name}/{key}" for key in IDS] for name in ("readers", "books", "loans")} | {
    "cards": ["cards/a", "cards/b", "cards/k"],
    "visits": ["visits/a_1", "visits/b_1", "visits/a_1_1", "visits/b_2"],
    "notes": [
        *("books/a/notes/1", "books/a/notes/__id5__", "books/b/notes/1", "books/a-/notes/1"),
        *("books/__id7__/notes/2", "books/a/x/1/notes/1", "readers/a/notes/1"),
    ],
}


@st.composite
def documents(draw: st.DrawFn, collection: str) -> dict[str, Any]:
    fields = {}
    for name, fitting in _FITTING[collection].items():
        choice = draw(st.integers(0, 9))
        if choice:
            fields[name] = draw(strategies.values(1) if choice == 9 else fitting)
    if draw(st.integers(0, 3)) == 0:
        fields |= draw(st.dictionaries(st.sampled_from(["$", "x", "n\0"]), strategies.values(1)))
    return fields


@st.composite
def histories(draw: st.DrawFn) -> list[list[Write]]:
    """Commits of sets and deletes all over the library."""
    commits = []
    for _ in range(draw(st.integers(4, 12))):
        writes: dict[str, Write] = {}
        for _ in range(draw(st.integers(1, 3))):
            collection = draw(st.sampled_from(list(_FITTING)))
            path = draw(st.sampled_from(_PATHS[collection]))
            gone = draw(st.integers(0, 4)) == 0
            writes[path] = Write(path, None if gone else draw(documents(collection)))
        commits.append(list(writes.values()))
    return commits


EVERYTHING = Query(all_descendants=True)


def _asked(commits: Sequence[Sequence[Write]]) -> list[Query]:
    """Everything, in pages too; subcollections in every scope; the last values written."""
    asked = [EVERYTHING, Query(parent="books/a", all_descendants=True)]
    for scope in (
        {"parent": "books/a"},
        {"all_descendants": True},
        {"parent": "books/a", "all_descendants": True},
        {"parent": "books/a/x/1", "all_descendants": True},
        {},
    ):
        asked.append(Query(collection="notes", **scope))
        for path in ("books/a/notes/1", "books/a/notes/__id5__", "books/a", "readers/a/notes/1"):
            for before in (True, False):
                start = Cursor((Reference(path),), before)
                query = Query(collection="notes", order_by=(Order(NAME),), start=start, **scope)
                asked += [query, replace(query, limit=1), replace(query, start=None, end=start)]
    name = Reference("books/a/notes/1")
    asked.append(Query(collection="notes", where=FieldFilter(NAME, Op.EQUAL, name), **_ALL))
    asked.append(Query(order_by=(Order(NAME),), limit=2, **_ALL))
    for commit in commits[-2:]:
        for write in commit:
            collection = write.path.split("/")[-2]
            for field, value in (write.fields or {}).items():
                for op in (Op.EQUAL, Op.LESS_THAN, Op.NOT_EQUAL):
                    where = FieldFilter((field,), op, value)
                    asked.append(Query(collection=collection, where=where, **_ALL))
    return asked


_ALL: dict[str, Any] = {"all_descendants": True}
_MISPLACED = {
    "loans.book": _MISPLACED_REFERENCES,
    "books.reader": """select count(*) from library.books b
        join library.readers r on r.id = crossfade.waiting(b.remainder, 'reader')""",
    "books.sequel_of": """select count(*) from library.books b
        join library.books o on o.id = crossfade.waiting(b.remainder, 'sequel_of')""",
    **{
        name: f"""select count(*) from library.readers b where not exists (
            select from library.readers r
            where r.{name} = crossfade.waiting(b.remainder, '{name}'))
        and crossfade.waiting(b.remainder, '{name}') is not null"""
        for name in ("card", "mail")
    },
    "cards": """select count(*) from library.cards c join library.readers r on r.card = c.id
        where c.owner is null and crossfade.held(c.remainder, 'name') = to_jsonb(r.name)
        and crossfade.held(c.remainder, 'level') = to_jsonb(r.level)
        and crossfade.held(c.remainder, 'since') is not null and r.since is not null""",
    "parents": """select count(*) from library.notes n left join library.books b
        on b.id = split_part(n.id, '/', 1) where b.id is distinct from n.parent""",
    "misfits": """select count(*) from library.readers
        where card is not null and 'card' = any(misfits)""",
}


@pytest.mark.parametrize("by", ["commits", "puts", "pages"])
async def test_random_histories(library: Library, by: str):
    """Every document and every answer as the reference store has them, and every value where
    it belongs."""
    made: list[list[list[Write]]] = []

    @given(histories())
    @settings(max_examples=40, database=None, suppress_health_check=list(HealthCheck))
    def collect(history: list[list[Write]]) -> None:
        made.append(history)

    await asyncio.get_running_loop().run_in_executor(None, collect)
    await library.control()
    for history in made:
        memory = MemoryStore(DATABASE)
        for commit in history:
            await memory.commit(commit, timeout=5)
            await library.apply(by, commit)
        for query in _asked(history):
            theirs = await answer(memory, query)
            ours = await answer(library.store, query)
            if isinstance(ours, str) or isinstance(theirs, str):
                assert ours == theirs, query
                continue
            assert [d.path for d in ours] == [d.path for d in theirs], query
            for one, other in zip(ours, theirs, strict=True):
                assert identical(one.fields, other.fields), (history, one.path)
        for name, sql in _MISPLACED.items():
            assert await library.lanes.fetchval(sql, timeout=5) == 0, (name, history)
        leftover = [Write(d.path, None) for d in await run(library.store, EVERYTHING)]
        if leftover:
            await library.apply(by, leftover)


@pytest.mark.parametrize("by", ["commits", "puts"])
async def test_a_storm_of_writers(library: Library, by: str):
    """Sixteen at a time, all over the same few documents. Afterwards every document is what
    was written to it last, and every value is where it belongs."""
    made: list[list[list[Write]]] = []

    @given(histories())
    @settings(max_examples=60, database=None, suppress_health_check=list(HealthCheck))
    def collect(history: list[list[Write]]) -> None:
        made.append(history)

    await asyncio.get_running_loop().run_in_executor(None, collect)
    await library.control()
    commits = [commit for history in made for commit in history]
    last: dict[str, tuple[int, Any]] = {}
    gate = asyncio.Semaphore(16)
    conflicts = 0

    async def write(commit: list[Write]) -> None:
        nonlocal conflicts
        async with gate:
            for _ in range(20):
                try:
                    time = await library.apply(by, commit)
                except Aborted:  # two commits met crosswise; a client tries again
                    conflicts += 1
                    continue
                for each in commit:
                    if last.get(each.path, (0, None))[0] < time:
                        last[each.path] = (time, each.fields)
                return
            pytest.fail("a commit was aborted again and again")

    await asyncio.gather(*map(write, commits))
    for path, (_, fields) in last.items():
        assert identical(await library.fields(path), fields), path
    for name, sql in _MISPLACED.items():
        assert await library.lanes.fetchval(sql, timeout=5) == 0, name
    assert conflicts < len(commits) / 4
