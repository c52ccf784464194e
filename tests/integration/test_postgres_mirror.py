"""The mirror's rules, each shown by what goes wrong without it (numbers: protocol.md)."""

import asyncio
import itertools
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from crossfade.document import document_id, identical
from crossfade.errors import EpochChanged
from crossfade.plan import StoreName
from crossfade.store import Intent, Stored
from crossfade.stores.postgres.lanes import Connection, Lanes
from crossfade.stores.postgres.mirror import Image, Mirror, PendingRow
from crossfade.stores.postgres.store import PostgresStore
from crossfade.stores.postgres.way_back import Prepared, fingerprint
from crossfade.wire import parse_document
from crossfade.write import Write
from tests.integration.test_postgres_commit import waiting
from tests.postgres_fixture import DATABASE, MakeLanes
from violet.mapping import MAPPINGS

MAPPED, GENERIC = "tasks/1", "notes/1"
PATHS = (MAPPED, GENERIC)


@dataclass
class Bench:
    """A mirror over a fresh database, with Firestore in charge at epoch 1."""

    lanes: Lanes
    mirror: Mirror
    store: PostgresStore

    async def control(self, authority: str = "firestore", epoch: int = 1) -> None:
        await self.lanes.execute(
            """insert into crossfade.control (grp, stage, authority, epoch, generation)
            values ('default', 'shadow', $1, $2, 1)
            on conflict (grp) do update set authority = $1, epoch = $2""",
            authority,
            epoch,
            timeout=5,
        )

    async def open(self, intent: str, *paths: str, lease: float = 30.0, epoch: int = 1) -> None:
        await self.mirror.open_intent(
            intent, paths, epoch=epoch, lease=lease, reason="commit", timeout=5
        )

    async def put(self, *images: Image, allow_equal: bool = False, **more: Any) -> set[str]:
        more.setdefault("epoch", 1)
        return await self.mirror.put(images, allow_equal=allow_equal, timeout=10, **more)

    async def claim(self, claim: str, limit: int = 10, lease: float = 30.0) -> list[PendingRow]:
        return await self.mirror.claim(claim, limit=limit, lease=lease, timeout=5)

    async def pending(self) -> list[tuple[str, str]]:
        rows = await self.lanes.fetch(
            "select intent, path from crossfade.pending order by intent, path", timeout=5
        )
        return [(row[0], row[1]) for row in rows]

    async def stored(self, path: str) -> Stored:
        return (await self.store.get([path], timeout=5)).documents[0]

    async def value(self, path: str) -> Any:
        """The document's field `n`, or None for no document."""
        stored = await self.stored(path)
        return None if stored.data is None else parse_document(stored.data, DATABASE).fields["n"]

    async def waiting(self, count: int) -> None:
        await waiting(self.lanes, count)

    @asynccontextmanager
    async def held(self, statement: str) -> AsyncIterator[Connection]:
        """A transaction of somebody else that has done something and stays open."""
        async with self.lanes.acquire(20) as connection:
            await connection.execute("begin")
            await connection.execute(statement)
            yield connection
            await connection.execute("rollback")


def live(path: str, time: int, n: int | None = None, create_time: int | None = None) -> Image:
    return Image(path, {"n": time if n is None else n}, time, create_time)


def gone(path: str, time: int) -> Image:
    return Image(path, None, time, None)


@pytest_asyncio.fixture
async def bench(postgres_lanes: MakeLanes) -> Bench:
    lanes = await postgres_lanes(size=8)
    made = Bench(lanes, Mirror(lanes, MAPPINGS, DATABASE), PostgresStore(lanes, MAPPINGS, DATABASE))
    await made.control()
    return made


# --- opening -----------------------------------------------------------------------------------


async def test_an_intent_opens_one_row_per_path(bench: Bench):
    await bench.open("a", "tasks/1/chunks/2", "tasks/1", "tasks/1")
    await bench.open("b", "tasks/1")
    assert await bench.pending() == [
        ("a", "tasks/1"),
        ("a", "tasks/1/chunks/2"),
        ("b", "tasks/1"),
    ]
    row = await bench.lanes.fetchrow(
        """select collection_path, collection_id, epoch, reason, lease_until > now() as leased
        from crossfade.pending where path = 'tasks/1/chunks/2'""",
        timeout=5,
    )
    assert row is not None
    assert tuple(row) == ("tasks/1/chunks", "chunks", 1, "commit", True)


async def test_a_row_that_its_writer_gave_up_waiting_for_is_a_workers_once_the_commit_is_known(
    bench: Bench,
):
    await bench.open("a", "tasks/1")
    assert not await bench.mirror.claim("c", limit=9, lease=5, timeout=5)
    await bench.mirror.queue("a", ["tasks/1"], epoch=1, reason="outbox", timeout=5)
    (row,) = await bench.mirror.claim("c", limit=9, lease=5, timeout=5)
    assert (row.intent, row.path) == ("a", "tasks/1")


@pytest.mark.parametrize(("authority", "epoch"), [("firestore", 2), ("none", 1), ("postgresql", 1)])
async def test_no_row_is_opened_under_another_epoch_or_a_barrier(
    bench: Bench, authority: str, epoch: int
):
    await bench.control(authority, epoch)
    with pytest.raises(EpochChanged):
        await bench.open("a", "tasks/1")
    assert await bench.pending() == []


async def test_opening_waits_for_a_change_of_authority_and_sees_it(bench: Bench):
    async with bench.held("update crossfade.control set epoch = 2") as change:
        opening = asyncio.create_task(bench.open("a", "tasks/1"))
        await bench.waiting(1)
        await change.execute("commit")
    with pytest.raises(EpochChanged):
        await opening
    assert await bench.pending() == []


async def test_the_same_intent_again_prolongs_its_lease(bench: Bench):
    await bench.open("a", "tasks/1", lease=0)
    await bench.open("a", "tasks/1", lease=30)
    assert await bench.claim("c") == []
    assert await bench.pending() == [("a", "tasks/1")]


async def test_dropping_deletes_the_intents_rows_only(bench: Bench):
    await bench.open("a", "tasks/1", "tasks/2")
    await bench.open("b", "tasks/1")
    await bench.mirror.drop_intent("a", timeout=5)
    assert await bench.pending() == [("b", "tasks/1")]


# --- the guard ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_a_newer_image_is_put_and_an_older_one_is_not(bench: Bench, path: str):
    assert await bench.put(live(path, 5)) == {path}
    assert await bench.put(live(path, 4), allow_equal=True) == set()
    assert await bench.value(path) == 5
    assert await bench.put(live(path, 6)) == {path}
    assert await bench.put(gone(path, 5), allow_equal=True) == set()
    assert await bench.value(path) == 6
    assert (await bench.stored(path)).version == (1, 6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("several", [False, True])
async def test_an_equal_version_is_put_by_a_recopy_only(bench: Bench, path: str, several: bool):
    """H7: with `>` everywhere a wrong document could never be healed."""
    more = [live("tasks/other", 1)] if several else []
    await bench.put(live(path, 5, n=1))
    assert path not in await bench.put(live(path, 5, n=2), *more)
    assert await bench.value(path) == 1
    assert path in await bench.put(live(path, 5, n=2), *more, allow_equal=True)
    assert await bench.value(path) == 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("allow_equal", [False, True])
async def test_a_document_beats_the_tombstone_of_its_version(
    bench: Bench, path: str, allow_equal: bool
):
    await bench.put(gone(path, 5))
    assert await bench.put(live(path, 5), allow_equal=allow_equal) == {path}
    assert await bench.value(path) == 5
    assert await bench.put(gone(path, 5), allow_equal=allow_equal) == set()
    assert await bench.value(path) == 5


@pytest.mark.parametrize("path", PATHS)
async def test_a_deleted_document_is_not_resurrected_by_an_older_image(bench: Bench, path: str):
    await bench.put(live(path, 4))
    await bench.put(gone(path, 6))
    assert await bench.put(live(path, 5), allow_equal=True) == set()
    assert await bench.value(path) is None
    assert (await bench.stored(path)).version == (1, 6)


async def test_versions_compare_the_epoch_first(bench: Bench):
    """H10: the other authority's clock was ahead."""
    await bench.put(live(MAPPED, 600), live(GENERIC, 600))
    await bench.control(epoch=2)
    assert await bench.put(live(MAPPED, 3), epoch=2) == {MAPPED}
    assert await bench.put(live(GENERIC, 3), gone("tasks/2", 1), epoch=2) == {GENERIC, "tasks/2"}
    assert (await bench.stored(MAPPED)).version == (2, 3)


@pytest.mark.parametrize("path", PATHS)
async def test_any_order_of_puts_ends_with_the_newest(bench: Bench, path: str):
    images = [live(path, 1), gone(path, 2), live(path, 3), live(path, 4)]
    for number, order in enumerate(itertools.permutations(images)):
        target = f"{path}{number}"
        moved = [Image(target, image.fields, image.time, None) for image in order]
        for image in moved:
            await bench.put(image)
        assert await bench.value(target) == 4, order


async def test_concurrent_puts_of_several_paths_end_with_the_newest(bench: Bench):
    paths = [MAPPED, "tasks/2", GENERIC, "users/1"]
    draw = random.Random(7)
    commits = []
    for time in range(1, 41):
        some = draw.sample(paths, draw.randint(1, 4))
        commits.append([gone(p, time) if draw.random() < 0.3 else live(p, time) for p in some])
    newest = {image.path: image for images in commits for image in images}
    draw.shuffle(commits)
    await asyncio.gather(*(bench.put(*images) for images in commits))
    for path, image in newest.items():
        assert await bench.value(path) == (image.fields or {}).get("n"), path


@pytest.mark.parametrize("path", PATHS)
async def test_an_open_delete_and_an_older_put(bench: Bench, path: str):
    """H6: a guard that reads two tables sees neither the row nor the tombstone."""
    await bench.put(live(path, 1))
    table, key = ("violet.tasks", "id") if path == MAPPED else ("crossfade.documents", "path")
    lock = f"select 1 from {table} where {key} in ('{path}', '{document_id(path)}') for update"
    async with bench.held(lock):
        # Past its guard, the delete waits for the row, its transaction open.
        deleting = asyncio.create_task(bench.put(gone(path, 3)))
        await bench.waiting(1)
        putting = asyncio.create_task(bench.put(live(path, 2)))
        await bench.waiting(2)
    assert await deleting == {path}
    assert await putting == set()
    assert await bench.value(path) is None


@pytest.mark.parametrize("path", PATHS)
async def test_an_open_put_and_a_newer_delete(bench: Bench, path: str):
    """H6: a delete in the guard's own statement would not see the row that is being put."""
    insert = (
        "insert into violet.tasks (id, create_time, update_time, epoch) values ('1', 1, 1, 1)"
        if path == MAPPED
        else """insert into crossfade.documents
            (path, collection_path, collection_id, fields, create_time, update_time, epoch)
            values ('notes/1', 'notes', 'notes', '{}', 1, 1, 1)"""
    )
    async with bench.held(insert):
        # Past its guard, the put waits for the other insert of its key.
        putting = asyncio.create_task(bench.put(live(path, 2)))
        await bench.waiting(1)
        deleting = asyncio.create_task(bench.put(gone(path, 3)))
        await bench.waiting(2)
    assert await putting == {path}
    assert await deleting == {path}
    assert await bench.value(path) is None
    assert (await bench.stored(path)).version == (1, 3)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("several", [False, True])
async def test_create_time_is_kept_where_the_image_has_none(bench: Bench, path: str, several: bool):
    more = [gone("tasks/other", 1)] if several else []

    async def create_time() -> int:
        stored = await bench.stored(path)
        assert stored.data is not None
        return parse_document(stored.data, DATABASE).create_time

    await bench.put(live(path, 5), *more)
    assert await create_time() == 5
    await bench.put(live(path, 6), *more)
    assert await create_time() == 5
    await bench.put(live(path, 7, create_time=2), *more)
    assert await create_time() == 2
    await bench.put(gone(path, 8))
    await bench.put(live(path, 9), *more)
    assert await create_time() == 9


async def test_a_put_remembers_what_firestore_holds(bench: Bench):
    await bench.put(live(MAPPED, 5))
    await bench.put(live(GENERIC, 5), gone("tasks/2", 6))
    assert (await bench.stored(MAPPED)).peer_time == 5
    assert (await bench.stored(GENERIC)).peer_time == 5
    assert (await bench.stored("tasks/2")).peer_time == 0


# --- own rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
async def test_a_put_deletes_its_own_rows_only(bench: Bench, several: bool):
    """H1: with one row for all, the first put would take the mark of a commit in flight."""
    more = [live("tasks/2", 5)] if several else []
    await bench.open("a", MAPPED, "tasks/2")
    await bench.open("b", MAPPED)
    await bench.put(live(MAPPED, 5), *more, intent="a")
    assert ("b", MAPPED) in await bench.pending()
    assert ("a", MAPPED) not in await bench.pending()


@pytest.mark.parametrize("image", [live(MAPPED, 5), live(GENERIC, 5), gone(MAPPED, 5)])
async def test_a_path_without_its_row_is_skipped(bench: Bench, image: Image):
    """H4: another worker has settled it, and its tombstone may be pruned by now."""
    await bench.open("a", "tasks/2")
    assert await bench.put(image, intent="a") == set()
    assert await bench.put(image, live("tasks/2", 5), intent="a") == {"tasks/2"}
    assert await bench.put(image, claim="nobody") == set()
    assert (await bench.stored(image.path)).version is None


@pytest.mark.parametrize("several", [False, True])
async def test_a_refused_image_settles_its_row(bench: Bench, several: bool):
    more = [live("tasks/2", 5)] if several else []
    await bench.put(live(MAPPED, 9))
    await bench.open("a", MAPPED, "tasks/2")
    assert MAPPED not in await bench.put(live(MAPPED, 5), *more, intent="a")
    assert ("a", MAPPED) not in await bench.pending()
    assert await bench.value(MAPPED) == 9


@pytest.mark.parametrize("several", [False, True])
async def test_a_claim_settles_the_rows_that_it_holds(bench: Bench, several: bool):
    """H2: a row that was opened after the claim belongs to a commit that the recopy has
    not read."""
    more = [gone("tasks/2", 5)] if several else []
    await bench.open("a", MAPPED, "tasks/2", lease=0)
    rows = await bench.claim("c")
    assert [(row.intent, row.path) for row in rows] == [("a", MAPPED), ("a", "tasks/2")]
    await bench.open("late", MAPPED, lease=0)
    assert MAPPED in await bench.put(live(MAPPED, 5), *more, claim="c", allow_equal=True)
    assert ("late", MAPPED) in await bench.pending()
    assert ("a", MAPPED) not in await bench.pending()


async def test_a_lost_claim_puts_nothing(bench: Bench):
    await bench.open("a", MAPPED, lease=0)
    await bench.claim("first", lease=0)
    await bench.claim("second")
    assert await bench.put(live(MAPPED, 5), claim="first", allow_equal=True) == set()
    assert await bench.pending() == [("a", MAPPED)]
    assert await bench.put(live(MAPPED, 5), claim="second", allow_equal=True) == {MAPPED}
    assert await bench.pending() == []


async def test_a_writer_and_a_worker_with_the_same_rows(bench: Bench):
    paths = [f"tasks/{n}" for n in range(20)]
    for turn in range(10):
        intent = f"i{turn}"
        await bench.open(intent, *paths, lease=0)
        claim = f"c{turn}"
        await bench.claim(claim, limit=100)
        images = [live(path, turn + 1) for path in paths]
        results = await asyncio.gather(
            bench.put(*images, intent=intent),
            bench.put(*reversed(images), claim=claim, allow_equal=True),
        )
        # Whoever came first has put all; the rows are gone for the other.
        assert sorted(map(len, results)) == [0, 20]
    assert await bench.pending() == []


# --- epochs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images", [[live(MAPPED, 5)], [gone(MAPPED, 5)], [live(MAPPED, 5), live(GENERIC, 5)]]
)
@pytest.mark.parametrize(("authority", "epoch"), [("firestore", 2), ("postgresql", 1)])
async def test_nothing_is_put_when_the_epoch_is_over(
    bench: Bench, images: list[Image], authority: str, epoch: int
):
    """H11: an old put after the flip would overwrite the new authority."""
    await bench.open("a", MAPPED, GENERIC)
    await bench.control(authority, epoch)
    with pytest.raises(EpochChanged):
        await bench.put(*images, intent="a")
    with pytest.raises(EpochChanged):
        await bench.put(*images)
    with pytest.raises(EpochChanged):
        await bench.mirror.put_page(images, epoch=1, generation=1, token=1, timeout=5)
    assert (await bench.stored(MAPPED)).version is None
    assert len(await bench.pending()) == 2


@pytest.mark.parametrize("images", [[live(MAPPED, 5)], [gone(MAPPED, 5)]])
async def test_a_put_waits_for_a_change_of_authority_and_sees_it(bench: Bench, images: list[Image]):
    async with bench.held("update crossfade.control set epoch = 2") as change:
        putting = asyncio.create_task(bench.put(*images))
        await bench.waiting(1)
        await change.execute("commit")
    with pytest.raises(EpochChanged):
        await putting
    assert (await bench.stored(MAPPED)).version is None


async def test_puts_go_on_while_a_barrier_drains(bench: Bench):
    await bench.open("a", MAPPED, GENERIC)
    await bench.control("none")
    assert await bench.put(live(MAPPED, 5), intent="a") == {MAPPED}
    assert await bench.put(gone(GENERIC, 5), intent="a") == {GENERIC}
    assert await bench.pending() == []


# --- claims ------------------------------------------------------------------------------------


async def test_rows_are_claimed_oldest_first_and_only_when_their_lease_is_over(bench: Bench):
    await bench.open("leased", "tasks/0", lease=30)
    for n in range(1, 5):
        await bench.open(f"i{n}", f"tasks/{n}", lease=0)
    assert [row.path for row in await bench.claim("c", limit=3)] == [
        "tasks/1",
        "tasks/2",
        "tasks/3",
    ]
    assert [row.path for row in await bench.claim("d", limit=3)] == ["tasks/4"]
    assert await bench.claim("e") == []


async def test_a_claim_takes_every_free_row_of_its_paths(bench: Bench):
    await bench.open("a", MAPPED, lease=0)
    await bench.open("b", "tasks/2", lease=0)
    await bench.open("c", MAPPED, lease=0)
    await bench.open("leased", MAPPED, lease=30)
    rows = await bench.claim("w", limit=1)
    assert [(row.intent, row.path) for row in rows] == [("a", MAPPED), ("c", MAPPED)]


async def test_a_path_that_somebody_works_on_is_left_to_him(bench: Bench):
    await bench.open("a", MAPPED, lease=0)
    assert [row.intent for row in await bench.claim("one")] == ["a"]
    await bench.open("b", MAPPED, lease=0)
    await bench.open("c", "tasks/2", lease=0)
    assert [row.intent for row in await bench.claim("two")] == ["c"]
    await bench.lanes.execute(
        "update crossfade.pending set lease_until = clock_timestamp()", timeout=5
    )
    assert [row.intent for row in await bench.claim("three")] == ["a", "b", "c"]


async def test_concurrent_claims_share_nothing(bench: Bench):
    for n in range(40):
        await bench.open(f"i{n}", f"tasks/{n % 10}", lease=0)
    claims = await asyncio.gather(*(bench.claim(f"c{n}", limit=10) for n in range(8)))
    ids = [row.id for rows in claims for row in rows]
    assert len(ids) == len(set(ids))
    while rows := await bench.claim("rest"):
        ids += [row.id for row in rows]
    assert len(ids) == 40


async def test_wildcards_are_never_claimed(bench: Bench):
    await bench.lanes.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        values ('w', '', '', '', 1, now(), 'copy'),
            ('w', 'tasks', '', 'tasks', 1, now(), 'copy')""",
        timeout=5,
    )
    assert await bench.claim("c") == []


async def test_a_released_row_pauses_and_dies_of_too_many_failures(bench: Bench):
    await bench.open("a", MAPPED, lease=0)
    for attempt in range(3):
        await bench.lanes.execute("update crossfade.pending set lease_until = now()", timeout=5)
        (row,) = await bench.claim(f"c{attempt}")
        assert row.attempts == attempt
        before = await bench.lanes.fetchval("select clock_timestamp()", timeout=5)
        await bench.mirror.release(f"c{attempt}", failure="UNAVAILABLE", attempts=3, timeout=5)
        pause = await bench.lanes.fetchval(
            "select lease_until - $1 from crossfade.pending", before, timeout=5
        )
        assert pause >= timedelta(seconds=0.1 * 2**attempt)
    stored = await bench.lanes.fetchrow(
        "select claim, attempts, failure, dead from crossfade.pending", timeout=5
    )
    assert stored is not None
    assert tuple(stored) == (None, 3, "UNAVAILABLE", True)
    await bench.lanes.execute("update crossfade.pending set lease_until = now()", timeout=5)
    assert await bench.claim("c") == []


async def test_dead_letters_do_not_use_up_the_limit(bench: Bench):
    await bench.open("a", "tasks/1", "tasks/2", "tasks/3", lease=0)
    await bench.lanes.execute(
        "update crossfade.pending set dead = true where path <> 'tasks/3'", timeout=5
    )
    assert [row.path for row in await bench.claim("c", limit=1)] == ["tasks/3"]


async def test_bury_and_summary(bench: Bench):
    empty = await bench.mirror.summary(timeout=5)
    assert (empty.pending, empty.oldest_seconds, empty.dead, empty.wildcards) == (0, 0, 0, 0)
    await bench.open("a", MAPPED, GENERIC, lease=0)
    await bench.lanes.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        values ('w', '', '', '', 1, now(), 'copy')""",
        timeout=5,
    )
    await bench.lanes.execute(
        "update crossfade.pending set inserted_at = now() - interval '90 seconds'", timeout=5
    )
    await bench.claim("c")
    await bench.mirror.way_back.bury("c", MAPPED, failure="foreign", timeout=5)
    summary = await bench.mirror.summary(timeout=5)
    assert (summary.pending, summary.dead, summary.wildcards) == (2, 1, 1)
    assert 90 <= summary.oldest_seconds < 120


async def test_marking_queues_a_recopy_under_its_authority(bench: Bench):
    async def mark(authority: StoreName) -> None:
        await bench.mirror.mark(
            "m", [MAPPED], epoch=1, reason="repair", authority=authority, timeout=5
        )

    with pytest.raises(EpochChanged):
        await mark(StoreName.POSTGRESQL)
    await mark(StoreName.FIRESTORE)
    (row,) = await bench.claim("c")
    assert (row.intent, row.path, row.reason, row.epoch) == ("m", MAPPED, "repair", 1)


# --- the first copy ----------------------------------------------------------------------------


async def test_a_page_obeys_the_guard(bench: Bench):
    await bench.put(live("tasks/1", 9, n=1), live("tasks/2", 5, n=1), gone("notes/1", 9))
    page = [live("tasks/1", 5), live("tasks/2", 5, n=2), live("notes/1", 5), live("notes/2", 5)]
    await bench.mirror.begin_copy(1, timeout=5)
    put = await bench.mirror.put_page(page, epoch=1, generation=1, token=1, timeout=10)
    assert put == {"tasks/2", "notes/2"}
    values = [await bench.value(image.path) for image in page]
    assert values == [1, 2, None, 5]


async def test_a_page_of_hundreds(bench: Bench):
    page = [live(f"tasks/{n}", 5) for n in range(200)] + [live(f"f/{n}", 5) for n in range(200)]
    await bench.mirror.begin_copy(1, timeout=5)
    assert len(await bench.mirror.put_page(page, epoch=1, generation=1, token=1, timeout=30)) == 400
    assert await bench.value("tasks/199") == 5


HOSTILE: list[dict[str, Any]] = [
    {},
    {"assigned_miners": [], "miner_responses": [], "user_metadata": {}},
    {"assigned_miners": [1, -(2**63), 2**63 - 1], "miner_responses": [[[1]], {"$x": [-0.0]}]},
    {"assigned_miners": [1, "two"], "status": 'no "such" {word}, \\ or other', "priority": None},
    {"task_id": "\0", "model_id": "\\N", "callback_url": "'{}'", "evaluated_by": math.nan},
    {"created_at": datetime.min.replace(tzinfo=UTC), "updated_at": datetime(1, 1, 2, tzinfo=UTC)},
    {"evaluation_data": {"a": {"b": b"\0\xff", "c": "\0", "\0": "$"}}, "$odd": 1, "user_id": "no"},
    {
        "task_type": "x" * 700,
        "source_language": "\x01\x02ü\U0001f399",
        "evaluation_data": ["\\u0000"],
    },
]


@pytest.mark.parametrize("collection", ["tasks", "notes"])
async def test_many_documents_in_one_statement_are_what_each_alone_is(
    bench: Bench, collection: str
):
    """Values that SQL's array, JSON or text syntax could break; some with a create_time."""

    def images(prefix: str, time: int) -> list[Image]:
        return [
            Image(f"{collection}/{prefix}{n}", fields, time, time - n if n % 2 else None)
            for n, fields in enumerate(HOSTILE)
        ]

    for time in (50, 70):
        together, alone = images("a", time), images("b", time)
        assert len(await bench.put(*together)) == len(HOSTILE)
        for image in alone:
            await bench.put(image)
    for n, fields in enumerate(HOSTILE):
        one, other = [
            parse_document((await bench.stored(image[n].path)).data or b"", DATABASE)
            for image in (together, alone)
        ]
        assert identical(one.fields, fields)
        assert identical(other.fields, fields)
        assert (one.create_time, one.update_time) == (other.create_time, other.update_time)
        # Without a time of its own a document keeps the one it has.
        assert one.create_time == (70 - n if n % 2 else 50)


async def test_the_end_of_a_copy_queues_what_it_did_not_meet(bench: Bench):
    insert = """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        values ('w', '', '', '', 1, now(), 'copy')"""
    await bench.lanes.execute(insert, timeout=5)
    await bench.put(live("tasks/old", 5), live("tasks/1/chunks/old", 5), gone("tasks/dead", 5))
    await bench.mirror.begin_copy(10, timeout=5)
    await bench.mirror.begin_copy(20, timeout=5)
    # Seen by a former copy, and by this one though its version is refused.
    await bench.mirror.put_page(
        [live("tasks/former", 5)], epoch=1, generation=1, token=10, timeout=5
    )
    await bench.put(live("tasks/newer", 9))
    page = [live("tasks/newer", 5), live("tasks/new", 5)]
    await bench.mirror.put_page(page, epoch=1, generation=1, token=20, timeout=5)
    with pytest.raises(EpochChanged):
        await bench.mirror.finish_copy(20, epoch=1, generation=2, timeout=5)
    with pytest.raises(EpochChanged):
        await bench.mirror.finish_copy(20, epoch=2, generation=1, timeout=5)
    assert (await bench.mirror.summary(timeout=5)).wildcards == 1
    assert await bench.mirror.finish_copy(20, epoch=1, generation=1, timeout=5) == 3
    rows = await bench.claim("c")
    assert [row.path for row in sorted(rows, key=lambda row: row.path)] == [
        "tasks/1/chunks/old",
        "tasks/former",
        "tasks/old",
    ]
    assert (await bench.mirror.summary(timeout=5)).wildcards == 0
    places = await bench.lanes.fetch(
        "select collection_path, collection_id from crossfade.pending order by path", timeout=5
    )
    assert tuple(places[0]) == ("tasks/1/chunks", "chunks")
    assert tuple(places[1]) == ("tasks", "tasks")


# --- the way back ------------------------------------------------------------------------------


async def test_the_way_back_remembers_pairs(bench: Bench):
    """H24: the row may be newer than what Firestore was given."""
    await bench.control("postgresql")
    intent = Intent("i", 1, mirrored=True)
    first = await bench.store.commit([Write(MAPPED, {"n": 1})], timeout=5, intent=intent)
    await bench.claim("c")
    (peer,) = await bench.mirror.way_back.peers([MAPPED], timeout=5)
    assert (peer.version, peer.peer_time) == ((1, first.commit_time), None)
    # A second commit while the first is on its way to Firestore.
    later = Intent("j", 1, mirrored=True)
    second = await bench.store.commit([Write(MAPPED, {"n": 2})], timeout=5, intent=later)
    await bench.mirror.way_back.settle("c", [(peer, 77)], epoch=1, timeout=5)
    assert await bench.pending() == [("j", MAPPED)]
    assert (await bench.stored(MAPPED)).peer_time is None
    await bench.claim("d")
    (peer,) = await bench.mirror.way_back.peers([MAPPED], timeout=5)
    assert (peer.version, peer.peer_time) == ((1, second.commit_time), 77)
    await bench.mirror.way_back.settle("d", [(peer, 78)], epoch=1, timeout=5)
    assert (await bench.stored(MAPPED)).peer_time == 78
    assert await bench.pending() == []


async def test_the_way_back_of_a_delete(bench: Bench):
    await bench.put(live(MAPPED, 5))
    await bench.control("postgresql")
    intent = Intent("i", 1, mirrored=True)
    await bench.store.commit([Write(MAPPED, None)], timeout=5, intent=intent)
    await bench.claim("c")
    (peer,) = await bench.mirror.way_back.peers([MAPPED], timeout=5)
    assert (peer.fields, peer.peer_time) == (None, 5)
    await bench.mirror.way_back.settle("c", [(peer, 0)], epoch=1, timeout=5)
    assert (await bench.mirror.way_back.peers([MAPPED], timeout=5))[0].peer_time == 0
    assert (await bench.stored(MAPPED)).peer_time == 0


async def test_of_two_answers_that_of_the_newer_version_is_remembered(bench: Bench):
    await bench.control("postgresql")
    peers = []
    for n, name in enumerate("ij", start=1):
        intent = Intent(name, 1, mirrored=True)
        await bench.store.commit([Write(MAPPED, {"n": n})], timeout=5, intent=intent)
        await bench.lanes.execute(
            """update crossfade.pending set claim = $1, lease_until = 'infinity'
            where intent = $1""",
            name,
            timeout=5,
        )
        peers += await bench.mirror.way_back.peers([MAPPED], timeout=5)
    for name, peer, time in (("j", peers[1], 78), ("i", peers[0], 77)):
        await bench.mirror.way_back.settle(name, [(peer, time)], epoch=1, timeout=5)
    assert (await bench.stored(MAPPED)).peer_time == 78


async def test_who_lost_the_claim_settles_and_buries_nothing(bench: Bench):
    await bench.control("postgresql")
    intent = Intent("i", 1, mirrored=True)
    await bench.store.commit([Write(MAPPED, {"n": 1})], timeout=5, intent=intent)
    await bench.claim("one", lease=0)
    (peer,) = await bench.mirror.way_back.peers([MAPPED], timeout=5)
    await bench.claim("two")
    assert await bench.mirror.way_back.settle("one", [(peer, 7)], epoch=1, timeout=5) == set()
    assert not await bench.mirror.way_back.bury("one", MAPPED, failure="x", timeout=5)
    assert (await bench.mirror.summary(timeout=5)).dead == 0
    assert (await bench.mirror.way_back.peers([MAPPED], timeout=5))[0].peer_time is None
    assert await bench.pending() == [("i", MAPPED)]
    assert await bench.mirror.way_back.settle("two", [(peer, 7)], epoch=1, timeout=5) == {"i"}
    assert await bench.pending() == []


async def test_an_attempt_is_not_written_down_beside_one_that_may_still_arrive(bench: Bench):
    async def prepare(claim: str, intent: str, *resolved: str) -> Prepared:
        return await bench.mirror.way_back.prepare(
            claim, [MAPPED], intent=intent, epoch=1, resolved=resolved, timeout=5
        )

    await bench.control("postgresql")
    intent = Intent("i", 1, mirrored=True)
    await bench.store.commit([Write(MAPPED, {"n": 1})], timeout=5, intent=intent)
    await bench.claim("one", lease=0)
    assert (await prepare("one", "first")).recorded
    await bench.claim("two")
    assert (await prepare("one", "late")).peers == ()
    second = await prepare("two", "second")
    assert (second.earlier, second.recorded) == (frozenset({"first"}), False)
    assert second.attempted == {MAPPED: {fingerprint({"n": 1})}}
    assert (await prepare("two", "second", "first")).recorded
    names = await bench.lanes.fetch("select intent from crossfade.attempts order by 1", timeout=5)
    assert [row[0] for row in names] == ["first", "second"]
    with pytest.raises(EpochChanged):
        await bench.mirror.way_back.prepare(
            "two", [MAPPED], intent="x", epoch=2, resolved=(), timeout=5
        )


async def test_settling_waits_for_the_epoch(bench: Bench):
    await bench.control("postgresql")
    intent = Intent("i", 1, mirrored=True)
    await bench.store.commit([Write(MAPPED, {"n": 1})], timeout=5, intent=intent)
    await bench.claim("c")
    peers = await bench.mirror.way_back.peers([MAPPED], timeout=5)
    await bench.control("firestore", 2)
    with pytest.raises(EpochChanged):
        await bench.mirror.way_back.settle("c", [(peers[0], 7)], epoch=1, timeout=5)
    assert await bench.pending() == [("i", MAPPED)]
    await bench.control("none", 1)
    await bench.mirror.way_back.settle("c", [(peers[0], 7)], epoch=1, timeout=5)
    assert await bench.pending() == []


async def test_peers_of_several_tables_in_order(bench: Bench):
    await bench.put(live(GENERIC, 5), live(MAPPED, 6))
    peers = await bench.mirror.way_back.peers([GENERIC, "tasks/none", MAPPED], timeout=5)
    assert [(peer.path, peer.version, peer.peer_time) for peer in peers] == [
        (GENERIC, (1, 5), 5),
        ("tasks/none", None, None),
        (MAPPED, (1, 6), 6),
    ]
