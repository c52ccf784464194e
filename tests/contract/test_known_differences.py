"""Where the official emulator and the documented cloud differ, we follow the cloud.

Each test states both sides, so that a new emulator that comes round is noticed.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from google.cloud.firestore_v1 import types

from crossfade.aggregate import Aggregation, AggregationKind
from crossfade.document import NAME, Database, Fields
from crossfade.errors import (
    CrossfadeError,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from crossfade.nearest import Measure, Nearest
from crossfade.query import CompositeFilter, FieldFilter, Op, Order, Query
from crossfade.stores.firestore import FirestoreStore, connect
from crossfade.stores.memory import MemoryStore
from crossfade.write import Transform, TransformKind, Write
from tests.contract.protocol import (
    Aggregate,
    Answer,
    Commit,
    ListDocuments,
    Request,
    RunQuery,
    Server,
    Session,
)
from tests.firestore_fixture import fresh_database

pytestmark = pytest.mark.official
SECONDS = 30.0


@pytest.fixture
def database() -> Database:
    return fresh_database()


@pytest.fixture
def memory(database: Database) -> MemoryStore:
    return MemoryStore(database)


@pytest_asyncio.fixture
async def official(database: Database, official_emulator: str) -> AsyncIterator[FirestoreStore]:
    store = connect(database, official_emulator)
    yield store
    await store.close()


async def both(
    memory: MemoryStore, official: FirestoreStore, *writes: Write
) -> tuple[type[CrossfadeError] | None, type[CrossfadeError] | None]:
    """The errors of the same commit on both."""
    errors: list[type[CrossfadeError] | None] = []
    for store in (memory, official):
        try:
            await store.commit(writes, timeout=SECONDS)
        except CrossfadeError as error:
            errors.append(type(error))
        else:
            errors.append(None)
    return errors[0], errors[1]


async def test_descending_names_alone(memory: MemoryStore, official: FirestoreStore) -> None:
    """The cloud serves them with the automatic index; the emulator refuses."""
    query = Query(collection="c", order_by=(Order(NAME, descending=True),))
    writes = [Write("c/a", {}), Write("c/b", {})]
    assert await both(memory, official, *writes) == (None, None)
    assert [document.path for document in memory.run(query)] == ["c/b", "c/a"]
    with pytest.raises(FailedPrecondition):
        async for _ in official.query(query, timeout=SECONDS):
            pass


@pytest.mark.parametrize(
    "where",
    [
        CompositeFilter(any_of=False, filters=(FieldFilter(("v",), Op.ARRAY_CONTAINS, 1),) * 2),
        CompositeFilter(any_of=True, filters=(FieldFilter(("v",), Op.EQUAL, 1),) * 31),
    ],
)
async def test_the_same_filter_twice(
    memory: MemoryStore, official: FirestoreStore, where: CompositeFilter
) -> None:
    """Documented are limits of what is sent; the emulator counts a repeated filter once."""
    query = Query(collection="c", where=where)
    with pytest.raises(InvalidArgument):
        memory.run(query)
    assert [page async for page in official.query(query, timeout=SECONDS)]


async def test_a_filter_that_nothing_passes(memory: MemoryStore, official: FirestoreStore) -> None:
    """The emulator does not look at the order of a query that is empty anyway."""
    where = FieldFilter(("v",), Op.GREATER_THAN, None)
    query = Query(collection="c", where=where, order_by=(Order(NAME),))
    with pytest.raises(InvalidArgument):
        memory.run(query)
    assert [page async for page in official.query(query, timeout=SECONDS)]


async def test_union_of_arrays(memory: MemoryStore, official: FirestoreStore) -> None:
    """An array in an array is illegal, also when a transform makes it."""
    write = Write("c/a", {}, (), (Transform(("v",), TransformKind.UNION, [[1]]),))
    assert await both(memory, official, write) == (InvalidArgument, None)


async def test_transform_of_the_name(memory: MemoryStore, official: FirestoreStore) -> None:
    """`__name__` is reserved."""
    write = Write("c/a", {}, (), (Transform(NAME, TransformKind.INCREMENT, 1),))
    assert await both(memory, official, write) == (InvalidArgument, None)


async def test_request_of_more_than_four_mebibytes(
    memory: MemoryStore, official: FirestoreStore
) -> None:
    """The cloud takes 10 MiB; the emulator's server stops at 4."""
    writes = [Write(f"c/{number}", {"v": "x" * 1_000_000}) for number in range(5)]
    ours, theirs = await both(memory, official, *writes)
    assert ours is None
    assert theirs is not None


async def test_ids_of_underscores(memory: MemoryStore, official: FirestoreStore) -> None:
    """ "__.*__" is reserved, and "____" matches it."""
    from crossfade.document import check_document_path

    with pytest.raises(InvalidArgument):
        check_document_path("c/____")
    await official.commit([Write("c/____", {})], timeout=SECONDS)


async def test_bytes_that_are_no_request(official: FirestoreStore) -> None:
    """The emulator answers UNKNOWN, which leaves the outcome open; our front says
    INVALID_ARGUMENT (test_embedded_firestore.py)."""
    with pytest.raises(Unavailable):
        await official.commit([_broken()], timeout=SECONDS)


def _broken() -> Write:
    """A write whose bytes are cut off."""
    return Write("c/a", {}, raw=b"\x0a\xff")


# --- what random requests meet (emulator.py and requests.py leave it out) ----------------------


@pytest_asyncio.fixture
async def sessions(
    embedded_firestore: str, official_emulator: str
) -> AsyncIterator[tuple[Session, Session]]:
    """The same new database on the embedded server and on the emulator."""
    database = fresh_database()
    servers = (Server("embedded", embedded_firestore), Server("official", official_emulator))
    yield Session(servers[0], database), Session(servers[1], database)
    for server in servers:
        await server.close()


async def ask(sessions: tuple[Session, Session], request: Request) -> tuple[Answer, Answer]:
    ours, theirs = [await session.ask(request) for session in sessions]
    return ours, theirs


async def put(sessions: tuple[Session, Session], **documents: dict[str, Any]) -> None:
    writes = [Write(f"c/{name}", fields) for name, fields in documents.items()]
    for answer in await ask(sessions, Commit(writes)):
        assert not answer.error


async def test_sums_of_doubles_have_no_fixed_order(sessions: tuple[Session, Session]) -> None:
    """The emulator adds documents in an order that changes from call to call, with an error
    that shows. We round once."""
    values = [1e100, 1.0, -1e100]
    await put(sessions, **{f"d{index}": {"v": value} for index, value in enumerate(values)})
    request = Aggregate(Query(collection="c"), [Aggregation(AggregationKind.SUM, "s", ("v",))])
    seen = set()
    for _ in range(40):
        ours, theirs = await ask(sessions, request)
        assert ours.values == [{"s": 1.0}]
        seen.add(theirs.values[0]["s"])
    assert seen == {0.0, 1.0}


async def test_counting_up_to_nothing(sessions: tuple[Session, Session]) -> None:
    """`up_to` "must be greater than zero when present" (the protocol's own comment)."""
    count = Aggregation(AggregationKind.COUNT, "n", up_to=0)
    ours, theirs = await ask(sessions, Aggregate(Query(collection="c"), [count]))
    assert (ours.error, theirs.error) == ("INVALID_ARGUMENT", "")
    assert theirs.values == [{"n": 0}]


async def test_six_aggregations(sessions: tuple[Session, Session]) -> None:
    """At most five are allowed. The emulator fails."""
    counts = [Aggregation(AggregationKind.COUNT, f"n{index}") for index in range(6)]
    ours, theirs = await ask(sessions, Aggregate(Query(collection="c"), counts))
    assert (ours.error, theirs.error) == ("INVALID_ARGUMENT", "UNKNOWN")


async def test_neighbours_below_a_dotted_name(sessions: tuple[Session, Session]) -> None:
    """A field that is named "a.b" is not the field b of a. The emulator mixes them up."""
    vector: Fields = {"__type__": "__vector__", "value": [1.0]}
    await put(sessions, x={"a.b": vector})
    near = Nearest(("a", "b"), vector, Measure.EUCLIDEAN, 1, threshold=1.0)
    ours, theirs = await ask(sessions, RunQuery(Query(collection="c", nearest=near)))
    assert (ours, theirs.error) == (Answer(), "UNKNOWN")


async def test_neighbours_in_maps(sessions: tuple[Session, Session]) -> None:
    """A vector may lie in a map, as any other value. The emulator finds only fields of the
    document itself."""
    vector: Fields = {"__type__": "__vector__", "value": [1.0]}
    await put(sessions, x={"a": {"b": vector}})
    near = Nearest(("a", "b"), vector, Measure.EUCLIDEAN, 1)
    ours, theirs = await ask(sessions, RunQuery(Query(collection="c", nearest=near)))
    assert [path for path, *_ in ours.values] == ["c/x"]
    assert theirs == Answer()


async def test_pages_in_an_order_of_fields(sessions: tuple[Session, Session]) -> None:
    """ListDocuments pages in any order (the protocol says so). The emulator fails at its own
    page token."""
    await put(sessions, x={"v": 2}, y={"v": 1})
    ours, theirs = await ask(sessions, ListDocuments("", "c", page_size=1, order_by="v"))
    assert [[path for path, *_ in page] for page in ours.values] == [["c/y"], ["c/x"]]
    assert theirs.error == "UNKNOWN"


async def test_a_mask_beside_show_missing(sessions: tuple[Session, Session]) -> None:
    """A mask is a mask. The emulator forgets it."""
    await put(sessions, x={"v": 1, "w": 2})
    request = ListDocuments("", "c", mask=(("v",),), missing=True)
    ours, theirs = await ask(sessions, request)
    assert ours.values[0][0][1] == {"v": 1}
    assert theirs.values[0][0][1] == {"v": 1, "w": 2}


async def test_skipped_results(sessions: tuple[Session, Session]) -> None:
    """Documented: skipped "between the last response and the current response". The emulator
    says it of one response again and again, and of a last one never. We say it once."""
    await put(sessions, **{name: {} for name in "abcd"})
    skipped = []
    for session in sessions:
        request = types.RunQueryRequest.pb()(parent=session.database.root)
        request.structured_query.from_.add(collection_id="c")
        request.structured_query.offset = 1
        frames = await session.server.stream("RunQuery", request)
        replies = [types.RunQueryResponse.pb().FromString(frame) for frame in frames]
        skipped.append([reply.skipped_results for reply in replies if reply.document.name])
    assert skipped == [[1, 0, 0], [1, 1, 0]]


async def test_a_composite_filter_of_nothing(sessions: tuple[Session, Session]) -> None:
    """ "At least one filter is present" (the protocol's own comment)."""
    await put(sessions, x={})
    nothing = CompositeFilter(any_of=False, filters=())
    ours, theirs = await ask(sessions, RunQuery(Query(collection="c", where=nothing)))
    assert (ours.error, theirs.error) == ("INVALID_ARGUMENT", "")
