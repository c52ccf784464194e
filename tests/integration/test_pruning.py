"""Rule P: a tombstone goes when no older image of its document can be under way, and not before."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from crossfade.document import Fields
from crossfade.errors import Aborted, FailedPrecondition
from crossfade.plan import Stage
from crossfade.store import Intent
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Mirror
from crossfade.stores.postgres.pruning import Pruning
from crossfade.stores.postgres.store import PostgresStore
from crossfade.telemetry import PRUNED
from crossfade.write import Write
from tests.integration.test_postgres_mirror import GENERIC, MAPPED, Bench, gone, live
from tests.postgres_fixture import DATABASE, MakeLanes
from tests.sidecar import eventually, running
from violet.mapping import MAPPINGS


@pytest_asyncio.fixture
async def bench(postgres_lanes: MakeLanes) -> Bench:
    lanes = await postgres_lanes(size=6)
    made = Bench(lanes, Mirror(lanes, MAPPINGS, DATABASE), PostgresStore(lanes, MAPPINGS, DATABASE))
    await made.control()
    return made


async def prune(bench: Bench, limit: int = 100) -> int:
    return (await bench.mirror.pruning.tombstones("", limit=limit, timeout=5))[0]


async def wildcard(bench: Bench, path: str) -> None:
    await bench.lanes.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        values ('w', $1, '', '', 1, 'infinity', 'not copied')""",
        path,
        timeout=5,
    )


# --- when nothing stands in the way ------------------------------------------------------------


async def test_tombstones_go_and_documents_stay(bench: Bench):
    await bench.put(live(MAPPED, 5), live(GENERIC, 5), live("notes/2", 5))
    await bench.put(gone(MAPPED, 6), gone(GENERIC, 6), gone("tasks/never", 6))
    assert await prune(bench) == 3
    assert (await bench.stored(MAPPED)).version is None
    assert await bench.value("notes/2") == 5
    assert await prune(bench) == 0


async def test_a_few_at_a_time(bench: Bench):
    await bench.put(*(gone(f"tasks/{n}", 5) for n in range(5)))
    await bench.open("a", "tasks/0")
    after: str | None = ""
    counts = []
    while after is not None:
        count, after = await bench.mirror.pruning.tombstones(after, limit=2, timeout=5)
        counts.append(count)
    assert counts == [1, 2, 1]


async def test_a_document_that_is_made_again_is_as_new(bench: Bench):
    await bench.put(live(MAPPED, 5))
    await bench.control("postgresql")
    steps: list[Fields | None] = [None, {"n": 2}]
    for fields in steps:
        intent = Intent("i", 1, mirrored=True)
        await bench.store.commit([Write(MAPPED, fields)], timeout=5, intent=intent)
        await bench.claim("c")
        (peer,) = await bench.mirror.way_back.peers([MAPPED], timeout=5)
        assert peer.peer_time == (5 if fields is None else None)
        await bench.mirror.way_back.settle(
            "c", [(peer, 0 if fields is None else 7)], epoch=1, timeout=5
        )
        assert await prune(bench) == (fields is None)
    assert await bench.value(MAPPED) == 2
    assert (await bench.stored(MAPPED)).peer_time == 7


# --- what stands in the way --------------------------------------------------------------------


@pytest.mark.parametrize("state", ["leased", "claimed", "dead"])
async def test_a_pending_row_keeps_the_tombstone(bench: Bench, state: str):
    """H4, H5: its writer may have stalled before its put."""
    await bench.open("a", MAPPED, lease=30 if state == "leased" else 0)
    await bench.put(gone(MAPPED, 6), gone("tasks/2", 6))
    if state != "leased":
        await bench.claim("c")
    if state == "dead":
        await bench.mirror.way_back.bury("c", MAPPED, failure="x", timeout=5)
    assert await prune(bench) == 1
    assert (await bench.stored(MAPPED)).version == (1, 6)


@pytest.mark.parametrize("path", ["", "tasks"])
async def test_a_wildcard_keeps_the_tombstones_under_it(bench: Bench, path: str):
    await wildcard(bench, path)
    await bench.put(gone(MAPPED, 6), gone("notes/1/tasks/1", 6), gone(GENERIC, 6))
    assert await prune(bench) == (1 if path else 0)
    assert (await bench.stored(MAPPED)).version == (1, 6)
    assert (await bench.stored("notes/1/tasks/1")).version == (1, 6)


async def test_a_delete_that_firestore_does_not_know_keeps_its_tombstone(bench: Bench):
    await bench.put(live(MAPPED, 5))
    await bench.control("postgresql")
    # Without a pending row, too: in stage complete nothing is mirrored.
    intent = Intent("i", 1, mirrored=False)
    await bench.store.commit([Write(MAPPED, None)], timeout=5, intent=intent)
    assert await prune(bench) == 0


async def test_a_page_read_before_the_delete_does_not_bring_the_document_back(bench: Bench):
    await bench.put(live(MAPPED, 5))
    await bench.mirror.begin_copy(1, timeout=5)
    await bench.put(gone(MAPPED, 6))
    assert await prune(bench) == 0
    page = [live(MAPPED, 5)]
    assert await bench.mirror.put_page(page, epoch=1, generation=1, token=1, timeout=5) == set()
    assert await bench.value(MAPPED) is None
    await bench.mirror.finish_copy(1, epoch=1, generation=1, timeout=5)
    assert await prune(bench) == 1


async def test_a_copy_that_stalls_gives_way_and_puts_nothing_more(bench: Bench):
    await bench.put(live(MAPPED, 5))
    await bench.mirror.begin_copy(1, timeout=5)
    await bench.put(gone(MAPPED, 6))
    await bench.lanes.execute("update crossfade.pages set lease_until = now()", timeout=5)
    assert await prune(bench) == 1
    with pytest.raises(Aborted, match="begin it again"):
        await bench.mirror.put_page([live(MAPPED, 5)], epoch=1, generation=1, token=1, timeout=5)
    with pytest.raises(Aborted, match="begin it again"):
        await bench.mirror.finish_copy(1, epoch=1, generation=1, timeout=5)
    assert await bench.value(MAPPED) is None


async def test_every_page_renews_the_copys_lease(bench: Bench):
    left = "select extract(epoch from lease_until - clock_timestamp()) from crossfade.pages"
    await bench.mirror.begin_copy(1, timeout=5)
    await bench.lanes.execute(
        "update crossfade.pages set lease_until = now() + interval '5 s'", timeout=5
    )
    await bench.mirror.put_page([], epoch=1, generation=1, token=1, timeout=5)
    assert await bench.lanes.fetchval(left, timeout=5) > 60


class Pausing:
    """Lanes whose next transaction waits between its lock and what it does behind it."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self.locked, self.go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def transaction(self, timeout: float) -> Any:
        async with self._lanes.transaction(timeout) as connection:
            yield PausingConnection(connection, self)


class PausingConnection:
    def __init__(self, connection: Any, pausing: Pausing) -> None:
        self.execute = connection.execute
        self._fetch = connection.fetch
        self._pausing = pausing

    async def fetch(self, *args: Any) -> Any:
        rows = await self._fetch(*args)
        self._pausing.locked.set()
        await self._pausing.go_on.wait()
        return rows


async def test_what_began_while_the_tombstones_were_being_locked_is_seen(bench: Bench):
    """In one statement it would not be: its snapshot is from before the locks."""
    await bench.put(gone(MAPPED, 6), gone("tasks/2", 6), gone("tasks/3", 6))
    lanes: Any = Pausing(bench.lanes)
    pruning = asyncio.create_task(Pruning(lanes).tombstones("", limit=10, timeout=20))
    await lanes.locked.wait()
    await bench.open("a", MAPPED)
    put = asyncio.create_task(bench.put(live("tasks/2", 7)))
    await bench.waiting(1)
    lanes.go_on.set()
    assert (await pruning)[0] == 2
    assert await put == {"tasks/2"}
    assert (await bench.stored(MAPPED)).version == (1, 6)
    assert await bench.value("tasks/2") == 7


async def test_a_tombstone_that_somebody_is_replacing_is_left(bench: Bench):
    await bench.put(gone(MAPPED, 6), gone("tasks/2", 6))
    async with bench.held("update crossfade.versions set time = 7 where path = 'tasks/1'"):
        assert await prune(bench) == 1


# --- other rows --------------------------------------------------------------------------------


async def test_old_requests_go_unless_the_other_store_does_not_know_them(bench: Bench):
    await bench.control("postgresql")
    for name in ("old", "pending", "new"):
        intent = Intent(name, 1, mirrored=name == "pending", request_id=name)
        await bench.store.commit([Write(MAPPED, {"n": name})], timeout=5, intent=intent)
    await bench.lanes.execute(
        """update crossfade.requests set inserted_at = now() - interval '1 hour'
        where intent <> 'new'""",
        timeout=5,
    )
    await bench.mirror.pruning.requests(600, timeout=5)
    rows = await bench.lanes.fetch("select intent from crossfade.requests order by 1", timeout=5)
    assert [row[0] for row in rows] == ["new", "pending"]


async def test_old_attempts_go_unless_their_path_is_pending(bench: Bench):
    await bench.open("a", "tasks/pending")
    await bench.lanes.execute(
        """insert into crossfade.attempts (intent, path, inserted_at) values
            ('i', 'tasks/old', now() - interval '1 hour'),
            ('i', 'tasks/pending', now() - interval '1 hour'),
            ('i', 'tasks/new', now())""",
        timeout=5,
    )
    await bench.mirror.pruning.attempts(600, timeout=5)
    rows = await bench.lanes.fetch("select path from crossfade.attempts order by 1", timeout=5)
    assert [row[0] for row in rows] == ["tasks/new", "tasks/pending"]


# --- the sidecar -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["shadow", "live"])
async def test_a_sidecar_prunes(postgres_database, stage: str):
    async with running(await postgres_database(), Stage.SHADOW) as stack:
        await stack.copy()
        await stack.stage(stage)
        worker = stack.sidecar.members["default"].recopy
        assert worker is not None
        worker._prune_interval = worker._prune_at = 0.05
        for path in ("tasks/1", "notes/1", "notes/2"):
            await stack.client.set(path, {"n": 1})
        await stack.client.delete("tasks/1")
        await stack.client.delete("notes/1")

        async def pruned() -> bool:
            rows = await stack.sql.fetch("select path from crossfade.versions")
            return [row[0] for row in rows] == ["notes/2"]

        await eventually(pruned)
        assert stack.count(PRUNED) == 2
        assert await stack.client.find("tasks/1") is None
        await stack.client.set("tasks/1", {"n": 2})
        await stack.settled()
        held = stack.memory.read("tasks/1")
        assert held is not None
        assert held.fields == {"n": 2}


async def test_a_copy_that_is_broken_off_holds_nothing_up(postgres_database, monkeypatch):
    async def broken(*_args: Any, **_options: Any) -> None:
        raise FailedPrecondition("broken off")

    async with running(await postgres_database(), Stage.SHADOW) as stack:
        monkeypatch.setattr(Mirror, "put_page", broken)
        with pytest.raises(Exception, match="broken off"):
            await stack.copy()
        assert await stack.sql.fetchval("select count(*) from crossfade.pages") == 0
