"""Interleavings that would lose, double or hide a write: each is brought about on purpose."""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from random import Random
from types import SimpleNamespace

import asyncpg
import grpc
import pytest

from crossfade import control as controls
from crossfade import pending, recopy
from crossfade.barrier import Coordinator
from crossfade.document import Document
from crossfade.errors import DeadlineExceeded, Internal, Unavailable
from crossfade.plan import Stage, StoreName
from crossfade.reconcile import Reconciler
from crossfade.stores import firestore
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.mirror import Mirror
from crossfade.stores.postgres.way_back import WayBack
from crossfade.telemetry import VERDICTS
from crossfade.wire import parse_document
from crossfade.write import Write
from crossfade_api.v1 import admin_pb2
from crossfade_client import CrossfadeError as CrossfadeClientError
from crossfade_client import Increment, NotFoundError
from crossfade_client import Write as ClientWrite
from tests.sidecar import DATABASE, Running, eventually, running


@pytest.fixture
async def url(postgres_database) -> str:
    return await postgres_database()


@pytest.fixture
async def shadowing(url):
    """Stage shadow, copied, PostgreSQL answering everything it can show to be fresh."""
    async with running(url, Stage.SHADOW, read_percent=100) as stack:
        await stack.copy()
        yield stack


@pytest.fixture
async def live(shadowing):
    await shadowing.stage("live")
    return shadowing


async def in_postgres(stack: Running, path: str) -> Document | None:
    reading = await stack.sidecar.stores[StoreName.POSTGRESQL].get([path], timeout=5)
    data = reading.documents[0].data
    return None if data is None else parse_document(data, DATABASE)


async def dead_letters(stack: Running) -> int:
    return (await stack.admin.GetStatus(admin_pb2.GetStatusRequest())).dead_letters


class Gate:
    """Holds whoever comes to `hold()` until it is opened."""

    def __init__(self) -> None:
        self._reached, self._open = asyncio.Event(), asyncio.Event()

    async def hold(self) -> None:
        self._reached.set()
        await self._open.wait()

    async def reached(self) -> None:
        await asyncio.wait_for(self._reached.wait(), 5)

    def open(self) -> None:
        self._open.set()


# --- the control row ---------------------------------------------------------------------------


async def test_a_late_answer_does_not_bring_back_an_older_state(url, monkeypatch):
    async with running(url, Stage.OFF) as stack:
        control = stack.sidecar.control
        gate, real, late = Gate(), control._rows.fetchrow, iter([True])

        async def fetchrow(query, *args, timeout):
            row = await real(query, *args, timeout=timeout)
            if query == controls.READ and next(late, False):
                await gate.hold()
            return row

        monkeypatch.setattr(control._rows, "fetchrow", fetchrow)
        reading = asyncio.create_task(control.refresh())
        await gate.reached()
        moving = asyncio.create_task(stack.sidecar.coordinator.set_stage(Stage.DUAL_WRITE))
        await asyncio.wait([moving], timeout=0.3)
        gate.open()
        await asyncio.gather(reading, moving)
        # Stage off again, for half a second, would be half a second of unmirrored writes.
        assert control.snapshot.stage is Stage.DUAL_WRITE


@pytest.mark.parametrize("step", ["fence", "drain", "lapse", "open"])
async def test_a_barrier_that_a_store_interrupts_goes_on_when_it_is_back(
    shadowing, monkeypatch, step
):
    """After the row said `none`: what is left to do stands in it."""
    coordinator = shadowing.sidecar.coordinator
    failures, real = 3, coordinator._do[step]

    async def fail(change, snapshot):
        nonlocal failures
        if failures == 0:
            return await real(change, snapshot)
        failures -= 1
        raise Unavailable("a store is away")

    monkeypatch.setattr(coordinator, "_do", {**coordinator._do, step: fail})
    with pytest.raises(grpc.aio.AioRpcError):
        await shadowing.stage("live")
    await shadowing.client.set("tasks/1", {"n": 1}, timeout=10)
    assert shadowing.sidecar.control.snapshot.stage is Stage.LIVE
    assert failures == 0
    assert (await shadowing.client.get("tasks/1")).fields == {"n": 1}


@pytest.mark.parametrize("step", ["fence", "drain", "lapse", "open"])
async def test_a_barrier_whose_caller_goes_away_does_not_stay_closed(shadowing, monkeypatch, step):
    coordinator, gate = shadowing.sidecar.coordinator, Gate()
    real = coordinator._do[step]

    async def held(change, snapshot):
        result = await real(change, snapshot)
        await gate.hold()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "_do", {**coordinator._do, step: held})
        call = shadowing.admin.SetStage(admin_pb2.SetStageRequest(stage="live", force=True))
        await asyncio.ensure_future(gate.reached())
    call.cancel()
    await shadowing.client.set("tasks/1", {"n": 1}, timeout=5)
    row = await shadowing.sql.fetchrow("select authority, barrier from crossfade.control")
    assert row["authority"] == ("postgresql" if step == "open" else "firestore")
    await eventually(lambda: _nothing_under_way(shadowing))


async def _nothing_under_way(stack: Running) -> bool:
    return bool(await stack.sql.fetchval("select barrier is null from crossfade.control"))


async def test_two_settings_of_traffic_at_once_both_stand(shadowing):
    set_traffic = shadowing.admin.SetTraffic
    for percent in range(10):
        await asyncio.gather(
            set_traffic(admin_pb2.SetTrafficRequest(read_percent=percent)),
            set_traffic(admin_pb2.SetTrafficRequest(shadow_rate=percent / 10)),
        )
        traffic = shadowing.sidecar.control.snapshot.traffic_of("tasks")
        assert (traffic.read_percent, traffic.shadow_rate) == (percent, percent / 10)


async def test_a_barrier_closes_though_commits_overlap_without_a_gap(live, url):
    """Each holds a share lock of the control row; some always does."""
    stop = False

    async def commits() -> None:
        connection = await asyncpg.connect(url)
        while not stop:
            async with connection.transaction():
                await connection.execute("select from crossfade.control for share")
                await connection.execute("select pg_sleep(0.004)")
        await connection.close()

    callers = [asyncio.create_task(commits()) for _ in range(48)]
    await asyncio.sleep(1)
    try:
        await live.percent(50)
        await live.stage("shadow")
    finally:
        stop = True
        await asyncio.gather(*callers)
    assert live.sidecar.control.snapshot.stage is Stage.SHADOW


async def test_a_barrier_whose_coordinator_died_long_ago_is_undone(url):
    async with running(url, Stage.SHADOW) as stack:
        await stack.copy()
        epoch = stack.sidecar.control.snapshot.epoch
    sql = await asyncpg.connect(url)
    await sql.execute(
        """update crossfade.control set authority = 'none', barrier = '{"id": "1", "kind": "take",
            "before": "shadow", "target": "live", "step": "fence", "deadline": 0}'"""
    )
    await sql.close()
    async with running(url, Stage.SHADOW) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        assert stack.memory.read("tasks/1").fields == {"n": 1}
        assert stack.sidecar.control.snapshot.epoch == epoch + 1


async def test_a_commit_is_not_refused_for_the_size_of_its_proof(shadowing):
    """The names alone are more than one document may hold."""
    name = "x" * 1400
    writes = [ClientWrite.set(f"notes/{number}{name}", {"n": 1}) for number in range(800)]
    await shadowing.client.commit(writes, timeout=20)
    await shadowing.settled(20)
    assert (await in_postgres(shadowing, f"notes/799{name}")).fields == {"n": 1}


# --- off and dual_write ------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", [None, "same"])
@pytest.mark.parametrize("goes_away", [False, True])
async def test_no_copy_begins_before_the_unmirrored_commits_have_ended(
    url, monkeypatch, request_id, goes_away
):
    """Begun in stage off, applied only after the stage moved: the copy has to meet it."""
    gate, real = Gate(), FirestoreStore._send

    async def late(self, writes, deadline, transaction=None):
        await gate.hold()
        return await real(self, writes, deadline, transaction)

    async with running(url, Stage.OFF, read_percent=100, horizon=2.0) as stack:
        with monkeypatch.context() as patch:
            patch.setattr(FirestoreStore, "_send", late)
            write = asyncio.create_task(
                stack.client.set("tasks/1", {"n": 1}, request_id=request_id)
            )
            await gate.reached()
        if goes_away:
            write.cancel()
            await asyncio.wait([write])
            await asyncio.sleep(0.1)
        moving = asyncio.create_task(stack.stage("shadow"))
        await eventually(lambda: _in_stage(stack, Stage.SHADOW))
        copy = asyncio.create_task(stack.copy())
        await asyncio.wait([moving, copy], timeout=0.3)
        assert not moving.done()
        assert not copy.done()
        gate.open()
        await asyncio.gather(moving, copy)
        await asyncio.wait([write])
        await stack.settled()
        assert stack.memory.read("tasks/1").fields == {"n": 1}
        assert (await stack.client.get("tasks/1")).fields == {"n": 1}


async def _in_stage(stack: Running, stage: Stage) -> bool:
    return stack.sidecar.control.snapshot.stage is stage


async def test_a_page_of_a_former_copy_does_not_bring_a_document_back(shadowing, monkeypatch):
    """Read before stage off, put after the next copy has ended: off left no tombstone."""
    await shadowing.client.set("tasks/1", {"n": 1})
    await shadowing.settled()
    gate, real = Gate(), Mirror.put_page

    async def late(self, images, **options):
        await gate.hold()
        return await real(self, images, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "put_page", late)
        former = asyncio.create_task(shadowing.copy())
        await gate.reached()
    await shadowing.stage("off")
    await shadowing.client.delete("tasks/1")
    await shadowing.sql.execute("delete from crossfade.versions")
    await shadowing.sql.execute("delete from violet.tasks")
    await shadowing.stage("shadow")
    await shadowing.copy()
    gate.open()
    with pytest.raises(grpc.aio.AioRpcError):
        await former
    await shadowing.settled()
    with pytest.raises(NotFoundError):
        await shadowing.client.get("tasks/1")


async def test_an_unknown_commit_is_fenced_across_stage_off(shadowing, monkeypatch):
    """Its rows survive off and dual_write, so that its intent is revoked before the copy."""
    real, held = FirestoreStore.commit, []

    async def lost(self, writes, *, timeout, intent=None, transaction=None):
        held.append((writes, intent))
        raise Unavailable("connection reset")

    async def silent(self, *_args, **_kwargs):
        raise Unavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(FirestoreStore, "commit", lost)
        patch.setattr(FirestoreStore, "revoke", silent)
        with pytest.raises(Exception, match="cannot be asked"):
            await shadowing.client.set("tasks/1", {"n": 1}, request_id=None)
    await shadowing.stage("off")
    await shadowing.stage("shadow")
    await shadowing.copy()
    await shadowing.settled()
    writes, intent = held[0]
    with pytest.raises(Exception, match="revoked"):
        await real(shadowing.direct, writes, timeout=5, intent=intent)
    assert shadowing.memory.read("tasks/1") is None


# --- requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["tasks/1", "notes/1"])
@pytest.mark.parametrize("there_and_back", [["shadow", "live"], ["live", "shadow"]])
async def test_a_request_repeated_under_the_other_authority_is_done_once(
    shadowing, path, there_and_back
):
    first, second = there_and_back
    await shadowing.stage(first)
    writes = [ClientWrite.merge(path, {"total": Increment(1)}), ClientWrite.set("notes/2", {})]
    alone = [ClientWrite.set("notes/3", {"n": 1})]
    before = [
        await shadowing.client.commit(writes, request_id="two"),
        await shadowing.client.commit(alone, request_id="one"),
    ]
    await shadowing.stage(second)
    after = [
        await shadowing.client.commit(writes, request_id="two"),
        await shadowing.client.commit(alone, request_id="one"),
    ]
    for earlier, later in zip(before, after, strict=True):
        assert later.replayed
        assert later.commit_time == earlier.commit_time
        assert len(later.writes) == len(earlier.writes)
    await shadowing.settled()
    assert (await shadowing.client.get(path)).fields == {"total": 1}


async def test_a_request_that_a_worker_settled_is_done_once(shadowing, monkeypatch):
    """The first attempt was revoked, the second applied, and its put never came."""
    await shadowing.direct.revoke(pending.intent_of("same", 0), timeout=5)

    async def crash(*_args, **_kwargs):
        raise Unavailable("the sidecar died here")

    monkeypatch.setattr(pending, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(pending.Pending, "settle", crash)
    increment = [ClientWrite.merge("tasks/1", {"total": Increment(1)})]
    await shadowing.client.commit(increment, request_id="same")
    await shadowing.settled()
    await shadowing.stage("live")
    assert (await shadowing.client.commit(increment, request_id="same")).replayed
    assert (await shadowing.client.get("tasks/1")).fields == {"total": 1}


# --- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-3600, 3600])
async def test_the_sidecars_clock_is_no_version(shadowing, monkeypatch, skew):
    """A recopy of a missing document leaves a tombstone with Firestore's time, not ours."""
    clock = SimpleNamespace(
        monotonic=time.monotonic, time_ns=lambda: time.time_ns() + skew * 1_000_000_000
    )
    monkeypatch.setattr(firestore, "time", clock)
    rows = shadowing.sidecar.members["default"].forward._pending
    epoch = shadowing.sidecar.control.snapshot.epoch
    await shadowing.client.set("tasks/old", {"n": 1})
    await shadowing.settled()
    # Deleted around the sidecar; found, and recopied.
    await shadowing.direct.commit([Write("tasks/old", None)], timeout=5)
    for path in ("tasks/old", "tasks/new"):
        await rows.mark([path], epoch, "repair", StoreName.FIRESTORE)
        await shadowing.settled()
    assert await in_postgres(shadowing, "tasks/old") is None
    await shadowing.client.set("tasks/new", {"n": 1})
    await shadowing.settled()
    assert (await shadowing.client.get("tasks/new")).fields == {"n": 1}
    assert (await in_postgres(shadowing, "tasks/new")).fields == {"n": 1}


@pytest.mark.parametrize("path", ["tasks/1", "notes/1"])
async def test_after_a_rollback_the_mirror_answers_with_firestores_times(live, path):
    await live.client.set(path, {"n": 1})
    await live.settled()
    await live.stage("shadow")
    await live.settled()
    found = await live.client.get(path)
    expected = live.memory.read(path).update_time
    assert round(found.update_time.timestamp() * 1e6) == expected
    # So a client's precondition holds at the authority.
    await live.direct.commit([Write(path, {"n": 2}, update_time=expected)], timeout=5)


# --- the worker --------------------------------------------------------------------------------


@pytest.fixture
def one_attempt(monkeypatch):
    """Dead letters after the first failure that counts."""
    real = recopy.Recopy.__init__

    def init(self, *args, **options):
        real(self, *args, **(options | {"attempts": 1}))

    monkeypatch.setattr(recopy.Recopy, "__init__", init)


@pytest.mark.usefixtures("one_attempt")
async def test_an_outage_of_firestore_makes_no_dead_letters(live, monkeypatch):
    async def away(*_args, **_kwargs):
        raise Unavailable("Firestore is away")

    with monkeypatch.context() as patch:
        patch.setattr(FirestoreStore, "commit", away)
        patch.setattr(FirestoreStore, "revoke", away)
        await live.client.set("tasks/1", {"n": 1})

        async def failed() -> bool:
            return await live.sql.fetchval(
                "select count(*) > 0 from crossfade.pending where failure is not null"
            )

        await eventually(failed)
    assert await dead_letters(live) == 0
    await live.settled()
    assert live.memory.read("tasks/1").fields == {"n": 1}


@pytest.mark.usefixtures("one_attempt")
@pytest.mark.parametrize("defect", [Internal("a defect"), ValueError("a defect")])
async def test_a_document_that_cannot_be_put_does_not_stop_the_others(
    shadowing, monkeypatch, defect
):
    real = Mirror.put

    async def put(self, images, **options):
        if any(image.path == "tasks/bad" for image in images):
            raise defect
        return await real(self, images, **options)

    monkeypatch.setattr(Mirror, "put", put)
    paths = ["tasks/a", "tasks/bad", "tasks/z"]
    await shadowing.direct.commit([Write(path, {"n": 1}) for path in paths], timeout=5)
    rows = shadowing.sidecar.members["default"].forward._pending
    epoch = shadowing.sidecar.control.snapshot.epoch
    await rows.mark(paths, epoch, "repair", StoreName.FIRESTORE)
    await shadowing.settled()
    assert (await in_postgres(shadowing, "tasks/a")).fields == {"n": 1}
    assert (await in_postgres(shadowing, "tasks/z")).fields == {"n": 1}
    assert await dead_letters(shadowing) == 1
    assert (await shadowing.client.get("tasks/bad")).fields == {"n": 1}


@pytest.mark.usefixtures("one_attempt")
async def test_more_than_one_firestore_commit_can_hold_is_put_in_several(live, monkeypatch):
    async def nothing(*_args, **_kwargs):
        return []

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "claim", nothing)
        for number in range(12):
            await live.client.set(f"notes/{number}", {"text": "x" * 1_000_000})
    await live.settled(20)
    assert await dead_letters(live) == 0
    assert all(live.memory.read(f"notes/{number}") for number in range(12))


# --- the way back ------------------------------------------------------------------------------


async def test_a_foreign_document_is_not_overwritten_by_a_new_one(live):
    await live.direct.commit([Write("tasks/1", {"by": "somebody"})], timeout=5)
    await live.client.set("tasks/1", {"by": "us"})
    await eventually(lambda: _dead(live))
    assert live.memory.read("tasks/1").fields == {"by": "somebody"}


async def test_a_foreign_document_that_only_firestore_has_is_not_deleted(live):
    await live.direct.commit([Write("tasks/1", {"by": "somebody"})], timeout=5)
    await live.percent(100, shadow_rate=1.0)
    assert await live.client.find("tasks/1") is None

    async def compared() -> bool:
        return live.count(VERDICTS, "extra") > 0

    await eventually(compared)
    await live.settled()
    assert live.memory.read("tasks/1").fields == {"by": "somebody"}


async def test_an_answer_lost_on_the_way_back_is_no_foreign_writer(live, monkeypatch):
    """Applied in Firestore, not remembered, and the row moved on meanwhile."""
    await live.client.set("tasks/1", {"n": 0})
    await live.settled()
    real = FirestoreStore.commit

    async def answer_lost(self, writes, *, timeout, intent=None):
        await real(self, writes, timeout=timeout, intent=intent)
        await live.client.set("tasks/1", {"n": 2})
        raise Unavailable("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(FirestoreStore, "commit", answer_lost)
        await live.client.set("tasks/1", {"n": 1})
        await eventually(lambda: _holds(live, "tasks/1", {"n": 1}))
    await live.settled()
    assert await dead_letters(live) == 0
    assert live.memory.read("tasks/1").fields == {"n": 2}


async def test_remembering_locks_in_the_order_of_commits(live):
    """A commit holds a, then wants b; who remembers b and a must not hold b meanwhile."""
    paths = ["notes/a", "notes/b"]
    await live.client.commit([ClientWrite.set(path, {"n": 1}) for path in paths])
    await live.settled()
    way_back = live.sidecar.members["default"].forward._pending.mirror.way_back
    peers = await way_back.peers(paths, timeout=5)
    epoch = live.sidecar.control.snapshot.epoch
    await live.sql.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, claim, lease_until, reason)
        select 'i', unnest($1::text[]), 'notes', 'notes', $2, 'me', 'infinity', 'commit'""",
        paths,
        epoch,
    )
    lock = "select from crossfade.versions where path = $1 for update"
    async with live.sql.transaction():
        await live.sql.execute(lock, "notes/a")
        settled = [(peer, 7) for peer in reversed(peers)]
        remembering = asyncio.create_task(way_back.settle("me", settled, epoch=epoch, timeout=5))
        await asyncio.wait([remembering], timeout=0.3)
        await live.sql.execute(lock, "notes/b")
    await remembering
    assert [peer.peer_time for peer in await way_back.peers(paths, timeout=5)] == [7, 7]


async def test_a_reverse_commit_that_arrives_late_brings_nothing_back(live, monkeypatch):
    """A create without an answer, then a delete, then the create arrives."""
    real, held = FirestoreStore.commit, []

    async def request_lost(self, writes, *, timeout, intent=None):
        held.append((writes, intent))
        raise Unavailable("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(FirestoreStore, "commit", request_lost)
        await live.client.set("tasks/1", {"n": 1})

        async def sent() -> bool:
            return bool(held)

        await eventually(sent)
    await live.client.delete("tasks/1")
    await live.settled()
    writes, intent = held[0]
    with pytest.raises(Exception, match="revoked"):
        await real(live.direct, writes, timeout=5, intent=intent)
    assert live.memory.read("tasks/1") is None


async def _dead(stack: Running) -> bool:
    return await dead_letters(stack) == 1


async def _holds(stack: Running, path: str, fields: dict[str, int]) -> bool:
    document = stack.memory.read(path)
    return document is not None and document.fields == fields


# --- all at once -------------------------------------------------------------------------------


class Storm:
    """Faults at random: before a call, after it (its answer is lost), or a delay."""

    def __init__(self, monkeypatch, seed: int, rate: float) -> None:
        self._random = Random(seed)
        self._rate = rate
        self.blowing = False
        for name in ("_send", "_get_all", "_get_one"):
            self._disturb(monkeypatch, FirestoreStore, name)
        for name in ("open_intent", "put", "claim", "release", "drop_intent"):
            self._disturb(monkeypatch, Mirror, name)
        for name in ("_fence", "_drain", "_lapse", "_open", "_move", "_publish", "_settle"):
            self._disturb(monkeypatch, Coordinator, name)
        for name in ("_begin", "_moved"):
            self._disturb(monkeypatch, Coordinator, name)
        self._disturb(monkeypatch, Reconciler, "write_document")
        for name in ("prepare", "settle", "forget", "bury"):
            self._disturb(monkeypatch, WayBack, name)

    def _disturb(self, monkeypatch, owner, name) -> None:
        real = getattr(owner, name)

        async def disturbed(self_, *args, **options):
            drawn = self._random.random() if self.blowing else 1.0
            if drawn < self._rate / 2:
                raise Unavailable("before")
            if drawn < self._rate:
                await real(self_, *args, **options)
                raise DeadlineExceeded("after")
            if drawn < 2 * self._rate:
                await asyncio.sleep(self._random.random() * 0.1)
            return await real(self_, *args, **options)

        monkeypatch.setattr(owner, name, disturbed)


async def test_a_storm_of_faults_loses_doubles_and_hides_nothing(url, monkeypatch):
    """Counters, raised by callers of whom some go away, while the authority changes."""
    monkeypatch.setattr(pending, "LEASE_SECONDS", 0.5)
    storm, random = Storm(monkeypatch, seed=3, rate=0.08), Random(3)
    async with running(url, Stage.SHADOW, read_percent=100) as shadowing:
        await shadowing.copy()
        await _weather(shadowing, storm, random)


async def _weather(shadowing: Running, storm: Storm, random: Random) -> None:
    acknowledged: Counter[str] = Counter()
    begun: Counter[str] = Counter()
    stale: list[str] = []

    async def writer(number: int) -> None:
        path = f"{('tasks', 'notes')[number % 2]}/{number % 4}"
        while storm.blowing:
            begun[path] += 1
            write = shadowing.client.merge(path, {"total": Increment(1)}, timeout=3)
            commit = asyncio.create_task(write)
            if random.random() < 0.1:
                await asyncio.sleep(random.random() * 0.03)
                commit.cancel()
            await asyncio.wait([commit])
            if not commit.cancelled() and commit.exception() is None:
                acknowledged[path] += 1

    async def reader(path: str) -> None:
        while storm.blowing:
            known = acknowledged[path]
            with suppress(CrossfadeClientError):
                found = await shadowing.client.find(path, timeout=3)
                if (found.fields["total"] if found else 0) < known:
                    stale.append(path)

    storm.blowing = True
    paths = ["tasks/0", "notes/1", "tasks/2", "notes/3"]
    callers = [asyncio.create_task(writer(number)) for number in range(6)]
    callers += [asyncio.create_task(reader(path)) for path in paths]
    for stage in ("live", "shadow", "ramp_down", "shadow"):
        await asyncio.sleep(random.random() * 0.8)
        request = admin_pb2.SetStageRequest(stage=stage, timeout_seconds=2, force=True)
        with suppress(grpc.aio.AioRpcError):
            await shadowing.admin.SetStage(request)
    storm.blowing = False
    await asyncio.gather(*callers)
    await shadowing.settled(20)
    assert await dead_letters(shadowing) == 0
    assert stale == []
    for path in paths:
        theirs, ours = shadowing.memory.read(path), await in_postgres(shadowing, path)
        assert ours.fields == theirs.fields
        assert acknowledged[path] <= theirs.fields["total"] <= begun[path]
