"""Optimistic transactions on PostgreSQL, and many writers at once."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from crossfade.errors import Aborted, FailedPrecondition
from crossfade.store import Intent, Version
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.store import PostgresStore
from crossfade.wire import parse_document
from crossfade.write import Transform, TransformKind, Write
from tests.contract.mapped import MAPPED
from tests.postgres_fixture import DATABASE, MakeDatabase, MakeLanes
from violet.mapping import MAPPINGS

SECONDS = 60.0
PATHS = ("tasks/1", "notes/1")
WRITERS = 50
MOST_TRIES = 200


@pytest.fixture
async def store(postgres_lanes: MakeLanes) -> PostgresStore:
    return PostgresStore(await postgres_lanes(size=8), MAPPINGS, DATABASE)


async def read(store: PostgresStore, *paths: str) -> list[tuple[dict[str, Any] | None, Any]]:
    """Fields and version of each."""
    reading = await store.get(paths, timeout=SECONDS)
    return [
        (None if s.data is None else parse_document(s.data, DATABASE).fields, s.version)
        for s in reading.documents
    ]


async def version(store: PostgresStore, path: str) -> Version | None:
    ((_, found),) = await read(store, path)
    return found


async def again_until_done(attempt: Callable[[], Awaitable[None]]) -> int:
    """How often it was aborted."""
    for tries in range(MOST_TRIES):
        with suppress(Aborted):
            await attempt()
            return tries
    pytest.fail(f"aborted {MOST_TRIES} times")


def increment(path: str, by: int = 1) -> Write:
    return Write(path, {}, (), (Transform(("n",), TransformKind.INCREMENT, by),))


# --- what was read must still be so ------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_what_did_not_change_can_be_committed_upon(store: PostgresStore, path: str) -> None:
    await store.commit([Write(path, {"a": 1})], timeout=SECONDS)
    reads = [(path, await version(store, path)), ("tasks/none", None), ("notes/none", None)]
    outcome = await store.commit([Write(path, {"a": 2})], timeout=SECONDS, reads=reads)
    ((fields, now),) = await read(store, path)
    assert fields == {"a": 2}
    assert now == (0, outcome.commit_time)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("change", ["write", "delete", "delete and back", "there and back"])
async def test_a_document_that_was_read_and_changed(
    store: PostgresStore, path: str, change: str
) -> None:
    await store.commit([Write(path, {"a": 1})], timeout=SECONDS)
    reads = [(path, await version(store, path))]
    changes: dict[str, list[dict[str, Any] | None]] = {
        "write": [{"a": 2}],
        "delete": [None],
        "delete and back": [None, {"a": 1}],
        "there and back": [{"a": 2}, {"a": 1}],
    }
    for fields in changes[change]:
        await store.commit([Write(path, fields)], timeout=SECONDS)
    with pytest.raises(Aborted):
        await store.commit([Write("tasks/2", {"a": 3})], timeout=SECONDS, reads=reads)
    ((fields, _),) = await read(store, "tasks/2")
    assert fields is None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("before", ["never there", "deleted"])
async def test_a_document_that_was_missing(store: PostgresStore, path: str, before: str) -> None:
    if before == "deleted":
        await store.commit([Write(path, {})], timeout=SECONDS)
        await store.commit([Write(path, None)], timeout=SECONDS)
    missing = await version(store, path)
    assert (missing is None) is (before == "never there")
    await store.commit([Write("tasks/2", {"a": 1})], timeout=SECONDS, reads=[(path, missing)])
    await store.commit([Write(path, {"a": 1})], timeout=SECONDS)
    with pytest.raises(Aborted):
        await store.commit([Write("tasks/2", {"a": 2})], timeout=SECONDS, reads=[(path, missing)])
    # It is gone again, but it has been there.
    await store.commit([Write(path, None)], timeout=SECONDS)
    with pytest.raises(Aborted):
        await store.commit([Write("tasks/2", {"a": 2})], timeout=SECONDS, reads=[(path, missing)])
    ((fields, _),) = await read(store, "tasks/2")
    assert fields == {"a": 1}


async def test_what_changes_nothing_is_no_conflict(store: PostgresStore) -> None:
    await store.commit([Write("tasks/1", {"a": 1})], timeout=SECONDS)
    reads = [("tasks/1", await version(store, "tasks/1"))]
    await store.commit([Write("tasks/1", {"a": 1}), Write("notes/1", None)], timeout=SECONDS)
    await store.commit([Write("tasks/1", {"a": 2})], timeout=SECONDS, reads=reads)


async def test_a_transaction_that_only_reads(store: PostgresStore) -> None:
    """A commit of nothing says whether all that was read is of one moment."""
    await store.commit([Write("tasks/1", {}), Write("notes/1", {})], timeout=SECONDS)
    reads = [(path, await version(store, path)) for path in PATHS]
    await store.commit([], timeout=SECONDS, reads=reads)
    await store.commit([increment("notes/1")], timeout=SECONDS)
    with pytest.raises(Aborted):
        await store.commit([], timeout=SECONDS, reads=reads)


async def test_conflicts_come_before_preconditions(store: PostgresStore) -> None:
    """Tried again it may be fine: the precondition was chosen by what was read."""
    made = await store.commit([Write("tasks/1", {"a": 1})], timeout=SECONDS)
    reads = [("tasks/1", await version(store, "tasks/1"))]
    conditional = Write("tasks/1", {"a": 3}, update_time=made.commit_time)
    await store.commit([Write("tasks/1", {"a": 2})], timeout=SECONDS)
    with pytest.raises(Aborted):
        await store.commit([conditional], timeout=SECONDS, reads=reads)
    with pytest.raises(FailedPrecondition):
        await store.commit([conditional], timeout=SECONDS)


async def test_a_request_that_was_done_is_answered_whatever_changed_since(
    postgres_lanes: MakeLanes,
) -> None:
    lanes = await postgres_lanes()
    await lanes.execute(
        """insert into crossfade.control (grp, stage, authority, epoch, generation)
        values ('default', 'live', 'postgresql', 1, 1)""",
        timeout=SECONDS,
    )
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    request = Intent("i", 1, mirrored=False, request_id="r")
    reads: list[tuple[str, Version | None]] = [("tasks/1", None)]
    write = [Write("tasks/1", {"a": 1})]
    first = await store.commit(write, timeout=SECONDS, intent=request, reads=reads)
    again = await store.commit(write, timeout=SECONDS, intent=request, reads=reads)
    assert again.replayed
    assert again.commit_time == first.commit_time


# --- many at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_a_counter_by_transactions_loses_none(store: PostgresStore, path: str) -> None:
    async def add_one() -> None:
        ((fields, seen),) = await read(store, path)
        count = 0 if fields is None else fields["n"]
        await store.commit([Write(path, {"n": count + 1})], timeout=SECONDS, reads=[(path, seen)])

    aborted = sum(await asyncio.gather(*(again_until_done(add_one) for _ in range(12))))
    ((fields, _),) = await read(store, path)
    assert fields == {"n": 12}
    assert aborted > 0  # otherwise nothing was tested


async def test_no_write_skew(store: PostgresStore) -> None:
    """Each of two transactions reads both documents and clears one, if the other is set: with
    snapshots alone, both would be cleared."""

    async def clear(mine: str, other: str) -> None:
        (_, seen), (fields, known) = await read(store, mine, other)
        if fields is not None and fields["on"]:
            await store.commit(
                [Write(mine, {"on": False})], timeout=SECONDS, reads=[(mine, seen), (other, known)]
            )

    for turn in range(10):
        await store.commit(
            [Write(path, {"on": True, "turn": turn}) for path in PATHS], timeout=SECONDS
        )
        await asyncio.gather(
            again_until_done(partial(clear, *PATHS)),
            again_until_done(partial(clear, *reversed(PATHS))),
        )
        left = [fields["on"] for fields, _ in await read(store, *PATHS) if fields]
        assert sorted(left) == [False, True]


async def test_readers_of_one_document_do_not_wait_for_one_another(
    postgres_lanes: MakeLanes,
) -> None:
    lanes = await postgres_lanes()
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    await store.commit([Write("notes/settings", {"a": 1})], timeout=SECONDS)
    reads = [("notes/settings", await version(store, "notes/settings"))]
    async with lanes.transaction(SECONDS) as other:
        await other.execute(
            "select pg_advisory_xact_lock_shared(hashtextextended('p:notes/settings', 7))"
        )
        await store.commit([increment("tasks/1")], timeout=10, reads=reads)


async def test_fifty_writers_of_the_same_documents_in_opposite_orders(
    store: PostgresStore,
) -> None:
    paths = ["tasks/1", "tasks/2", "notes/1", "users/1", "notes/1/sub/2"]
    await asyncio.gather(
        *(
            store.commit(
                [increment(path) for path in (paths if turn % 2 else reversed(paths))],
                timeout=SECONDS,
            )
            for turn in range(WRITERS)
        )
    )
    assert [fields for fields, _ in await read(store, *paths)] == [{"n": WRITERS}] * len(paths)


async def test_fifty_writers_that_refer_crosswise_and_hold_unique_values(
    postgres_database: MakeDatabase, postgres_lanes: MakeLanes
) -> None:
    """Five groups write documents of their own, each of which refers to the next group's and
    wants the same unique values, while owners come and go: placements lock the names and
    rows of others, in no order. No deadlock reaches a caller, no increment is lost."""
    url = await postgres_database()
    first = await postgres_lanes(url=url)
    await create_schema(first, MAPPED)
    name = await first.fetchval("select current_database()", timeout=SECONDS)
    # Deadlocks are many here, and each takes a second by default.
    await first.execute(f"alter database {name} set deadlock_timeout = '20ms'", timeout=SECONDS)
    lanes = await postgres_lanes(size=16, url=url)
    store = PostgresStore(lanes, MAPPED, DATABASE)
    groups = 5

    def writes(turn: int) -> list[Write]:
        group, half = turn % groups, turn // groups % 2
        after, second = (group + 1) % groups, (group + 2) % groups
        count = Transform(("0",), TransformKind.INCREMENT, 1)
        return [
            Write(f"d/{group}", {"a": f"u{half}", "b": turn} if turn % 3 else None),
            Write(f"c/{group}", {"b": f"{after}", "ünï": f"u{half}"}, (("b",), ("ünï",)), (count,)),
            Write(f"c/{after}/sub/{group}", {"c": f"{second}", "a.b": f"{after}"}),
            Write(f"c/{group}/sub/n", {}, (), (count,)),
            Write(f"sub/u{group % 2}{group}", {"b": turn}),
        ]

    await asyncio.gather(
        *(
            store.commit(writes(turn) if turn % 2 else writes(turn)[::-1], timeout=SECONDS)
            for turn in range(WRITERS)
        )
    )
    counted = [path for group in range(groups) for path in (f"c/{group}", f"c/{group}/sub/n")]
    sums = [fields["0"] for fields, _ in await read(store, *counted) if fields]
    assert sums == [WRITERS // groups] * len(counted)
