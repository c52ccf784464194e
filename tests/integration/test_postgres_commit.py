"""Commits with PostgreSQL as the authority."""

import asyncio
from typing import Any

import pytest

from crossfade.document import identical
from crossfade.errors import (
    AlreadyExists,
    EpochChanged,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from crossfade.store import CommitOutcome, Intent
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.store import PostgresStore
from crossfade.wire import parse_document
from crossfade.write import Transform, TransformKind, Write
from tests.postgres_fixture import DATABASE, MakeLanes, MakeStore
from violet.mapping import MAPPINGS

PATHS = ("tasks/1", "notes/1")


async def fields_of(store: PostgresStore, path: str) -> dict[str, Any] | None:
    (stored,) = (await store.get([path], timeout=5)).documents
    return None if stored.data is None else parse_document(stored.data, DATABASE).fields


async def seed_control(lanes: Lanes, authority: str = "postgresql", epoch: int = 1) -> None:
    await lanes.execute(
        """insert into crossfade.control (grp, stage, authority, epoch, generation)
        values ('default', 'live', $1, $2, 1)
        on conflict (grp) do update set authority = $1, epoch = $2""",
        authority,
        epoch,
        timeout=5,
    )


def intent(name: str = "i", epoch: int = 1, request_id: str | None = None) -> Intent:
    return Intent(name, epoch, mirrored=True, request_id=request_id)


def increment(path: str, by: int = 1) -> Write:
    return Write(path, {}, (), (Transform(("n",), TransformKind.INCREMENT, by),))


async def waiting(lanes: Lanes, count: int) -> None:
    """Returns when so many statements wait for a lock."""
    for _ in range(1_000):
        if count == await lanes.fetchval(
            """select count(*) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'""",
            timeout=5,
        ):
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{count} statements should wait for a lock")


async def pending(lanes: Lanes) -> list[tuple[Any, ...]]:
    rows = await lanes.fetch(
        """select intent, path, collection_path, collection_id, epoch, reason,
            lease_until <= now() from crossfade.pending order by path""",
        timeout=5,
    )
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("path", PATHS)
async def test_fifty_concurrent_increments_lose_none(postgres_lanes: MakeLanes, path: str):
    store = PostgresStore(await postgres_lanes(size=8), MAPPINGS, DATABASE)
    outcomes = await asyncio.gather(
        *(store.commit([increment(path)], timeout=30) for _ in range(50))
    )
    assert await fields_of(store, path) == {"n": 50}
    assert {outcome.writes[0].results for outcome in outcomes} == {(n,) for n in range(1, 51)}
    times = [outcome.commit_time for outcome in outcomes]
    assert len(set(times)) == 50


@pytest.mark.parametrize("collection", ["tasks", "notes"])
async def test_a_commit_of_twenty_thousand_writes_beside_small_ones(
    postgres_lanes: MakeLanes, collection: str
):
    """A lock for each of its paths would not fit PostgreSQL's lock table; and with fewer, the
    small commits of the same documents and it still wait for one another."""
    store = PostgresStore(await postgres_lanes(size=8), MAPPINGS, DATABASE)
    paths = [f"{collection}/{n}" for n in range(20_000)]
    shared = paths[::4_000]
    small = 0
    done = asyncio.Event()

    async def writer(number: int) -> None:
        nonlocal small
        while not done.is_set():
            await store.commit([increment(path) for path in shared[number:]], timeout=60)
            small += number == 0
            await asyncio.sleep(0)

    writers = [asyncio.create_task(writer(number)) for number in (0, 0, 0, 3)]
    await store.commit([increment(path, 1_000_000) for path in paths], timeout=60)
    done.set()
    await asyncio.gather(*writers)
    assert small >= 3
    assert await fields_of(store, shared[0]) == {"n": 1_000_000 + small}
    assert await fields_of(store, paths[-1]) == {"n": 1_000_000}


async def test_a_large_and_a_small_commit_wait_for_one_another(
    postgres_lanes: MakeLanes,
):
    lanes = await postgres_lanes(size=8)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    large = [increment(f"notes/{n}") for n in range(1_000)]
    await store.commit([increment("notes/7")], timeout=5)
    async with lanes.acquire(30) as holder:
        transaction = holder.transaction()
        await transaction.start()
        # Holds a document of both up, but not their locks: the first of them waits behind it.
        await holder.execute("select from crossfade.versions where path = 'notes/7' for update")
        first = asyncio.create_task(store.commit([increment("notes/7")], timeout=30))
        await waiting(lanes, 1)
        second = asyncio.create_task(store.commit(large, timeout=30))
        await waiting(lanes, 2)
        await transaction.rollback()
    await asyncio.gather(first, second)
    assert await fields_of(store, "notes/7") == {"n": 3}
    await store.commit([increment("notes/7"), *large], timeout=30)
    assert await fields_of(store, "notes/7") == {"n": 5}


async def test_commits_of_several_paths_in_any_order_do_not_wait_for_one_another(
    postgres_lanes: MakeLanes,
):
    store = PostgresStore(await postgres_lanes(size=8), MAPPINGS, DATABASE)
    paths = ["tasks/1", "tasks/2", "notes/1", "users/1"]
    await asyncio.gather(
        *(
            store.commit([increment(paths[(turn + n) % 4]) for n in range(4)], timeout=30)
            for turn in range(24)
        )
    )
    for path in paths:
        assert await fields_of(store, path) == {"n": 24}


async def test_all_or_nothing(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes()
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    with pytest.raises(NotFound):
        await store.commit(
            [Write("tasks/1", {"a": 1}), Write("notes/1", {"a": 1}, exists=True)], timeout=5
        )
    assert await fields_of(store, "tasks/1") is None
    assert await lanes.fetchval("select count(*) from crossfade.versions", timeout=5) == 0


@pytest.mark.parametrize("path", PATHS)
async def test_preconditions(make_store: MakeStore, path: str):
    store = await make_store(True)
    made = await store.commit([Write(path, {"a": 1}, exists=False)], timeout=5)
    with pytest.raises(AlreadyExists):
        await store.commit([Write(path, {"a": 2}, exists=False)], timeout=5)
    with pytest.raises(FailedPrecondition):
        await store.commit([Write(path, {"a": 2}, update_time=made.commit_time - 1)], timeout=5)
    with pytest.raises(InvalidArgument):
        await store.commit([Write(path, {"a": 2}, update_time=made.commit_time + 1)], timeout=5)
    await store.commit([Write(path, {"a": 3}, update_time=made.commit_time)], timeout=5)
    assert await fields_of(store, path) == {"a": 3}


@pytest.mark.parametrize("path", PATHS)
async def test_a_write_that_changes_nothing_keeps_the_update_time(
    postgres_lanes: MakeLanes, path: str
):
    lanes = await postgres_lanes()
    await seed_control(lanes)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    first = await store.commit([Write(path, {"a": -0.0, "b": None})], timeout=5)
    again = await store.commit([Write(path, {"a": -0.0, "b": None})], timeout=5, intent=intent())
    assert again.writes[0].update_time == first.commit_time
    assert await pending(lanes) == []
    changed = await store.commit([Write(path, {"a": 0.0, "b": None})], timeout=5)
    assert changed.writes[0].update_time == changed.commit_time > first.commit_time
    assert identical(await fields_of(store, path), {"a": 0.0, "b": None})


async def test_deleting_nothing_leaves_nothing(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes()
    await seed_control(lanes)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    outcome = await store.commit([Write("tasks/1", None)], timeout=5, intent=intent())
    assert outcome.writes[0].update_time is None
    assert await pending(lanes) == []
    assert await lanes.fetchval("select count(*) from crossfade.versions", timeout=5) == 0


@pytest.mark.parametrize("path", PATHS)
async def test_times_rise_above_every_former_version(postgres_lanes: MakeLanes, path: str):
    lanes = await postgres_lanes()
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    await store.commit([Write(path, {"a": 1}), Write("tasks/2", {})], timeout=5)
    ahead = 4_000_000_000_000_000  # the other authority's clock was ahead
    for table in ("crossfade.versions", "crossfade.documents", "violet.tasks"):
        column = "time" if table == "crossfade.versions" else "update_time"
        await lanes.execute(f"update {table} set {column} = {ahead}", timeout=5)
    outcome = await store.commit([Write(path, {"a": 2}), Write("tasks/2", None)], timeout=5)
    assert outcome.commit_time == ahead + 1
    assert outcome.writes[0].update_time == ahead + 1
    # The tombstone counts as well.
    made = await store.commit([Write("tasks/2", {})], timeout=5)
    assert made.commit_time == ahead + 2


async def test_create_time_is_kept_by_updates_and_new_after_a_delete(
    make_store: MakeStore,
):
    store = await make_store(True)
    first = await store.commit([Write("tasks/1", {"a": 1})], timeout=5)
    await store.commit([Write("tasks/1", {"a": 2})], timeout=5)

    async def create_time() -> int:
        (stored,) = (await store.get(["tasks/1"], timeout=5)).documents
        assert stored.data is not None
        return parse_document(stored.data, DATABASE).create_time

    assert await create_time() == first.commit_time
    again = await store.commit([Write("tasks/1", None), Write("tasks/1", {"a": 3})], timeout=5)
    assert await create_time() == again.commit_time


async def test_several_writes_of_one_document(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes()
    await seed_control(lanes)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    writes = [Write("tasks/1", {"a": 1}), increment("tasks/1", 2), increment("tasks/1", 3)]
    outcome = await store.commit(writes, timeout=5, intent=intent())
    assert [write.results for write in outcome.writes] == [(), (2,), (5,)]
    assert await fields_of(store, "tasks/1") == {"a": 1, "n": 5}
    assert [row[1] for row in await pending(lanes)] == ["tasks/1"]


# --- under an intent ---------------------------------------------------------------------------


async def test_pending_rows_are_of_the_same_transaction(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes()
    await seed_control(lanes, epoch=4)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    writes = [Write("tasks/1/chunks/2", {"a": 1}), Write("tasks/1", {"a": 1})]
    await store.commit(writes, timeout=5, intent=intent("one", epoch=4))
    assert await pending(lanes) == [
        ("one", "tasks/1", "tasks", "tasks", 4, "commit", True),
        ("one", "tasks/1/chunks/2", "tasks/1/chunks", "chunks", 4, "commit", True),
    ]
    (stored,) = (await store.get(["tasks/1"], timeout=5)).documents
    assert stored.version is not None
    assert stored.version[0] == 4
    await lanes.execute("delete from crossfade.pending", timeout=5)
    alone = Intent("two", 4, mirrored=False)
    await store.commit([Write("tasks/1", {"a": 2})], timeout=5, intent=alone)
    assert await pending(lanes) == []


@pytest.mark.parametrize(("authority", "epoch"), [("firestore", 1), ("none", 1), ("postgresql", 2)])
async def test_another_epoch_or_authority_stops_the_commit(
    postgres_lanes: MakeLanes, authority: str, epoch: int
):
    lanes = await postgres_lanes()
    await seed_control(lanes, authority, epoch)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    with pytest.raises(EpochChanged):
        await store.commit([Write("tasks/1", {})], timeout=5, intent=intent())
    assert await fields_of(store, "tasks/1") is None


async def test_a_group_without_a_control_row_has_no_authority(make_store: MakeStore):
    store = await make_store(True)
    with pytest.raises(EpochChanged):
        await store.commit([Write("tasks/1", {})], timeout=5, intent=intent())


async def test_a_change_of_authority_waits_for_the_commit_and_is_seen_by_the_next(
    postgres_lanes: MakeLanes,
):
    """H25: a commit that has read the control row holds the change back; one that comes
    while the change is open sees its outcome."""
    lanes = await postgres_lanes(size=4)
    await seed_control(lanes)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    async with lanes.acquire(20) as blocker:
        await blocker.execute("begin")
        # The lock of the path: the commit gets past the control row and stops here.
        await blocker.execute("select pg_advisory_xact_lock(hashtextextended('p:tasks/1', 7))")
        first = asyncio.create_task(
            store.commit([Write("tasks/1", {"a": 1})], timeout=10, intent=intent())
        )
        await waiting(lanes, 1)
        change = asyncio.create_task(seed_control(lanes, "none", 1))
        await waiting(lanes, 2)
        await blocker.execute("rollback")
    assert isinstance(await first, CommitOutcome)
    await change

    await seed_control(lanes)
    async with lanes.acquire(20) as barrier:
        await barrier.execute("begin")
        await barrier.execute("update crossfade.control set epoch = 2")
        late = asyncio.create_task(
            store.commit([Write("tasks/1", {"a": 2})], timeout=10, intent=intent())
        )
        await waiting(lanes, 1)
        await barrier.execute("commit")
    with pytest.raises(EpochChanged):
        await late
    assert await fields_of(store, "tasks/1") == {"a": 1}


# --- request ids -------------------------------------------------------------------------------


async def test_a_request_is_committed_once(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=8)
    await seed_control(lanes)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    writes = [increment("tasks/1"), Write("tasks/2", None)]
    outcomes = await asyncio.gather(
        *(
            store.commit(writes, timeout=20, intent=intent("same", request_id="r"))
            for _ in range(12)
        )
    )
    assert await fields_of(store, "tasks/1") == {"n": 1}
    first = [outcome for outcome in outcomes if not outcome.replayed]
    assert len(first) == 1
    for outcome in outcomes:
        assert outcome.commit_time == first[0].commit_time
        times = [write.update_time for write in outcome.writes]
        assert times == [first[0].commit_time, None]
    assert len(await pending(lanes)) == 1


async def test_one_request_id_for_different_writes_is_committed_once(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=8)
    await seed_control(lanes)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    outcomes = await asyncio.gather(
        *(
            store.commit(
                [Write(f"tasks/{n}", {})], timeout=20, intent=intent("same", request_id="r")
            )
            for n in range(12)
        )
    )
    assert sorted(outcome.replayed for outcome in outcomes) == [False] + [True] * 11
    assert len(await pending(lanes)) == 1


async def test_a_refused_request_may_be_tried_again(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes()
    await seed_control(lanes)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    write = Write("tasks/1", {"a": 1}, exists=True)
    with pytest.raises(NotFound):
        await store.commit([write], timeout=5, intent=intent("same", request_id="r"))
    await store.commit([Write("tasks/1", {})], timeout=5)
    outcome = await store.commit([write], timeout=5, intent=intent("same", request_id="r"))
    assert not outcome.replayed


async def test_a_request_that_changes_nothing_is_remembered_too(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes()
    await seed_control(lanes)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    await store.commit([Write("tasks/1", {"a": 1})], timeout=5)
    same = intent("same", request_id="r")
    first = await store.commit([Write("tasks/1", {"a": 1})], timeout=5, intent=same)
    again = await store.commit([Write("tasks/1", {"a": 1})], timeout=5, intent=same)
    assert again == CommitOutcome(first.writes, first.commit_time, replayed=True)


async def test_limits_of_documents(make_store: MakeStore):
    store = await make_store(True)
    with pytest.raises(InvalidArgument):
        await store.commit([Write("tasks/1", {"a": "x" * 1_048_577})], timeout=5)
    with pytest.raises(InvalidArgument):
        await store.commit([Write("tasks/1", {"a": [[1]]})], timeout=5)


async def test_a_commit_of_nothing_has_a_time(make_store: MakeStore):
    store = await make_store(True)
    outcome = await store.commit([], timeout=5)
    assert outcome.commit_time > 1_700_000_000_000_000
