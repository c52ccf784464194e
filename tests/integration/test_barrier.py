"""Changes of stage with several sidecars: each step with a coordinator that stalls in it."""

import asyncio
import time
from contextlib import asynccontextmanager

import asyncpg
import grpc
import pytest

from crossfade import app, barrier
from crossfade.barrier import STEPS, Coordinator
from crossfade.document import Document
from crossfade.errors import EpochChanged, FailedPrecondition, Unavailable
from crossfade.plan import STAGES, Stage, StoreName
from crossfade.settings import FirestoreSettings, MigrationSettings, ServerSettings, Settings
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Mirror
from crossfade.telemetry import Telemetry
from crossfade.wire import parse_document
from crossfade_api.v1 import admin_pb2
from crossfade_client import AsyncCrossfade, Increment, UnavailableError
from tests.sidecar import DATABASE, Running, eventually, running

BEFORE = {"take": "shadow", "give": "live", "finish": "live", "begin": "off", "leave": "shadow"}
AFTER = {"take": "live", "give": "shadow", "finish": "complete", "begin": "shadow", "leave": "off"}


@pytest.fixture
async def two(postgres_database, monkeypatch):
    """Two sidecars; a coordinator counts as dead after half a second."""
    monkeypatch.setattr(barrier, "COORDINATOR_SECONDS", 0.5)
    monkeypatch.setattr(barrier, "LOOK_SECONDS", 0.1)
    async with (
        running(await postgres_database(), Stage.SHADOW, read_percent=100) as first,
        first.another(read_percent=100) as second,
    ):
        await first.copy()
        yield first, second


async def in_postgres(stack: Running, path: str) -> Document | None:
    reading = await stack.sidecar.stores[StoreName.POSTGRESQL].get([path], timeout=5)
    data = reading.documents[0].data
    return None if data is None else parse_document(data, DATABASE)


async def nothing_under_way(stack: Running) -> bool:
    row = await stack.sidecar.control.row()
    return row["barrier"] is None


@asynccontextmanager
async def stalled(coordinator: Coordinator, step: str):
    """The coordinator comes to `step` and stands still, heartbeat and all, to the end of the
    block; then it does the step."""
    reached, released, real = asyncio.Event(), asyncio.Event(), coordinator._do

    async def hold(change, snapshot):
        reached.set()
        await released.wait()
        return await real[step](change, snapshot)

    async def still(_change) -> None:
        await released.wait()

    patch = pytest.MonkeyPatch()
    patch.setattr(coordinator, "_do", {**real, step: hold})
    patch.setattr(coordinator, "_heartbeat", still)
    yield reached
    patch.undo()
    released.set()


@pytest.mark.parametrize(("kind", "step"), [(k, s) for k in BEFORE for s in STEPS[k]])
async def test_another_sidecar_goes_on_and_the_one_that_stalled_changes_nothing(two, kind, step):
    first, second = two
    for stage in ("live", "off"):
        if BEFORE[kind] == stage:
            await first.stage(stage)
    target = Stage(AFTER[kind])
    coordinator = first.sidecar.coordinator
    async with stalled(coordinator, step) as reached:
        moving = asyncio.create_task(coordinator.set_stage(target))
        await asyncio.wait_for(reached.wait(), 10)
        await eventually(lambda: nothing_under_way(second))
        row = await second.sidecar.control.row()
        assert (row["stage"], row["authority"]) == (target, STAGES[target].authority)
        document = await second.sidecar.control.lease.fences.read(timeout=5)
    with pytest.raises(EpochChanged):
        await moving
    assert await second.sidecar.control.row() == row
    assert await second.sidecar.control.lease.fences.read(timeout=5) == document
    await first.client.set("tasks/1", {"n": 1})
    assert (await second.client.get("tasks/1")).fields == {"n": 1}


async def test_one_that_stalled_after_giving_up_opens_nothing_in_a_later_epoch(two, monkeypatch):
    """It gave up, and stood still while the others ended that and took PostgreSQL into charge.
    What it has heard of since, the epoch of today, it must not publish."""
    first, second = two
    coordinator = first.sidecar.coordinator
    reached, released, real = asyncio.Event(), asyncio.Event(), Coordinator._give_up

    async def give_up(self, change):
        after = await real(self, change)
        reached.set()
        await released.wait()
        await self._control.refresh()
        return after

    async def still(_change) -> None:
        await released.wait()

    await first.sql.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        values ('held', 'tasks/9', 'tasks', 'tasks', 1, clock_timestamp() + '1 hour', 'test')"""
    )
    monkeypatch.setattr(coordinator, "_heartbeat", still)
    monkeypatch.setattr(coordinator, "_give_up", give_up.__get__(coordinator))
    moving = asyncio.create_task(coordinator.set_stage(Stage.LIVE, timeout=0.2))
    await asyncio.wait_for(reached.wait(), 10)
    await first.sql.execute("delete from crossfade.pending where intent = 'held'")
    await eventually(lambda: nothing_under_way(second))
    await second.stage("live")
    document = await second.sidecar.control.lease.fences.read(timeout=5)
    assert not document.open
    released.set()
    with pytest.raises(EpochChanged):
        await moving
    await asyncio.sleep(0.5)
    assert await second.sidecar.control.lease.fences.read(timeout=5) == document
    row = await second.sidecar.control.row()
    assert (row["authority"], row["barrier"]) == ("postgresql", None)


async def test_at_no_time_are_both_stores_open(two):
    """Looked at all the time, while the authority goes there and back under writers."""
    first, second = two
    fences, both, done = first.sidecar.control.lease.fences, [], False
    acknowledged = 0

    async def look() -> None:
        while not done:
            # The row before the document: what was closed does not open again in between,
            # but by a change of its epoch.
            row = await second.sidecar.control.row()
            document = await fences.read(timeout=5)
            again = await second.sidecar.control.row()
            stands = row["epoch"] == again["epoch"] and row["authority"] == "postgresql"
            if stands and document.open:
                both.append((row["epoch"], document))

    async def write(stack: Running) -> None:
        nonlocal acknowledged
        while not done:
            await stack.client.merge("tasks/1", {"n": Increment(1)})
            acknowledged += 1

    tasks = [asyncio.create_task(work) for work in (look(), write(first), write(second))]
    for stage in ("live", "shadow", "live", "dual_write"):
        await second.stage(stage)
        await asyncio.sleep(0.2)
    done = True
    await asyncio.gather(*tasks)
    await first.settled()
    assert both == []
    assert (await second.client.get("tasks/1")).fields == {"n": acknowledged}
    assert first.memory.read("tasks/1").fields == {"n": acknowledged}
    assert (await in_postgres(first, "tasks/1")).fields == {"n": acknowledged}


async def test_the_other_authority_opens_only_after_every_lease(two, monkeypatch):
    """A sidecar that does not hear of the change answers from Firestore until its lease ends."""
    first, second = two
    await first.client.set("tasks/1", {"n": 1})
    await first.settled()
    lease = second.sidecar.control.lease
    await lease.renew()

    async def deaf(*_args) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(lease, "renew", deaf)
    monkeypatch.setattr(second.sidecar.control, "refresh", deaf)
    began = time.monotonic()
    await first.stage("live")
    assert time.monotonic() - began >= lease.seconds
    assert not lease.valid


async def test_a_control_document_that_was_lost_is_written_anew(two):
    first, _ = two
    before = await first.sidecar.control.lease.fences.read(timeout=5)
    first.memory.reset()
    await eventually(lambda: _is_written(first))
    after = await first.sidecar.control.lease.fences.read(timeout=5)
    assert (after.epoch, after.open, after.mirrored) == (before.epoch, True, True)
    await first.client.set("tasks/1", {"n": 1})
    assert (await first.client.get("tasks/1")).fields == {"n": 1}


async def _is_written(stack: Running) -> bool:
    return (await stack.sidecar.control.lease.fences.read(timeout=5)).update_time > 0


async def test_postgresql_from_a_backup_follows_firestore_and_vouches_for_nothing(two):
    """Restored to a time before a change: its rows and its pending rows are of the past."""
    first, second = two
    await first.client.set("tasks/1", {"n": 1})
    await first.settled()
    await first.sql.execute("create table backup as select * from crossfade.control")
    await first.stage("live")
    await first.stage("shadow")
    epoch = first.sidecar.control.snapshot.epoch
    await first.sql.execute("delete from crossfade.control")
    await first.sql.execute("insert into crossfade.control select * from backup")
    await eventually(lambda: _is_at(second, epoch))
    await second.sidecar.control.refresh()
    status = await second.sidecar.status()
    assert (status.stage, status.copied) == ("dual_write", False)
    with pytest.raises(FailedPrecondition, match="first copy"):
        await second.sidecar.coordinator.set_stage(Stage.LIVE)


async def _is_at(stack: Running, epoch: int) -> bool:
    row = await stack.sidecar.control.row()
    return row is not None and row["epoch"] == epoch


async def test_a_sidecar_without_postgresql_serves_stage_off_and_no_other(two):
    first, _ = two
    settings = Settings(
        server=ServerSettings(port=0),
        firestore=FirestoreSettings(
            project=DATABASE.project, emulator=first.firestore_server.address
        ),
        migration=MigrationSettings(mappings="violet", lease=0.3, horizon=0.3),
    )
    alone = await app.start(settings, Telemetry())
    try:
        async with AsyncCrossfade(alone.address, timeout=1.0) as client:
            with pytest.raises(UnavailableError):
                await client.set("tasks/1", {"n": 1})
            with pytest.raises(UnavailableError):
                await client.get("tasks/1")
            await first.stage("off")
            await client.set("tasks/1", {"n": 1}, timeout=5)
            assert (await client.get("tasks/1")).fields == {"n": 1}
            await first.stage("dual_write")
            await asyncio.sleep(0.3)
            with pytest.raises(UnavailableError):
                await client.set("tasks/1", {"n": 2})
    finally:
        await alone.stop(1.0)


async def test_a_copy_waits_for_what_other_sidecars_sent_in_stage_off(two):
    first, second = two
    await first.stage("off")
    await asyncio.sleep(0.6)
    assert second.sidecar.control.snapshot.stage is Stage.OFF
    began = time.monotonic()
    await first.stage("dual_write")
    await first.copy()
    # a lease, in which the other may go on sending, and as long as Firestore may hold it
    assert time.monotonic() - began >= first.sidecar.control.lease.seconds + 0.3


async def test_a_rollback_by_force_while_postgresql_is_dead(postgres_database, monkeypatch):
    """What PostgreSQL had sent on is there; what it had not is lost, and listed when it is back."""
    dead = False
    take, call = Lanes._take, Lanes._call

    async def refuse(self, timeout):
        if dead:
            raise Unavailable("PostgreSQL cannot be reached")
        return await take(self, timeout)

    async def refuse_call(self, *args):
        if dead:
            raise Unavailable("PostgreSQL cannot be reached")
        return await call(self, *args)

    monkeypatch.setattr(Lanes, "_take", refuse)
    monkeypatch.setattr(Lanes, "_call", refuse_call)
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as stack:
        await stack.copy()
        await stack.stage("live")
        await stack.client.set("tasks/sent", {"n": 1})
        await stack.settled()
        with monkeypatch.context() as patch:
            patch.setattr(Mirror, "claim", nothing)
            await stack.client.set("tasks/unsent", {"n": 1})
            dead = True
        with pytest.raises(grpc.aio.AioRpcError):
            await stack.stage("dual_write")
        with pytest.raises(UnavailableError):
            await stack.client.set("tasks/1", {"n": 1}, timeout=1)
        await stack.admin.SetStage(
            admin_pb2.SetStageRequest(stage="dual_write", without_postgresql=True)
        )
        await stack.client.set("tasks/1", {"n": 1}, timeout=5)
        assert (await stack.client.get("tasks/sent")).fields == {"n": 1}
        dead = False
        await eventually(lambda: _is_dual_write(stack))
        await stack.client.set("tasks/2", {"n": 1}, timeout=5)
        letters = await stack.sql.fetch("select path, failure from crossfade.pending where dead")
        assert [tuple(row) for row in letters] == [("tasks/unsent", "lost by a rollback by force")]


async def nothing(*_args, **_kwargs) -> list[str]:
    return []


async def _is_dual_write(stack: Running) -> bool:
    row = await stack.sidecar.control.row()
    return (row["stage"], row["authority"]) == ("dual_write", "firestore")


async def test_a_process_that_stands_still_in_a_transaction_holds_up_no_writer(two):
    """It holds the control row; the change waits for it, but not in the writers' way."""
    first, _ = two
    held = await asyncpg.connect(first.url)
    try:
        await held.execute("begin")
        await held.fetchrow("select 1 from crossfade.control for share")
        moving = asyncio.create_task(first.sidecar.coordinator.set_stage(Stage.LIVE))
        await asyncio.sleep(0.3)
        slowest = 0.0
        for n in range(10):
            began = time.monotonic()
            await first.client.set("tasks/1", {"n": n})
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.05)
        assert slowest < 2.0
        assert first.sidecar.control.lease.document.gate_open
        assert not moving.done()
        await held.execute("rollback")
        await moving
    finally:
        await held.close()
