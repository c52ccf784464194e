"""Where the official emulator and the documented cloud differ, we follow the cloud.

Each test states both sides, so that a new emulator that comes round is noticed.
"""

import pytest

from crossfade.document import NAME, Database
from crossfade.errors import (
    AlreadyExists,
    CrossfadeError,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from crossfade.query import CompositeFilter, FieldFilter, Op, Order, Query
from crossfade.stores.firestore import FirestoreStore, connect
from crossfade.stores.memory import MemoryStore
from crossfade.write import Transform, TransformKind, Write
from tests.firestore_fixture import fresh_database

pytestmark = pytest.mark.official
SECONDS = 30.0


@pytest.fixture
def database() -> Database:
    return fresh_database()


@pytest.fixture
def memory(database: Database) -> MemoryStore:
    return MemoryStore(database)


@pytest.fixture
def official(database: Database, official_emulator: str) -> FirestoreStore:
    return connect(database, official_emulator)


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


async def test_creating_twice_in_one_commit(memory: MemoryStore, official: FirestoreStore) -> None:
    """The second create meets a document. The emulator calls the request itself illegal."""
    write = Write("c/a", {}, exists=False)
    assert await both(memory, official, write, write) == (AlreadyExists, InvalidArgument)


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
