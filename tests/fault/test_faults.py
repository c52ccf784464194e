"""Faults brought about on purpose, between real processes, and what must not come of them.

Each test says which hole of the protocol it looks into. `mutations.py` switches mechanisms
off and expects tests of this file to fail.
"""

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from crossfade.write import Write
from crossfade_api.v1 import admin_pb2
from crossfade_client import CrossfadeError, Increment, OutcomeUnknownError
from crossfade_client import Write as ClientWrite
from tests.fault.rpc_proxy import Held
from tests.fault.schedules import happen, schedules
from tests.fault.workload import Workload
from tests.fault.world import Sidecar, World, Worlds, eventually, skew, world

pytestmark = pytest.mark.timeout(180)
ALL = bool(os.environ.get("FAULT_ALL"))
"""Set by `make chaos`: everything that there is, and not what a change can wait for."""
N1, N2 = {"n": 1}, {"n": 2}


def of(path: str):
    """Requests that name the document."""
    return lambda request: path.encode() in request


@pytest.fixture(scope="module")
async def worlds(fault_server, fault_directory) -> AsyncIterator[Worlds]:
    """Two sidecars in stage shadow, with a proxy of Firestore's methods each; PostgreSQL
    answers all that it can show to be fresh. What nobody needs is pruned all the time."""
    made = Worlds(fault_server, fault_directory, rpc=True, CROSSFADE_RECOPY__PRUNE_INTERVAL="0.3")
    yield made
    await made.close()


@pytest.fixture
async def two(worlds) -> World:
    return await worlds.given()


@pytest.fixture
async def patient(worlds) -> World:
    """Nobody takes a writer's rows over while the test runs."""
    return await worlds.given(lease=60)


@pytest.fixture
async def live(two) -> World:
    await two.stage("live")
    return two


async def equal_at_last(patient: World) -> None:
    """Whatever its writers left, and would be left to them for a minute, is settled."""
    await patient.sql.execute("update crossfade.pending set lease_until = clock_timestamp()")
    await patient.equal()


async def given_up(call: asyncio.Task[Any]) -> None:
    """The call's caller is gone, or its sidecar; what came of it is not asked."""
    call.cancel()
    await asyncio.wait([call])


async def arrived(held: Held) -> None:
    await asyncio.wait_for(held.arrived.wait(), 10)


async def released(held: Held) -> str:
    """Lets a held call go on to Firestore; the name of the status that it met there."""
    held.release()
    await asyncio.wait_for(held.ended.wait(), 10)
    return held.code


# --- a commit that arrives late ----------------------------------------------------------------


@pytest.mark.parametrize("flips", [False, True])
async def test_a_commit_that_arrives_after_its_recopy_is_refused(two, flips):
    """H3 and F2: its sidecar is dead, its rows were taken over; nothing pends any more, and
    Firestore may even be no authority any more."""
    first, second = two.sidecars
    held = first.methods.hold("Commit", of("notes/1"))
    call = asyncio.create_task(first.client.set("notes/1", N1, timeout=20))
    await arrived(held)
    await first.process.kill()
    await given_up(call)
    await two.settled()
    if flips:
        await two.stage("live", by=1)
    assert await released(held) == "ALREADY_EXISTS"
    await two.equal()
    assert await two.in_firestore("notes/1") is None
    assert await second.client.find("notes/1") is None


async def test_a_commit_that_nobody_answered_is_fenced_by_the_rows_that_stay(patient):
    """H31: Firestore is silent, so the outcome is unknown, and said to be; then it arrives."""
    first, second = patient.sidecars
    held = first.methods.hold("Commit", of("notes/1"), answers=False)
    first.methods.lose_request("Commit", times=5)
    call = asyncio.create_task(
        first.client.commit([ClientWrite.set("notes/1", N1)], request_id=None, timeout=1)
    )
    await arrived(held)
    with pytest.raises((OutcomeUnknownError, CrossfadeError)):
        await call
    await asyncio.sleep(0.5)
    assert await released(held) == "OK"
    # Whoever reads now reads what arrived, from whichever store.
    assert (await second.client.get("notes/1")).fields == N1
    first.methods.heal()
    await equal_at_last(patient)
    assert await patient.in_postgres("notes/1") == N1


async def test_a_reverse_put_that_arrives_after_a_takeover_is_refused(live):
    """R3: the create is held, its sidecar dies, another puts what stands there now, which is
    nothing; the create must not bring the document back."""
    first, second = live.sidecars
    holds = [sidecar.methods.hold("Commit", of("notes/1")) for sidecar in live.sidecars]
    await first.client.set("notes/1", N1)
    waits = [asyncio.create_task(held.arrived.wait()) for held in holds]
    await asyncio.wait(waits, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    loser = next(index for index, held in enumerate(holds) if held.arrived.is_set())
    winner = live.sidecars[1 - loser]
    await live.sidecars[loser].process.kill()
    winner.methods.heal()
    await winner.client.delete("notes/1")
    await live.settled()
    assert await released(holds[loser]) == "ALREADY_EXISTS"
    for wait in waits:
        wait.cancel()
    await live.equal()
    assert await live.in_firestore("notes/1") is None
    assert second.methods.calls["Commit"] or first.methods.calls["Commit"]


async def test_an_answer_that_was_lost_on_the_way_back_is_no_foreign_writer(live):
    """R2: applied in Firestore, and its sidecar dies before it remembers."""
    for sidecar in live.sidecars:
        await sidecar.restart("reverse.committed:kill:1")
    await live.sidecars[0].client.set("notes/1", N1)
    dead = asyncio.gather(*(sidecar.process.gone(10) for sidecar in live.sidecars[:1]))
    await asyncio.wait([dead], timeout=5)
    for sidecar in live.sidecars:
        await sidecar.restart()
    await live.sidecars[1].client.set("notes/1", N2)
    await live.equal()
    assert await live.in_firestore("notes/1") == N2


async def test_a_foreign_document_is_reported_and_never_overwritten(live):
    """R5: somebody writes around the sidecars."""
    first, second = live.sidecars
    await first.client.set("notes/1", N1)
    await live.settled()
    await live.direct.commit([Write("notes/1", {"by": "somebody"})], timeout=5)
    await second.client.set("notes/1", N2)

    async def reported() -> bool:
        status = await second.admin.GetStatus(admin_pb2.GetStatusRequest())
        return status.dead_letters == 1

    await eventually(reported, 20, "the foreign document is a dead letter")
    assert await live.in_firestore("notes/1") == {"by": "somebody"}
    assert (await first.client.get("notes/1")).fields == N2


# --- two writers -------------------------------------------------------------------------------


async def test_the_put_of_one_writer_does_not_settle_the_other(patient):
    """H1: both have rows; the first is put before the second is applied."""
    first, second = patient.sidecars
    held = second.methods.hold("Commit", of("notes/1"))
    call = asyncio.create_task(second.client.set("notes/1", N2, timeout=20))
    await arrived(held)
    await first.client.set("notes/1", N1)
    await eventually(lambda: _in_postgres(patient, "notes/1", N1), 10, "the first is put")
    second.postgres.hold()
    held.release()
    await call
    # The put of the second is held; the mirror must not answer for it.
    assert (await first.client.get("notes/1")).fields == N2
    second.postgres.release()
    await equal_at_last(patient)


async def test_a_put_that_comes_late_does_not_overwrite_a_newer_one(patient):
    """The version guard: the first writer stands still between Firestore and its put."""
    first, second = patient.sidecars
    await first.restart("write.committed:stop:1")
    call = asyncio.create_task(first.client.set("notes/1", N1, timeout=20))
    await first.process.stands_still()
    await second.client.set("notes/1", N2)
    await eventually(lambda: _in_postgres(patient, "notes/1", N2), 10, "the second is put")
    first.process.go_on()
    await call
    with suppress(AssertionError):  # or left to a worker, on a machine that is very busy
        await eventually(lambda: _nothing_pends(patient), 10, "the first is put")
    await equal_at_last(patient)
    assert await patient.in_postgres("notes/1") == N2


async def test_a_put_that_comes_late_brings_nothing_back(two):
    """H4: its rows were taken over, the document deleted, the tombstone pruned."""
    first, second = two.sidecars
    await first.restart("write.committed:stop:1")
    call = asyncio.create_task(first.client.set("notes/1", N1, timeout=20))
    await first.process.stands_still()
    await two.settled()
    await second.client.delete("notes/1")
    await two.settled()
    await two.sql.execute("delete from crossfade.versions where path = 'notes/1' and not live")
    first.process.go_on()
    await call
    await asyncio.sleep(0.3)
    await two.equal()
    assert await two.in_postgres("notes/1") is None


async def test_an_older_put_waits_for_a_delete_that_is_not_committed_yet(patient):
    """H6: the first writer's put comes while the put of a later delete is open in PostgreSQL.
    A guard that reads what is committed sees neither a row nor a tombstone."""
    first = patient.sidecars[0]
    await first.restart("write.committed:stop:1")
    call = asyncio.create_task(first.client.set("notes/1", N1, timeout=20))
    await first.process.stands_still()
    deleted = await patient.direct.commit([Write("notes/1", None)], timeout=5)
    async with patient.sql.acquire() as connection, connection.transaction():
        await connection.execute(
            """insert into crossfade.versions
                (path, epoch, time, live, peer_time, peer_epoch, peer_version)
            select 'notes/1', epoch, $1, false, 0, epoch, $1 from crossfade.control""",
            deleted.commit_time,
        )
        first.process.go_on()
        await call
        await asyncio.sleep(0.7)  # it waits; without the lock it is done by now
    await eventually(lambda: _nothing_pends(patient), 10, "the put is done")
    assert await patient.in_postgres("notes/1") is None
    await equal_at_last(patient)


@pytest.mark.parametrize(
    "writes",
    [
        (ClientWrite.set("notes/1", N1), ClientWrite.set("notes/1", N2)),
        (ClientWrite.set("notes/1", N1), ClientWrite.delete("notes/1")),
        (ClientWrite.delete("notes/1"), ClientWrite.set("notes/1", N1)),
        (ClientWrite.set("notes/1", N1), ClientWrite.merge("notes/1", {"m": 1})),
        (ClientWrite.set("notes/1", {"n": 0}),),  # as it stands there: its update_time stays
    ],
    ids=["set set", "set delete", "delete set", "set merge", "set of the same"],
)
async def test_the_version_that_is_stored_is_the_update_time_that_is_read(two, writes):
    """H9: writes of one document share a commit, and some have no update_time of their own."""
    first = two.sidecars[0]
    # As if a copy were under way: until the row has been looked at no tombstone is pruned.
    await two.sql.execute(
        "insert into crossfade.pages (token, lease_until) values (-1, now() + interval '1 minute')"
    )
    await first.client.set("notes/1", {"n": 0})
    done = await first.client.commit(list(writes))
    await two.equal()
    found = (await two.direct.get(["notes/1"], timeout=5, exact_times=True)).documents[0]
    row = await two.sql.fetchrow("select live, time from crossfade.versions where path = 'notes/1'")
    await two.sql.execute("delete from crossfade.pages where token = -1")
    if found.data is None:
        assert (row["live"], row["time"]) == (False, _microseconds(done.commit_time))
    else:
        assert found.version is not None
        assert (row["live"], row["time"]) == (True, found.version[1])


async def test_merges_of_two_writers_leave_what_firestore_has(two):
    """H8: partial writes are recopied, in whatever order their puts come."""
    first, second = two.sidecars
    await first.client.set("notes/1", {"a": 0, "b": 0})
    await first.restart("write.committed:stop:1")
    call = asyncio.create_task(first.client.merge("notes/1", {"a": 1}, timeout=20))
    await first.process.stands_still()
    await second.client.merge("notes/1", {"b": 1})
    first.process.go_on()
    await call
    await two.equal()
    assert await two.in_postgres("notes/1") == {"a": 1, "b": 1}


async def test_a_page_that_is_open_keeps_the_tombstones_of_what_it_has_read(two):
    """H5: the first sidecar stands still with a page in its hands, the document is deleted, and
    the second looks for tombstones to prune."""
    first, second = two.sidecars
    await second.client.set("notes/1", N1)
    await two.settled()
    await first.restart("backfill.read:stop:1")
    copying = asyncio.create_task(two.copy())
    await first.process.stands_still()
    await second.client.delete("notes/1")
    await two.settled()
    await asyncio.sleep(1)
    assert await _tombstones(two) == 1
    first.process.go_on()
    await copying
    await two.equal()
    assert await two.in_postgres("notes/1") is None
    await eventually(lambda: _no_tombstones(two), 10, "the tombstone is pruned")


async def test_what_is_wrong_in_the_mirror_is_healed_by_a_recopy(two):
    """H7: the same version, other content."""
    first = two.sidecars[0]
    await first.client.set("notes/1", N1)
    await two.settled()
    await two.sql.execute("update crossfade.documents set fields = '{}' where path = 'notes/1'")
    assert await two.in_postgres("notes/1") == {}
    await two.sql.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        select 'repair', 'notes/1', 'notes', 'notes', epoch, clock_timestamp(), 'repair'
        from crossfade.control"""
    )
    await two.equal()


# --- a sidecar that missed something -----------------------------------------------------------


ASKED = [f"notes/{number}" for number in range(20)]
"""What a sleeping sidecar is asked for: the first of it meets the state it fell asleep in."""


async def asleep(two: World) -> None:
    """The first sidecar sleeps, and the authority is another meanwhile."""
    first, _ = two.sidecars
    await first.client.commit([ClientWrite.set(path, N1) for path in ASKED])
    await two.settled()
    first.process.stop()
    await two.stage("live", by=1)


async def awake(sleeper: Sidecar) -> None:
    """It goes on, and what it asks PostgreSQL first, for the control row among it, arrives
    together with what it was asked for."""
    sleeper.postgres.hold()
    await asyncio.sleep(0.2)
    sleeper.process.go_on()
    await asyncio.sleep(0.3)
    sleeper.postgres.release()


async def test_a_sidecar_that_slept_through_a_flip_uses_the_old_authority_for_nothing(two):
    """H17: what it was asked for while it slept comes first when it wakes up. Firestore
    answers the reads: PostgreSQL's statements would check the epoch."""
    await two.percent(0)
    await asleep(two)
    first, second = two.sidecars
    # Firestore keeps the old state: the way back is held.
    held = second.methods.hold("Commit", of("notes/1"))
    await second.client.commit([ClientWrite.set(path, N2) for path in ASKED])
    await arrived(held)
    reads = [asyncio.create_task(first.client.get(path, timeout=15)) for path in ASKED]
    await awake(first)
    assert [(await read).fields for read in reads] == [N2] * len(ASKED)
    held.release()
    await two.equal()


async def test_a_sidecar_that_slept_through_a_flip_writes_where_the_new_authority_is(two):
    """H25: the write is refused under the old epoch, and done under the new one."""
    await asleep(two)
    first, second = two.sidecars
    writes = [asyncio.create_task(first.client.set(path, N2, timeout=15)) for path in ASKED]
    await awake(first)
    for write in writes:
        await write
    assert [await two.in_postgres(path) for path in ASKED] == [N2] * len(ASKED)
    await second.client.merge("notes/2", {"m": 1})
    await two.equal()
    assert await two.in_firestore("notes/2") == {"n": 2, "m": 1}


async def test_nothing_of_before_or_after_stage_off_is_missed_or_comes_back(two):
    """H16 and H29: deletes of stage off are found by the next copy, and a sidecar that slept
    through the end of stage off does not write past the mirror."""
    first, second = two.sidecars
    await first.client.commit([ClientWrite.set("notes/1", N1), ClientWrite.set("notes/2", N1)])
    await two.settled()
    await two.stage("off")
    await second.client.delete("notes/1")
    first.process.stop()
    await two.stage("shadow", by=1)
    assert await second.client.find("notes/1") is None  # the mirror's own is not asked
    await two.copy(by=1)
    write = asyncio.create_task(first.client.set("notes/2", N2, timeout=15))
    await awake(first)
    await write
    await two.equal()
    assert await two.in_postgres("notes/1") is None
    assert await two.in_postgres("notes/2") == N2
    assert await second.client.find("notes/1") is None


async def test_a_rollback_by_force_beside_a_sidecar_that_reaches_postgresql(live):
    """The first is cut off from PostgreSQL, and puts Firestore in charge. The second does not
    know, and what it had under way comes late: never over what the first wrote since."""
    first, second = live.sidecars
    await first.client.commit([ClientWrite.set("notes/1", N1), ClientWrite.set("notes/2", N1)])
    await live.settled()
    first.postgres.down()
    held = second.methods.hold("Commit", of("notes/1"))
    await second.client.set("notes/1", {"by": "second"})
    await arrived(held)
    request = admin_pb2.SetStageRequest(stage="dual_write", without_postgresql=True)
    await first.admin.SetStage(request, timeout=20)
    await first.client.set("notes/1", {"by": "first"}, timeout=10)
    await second.client.set("notes/2", {"by": "second"}, timeout=10)
    assert await released(held) == "FAILED_PRECONDITION"
    await first.postgres.heal()
    await live.all_see("dual_write")
    await live.settled_but_dead()
    assert await live.in_firestore("notes/1") == {"by": "first"}
    assert (await second.client.get("notes/1")).fields == {"by": "first"}
    # What the second was told is there, or shown as lost: nothing goes without a word.
    dead = {row["path"] for row in await live.pending() if row["dead"]}
    assert "notes/1" in dead
    assert await live.in_firestore("notes/2") == {"by": "second"} or "notes/2" in dead


STEPS = ["write.opened", "recopy.claimed"]
if ALL:
    STEPS += ["write.committed", "write.put", "recopy.revoked", "recopy.read", "recopy.put"]


async def test_a_sidecar_that_is_stopped_at_any_step_of_a_flip_does_no_harm(
    fault_server, fault_directory
):
    """H25 to H27: it wakes up when PostgreSQL is the authority, in the middle of a step."""
    async with world(fault_server, fault_directory, sidecars=2) as around:
        first, flips = around.sidecars[0], 0
        async with Workload(around, seed=2, clients=4) as load:
            for step in STEPS * 3:
                if flips and step == STEPS[0]:
                    break  # every step has had its turn
                await first.restart(f"{step}:stop:2")
                await first.process.stands_still()
                # Where it holds the control row, by what another caller does, the flip fails.
                with suppress(grpc.aio.AioRpcError):
                    await around.stage("live", by=1)
                    flips += 1
                await asyncio.sleep(0.2)
                first.process.go_on()
                await asyncio.sleep(0.4)
                await load.judged()
                await around.stage("shadow", by=1)
                load.resume()
            await load.judged()
        assert flips


async def test_a_barrier_is_no_outage(fault_server, fault_directory):
    """H27: it lasts longer than a statement may; the writes wait, and go past it nowhere."""
    async with world(fault_server, fault_directory, FAULT_LEASE="5") as around:
        first, second = around.sidecars
        await first.restart("write.opened:kill:1")
        with pytest.raises(CrossfadeError):
            await first.client.set("notes/1", N1, request_id=None)
        flip = asyncio.create_task(around.stage("live", by=1, timeout=20))
        await asyncio.sleep(0.5)
        await second.client.set("notes/2", N2, timeout=20)
        await flip
        assert await around.in_postgres("notes/2") == N2
        control = await around.in_firestore("_crossfade_control/default")
        assert control is not None
        assert control["gate"] == 0
        await around.equal()


# --- outages -----------------------------------------------------------------------------------


async def test_no_sidecar_answers_from_a_mirror_that_another_went_around(two):
    """H13: the first is cut off from PostgreSQL and writes; the second answers from there."""
    first, second = two.sidecars
    await first.client.set("notes/1", N1)
    await two.settled()
    assert (await second.client.get("notes/1")).fields == N1
    first.postgres.down()
    await first.client.set("notes/1", N2, timeout=5)
    assert (await second.client.get("notes/1")).fields == N2
    await first.postgres.heal()
    await two.equal()


async def test_a_sidecar_that_is_cut_off_writes_while_another_reaches_the_mirror(two):
    """A5a: the other opens the gate again as soon as it may; the outage is nobody's but that
    of the first, and its callers see one wait and no error."""
    first, second = two.sidecars
    await first.client.set("notes/1", N1)
    first.postgres.down()
    waits = []
    for number in range(30):
        began = time.monotonic()
        await first.client.set("notes/1", {"n": number}, timeout=8, request_id=None)
        waits.append(time.monotonic() - began)
        assert (await second.client.get("notes/1")).fields == {"n": number}
        await asyncio.sleep(0.1)
    assert statistics.median(waits) < 0.4  # less than a lease: only the first waits for one
    await first.postgres.heal()
    await two.equal()


async def test_a_mirror_that_becomes_slow_is_gone_around_until_it_is_quick_again(two):
    """Its way to PostgreSQL is slow, for one sidecar. Nobody reads what is old, and everybody
    writes as before, once it was noticed."""
    first, second = two.sidecars
    first.firestore.latency = 0.005

    async def writes(times: int) -> float:
        """The median of their seconds, each read back at the other sidecar."""
        took = []
        for number in range(times):
            began = time.monotonic()
            await first.client.set("notes/1", {"n": number}, timeout=8, request_id=None)
            took.append(time.monotonic() - began)
            assert (await second.client.get("notes/1")).fields == {"n": number}
        return statistics.median(took)

    async def gate_is(closed: int) -> bool:
        control = await two.in_firestore("_crossfade_control/default")
        assert control is not None
        return control["gate"] % 2 == closed

    def times_noticed() -> int:
        return first.process.log.read_text(errors="replace").count("PostgreSQL is slow")

    async def noticed() -> bool:
        """The gate is closed for this reason, not because one answer took so long that
        PostgreSQL counted as away for a moment."""
        return times_noticed() > before and await gate_is(1)

    usual = await writes(40)
    before = times_noticed()
    first.postgres.latency = 0.06
    await eventually(lambda: _after(writes(5), noticed()), 30, "the gate is closed")
    await asyncio.sleep(1)  # the leases are over
    around = await writes(20)
    assert around < usual + 0.06  # of 120 ms that rows take more
    first.postgres.latency = 0.0
    await eventually(lambda: _after(writes(1), gate_is(0)), 40, "the gate is open")
    await two.equal()


async def test_required_reports_success_though_the_mirror_went_away_after_the_commit(
    fault_server, fault_directory
):
    """H32: once Firestore has it, it is no error any more."""
    async with world(
        fault_server, fault_directory, rpc=True, CROSSFADE_MIGRATION__MIRROR="required"
    ) as around:
        first, _ = around.sidecars
        held = first.methods.hold("Commit", of("notes/1"))
        call = asyncio.create_task(first.client.set("notes/1", N1, timeout=20))
        await arrived(held)
        first.postgres.down()
        held.release()
        await call
        await first.postgres.heal()
        await around.equal()


@pytest.fixture(scope="module")
async def loaded(fault_server, fault_directory) -> AsyncIterator[tuple[World, Workload]]:
    """One world for all outages: each is judged before the next."""
    async with (
        world(fault_server, fault_directory, sidecars=2) as around,
        Workload(around, seed=4, clients=5) as load,
    ):
        yield around, load


async def _postgres_is_cut(around: World) -> None:
    around.sidecars[0].postgres.down()


async def _postgres_is_a_black_hole(around: World) -> None:
    around.sidecars[0].postgres.black_hole()


async def _postgres_is_half_open(around: World) -> None:
    around.sidecars[0].postgres.half_open()


async def _firestore_is_cut(around: World) -> None:
    around.sidecars[0].firestore.cut()


async def _firestore_is_a_black_hole(around: World) -> None:
    around.sidecars[0].firestore.black_hole()


async def _firestore_is_half_open(around: World) -> None:
    around.sidecars[0].firestore.half_open()


async def _everything_is_slow(around: World) -> None:
    for sidecar in around.sidecars:
        sidecar.postgres.latency, sidecar.firestore.bandwidth = 0.03, 200_000


async def _postgresql_is_killed(around: World) -> None:
    await around.server.postgres.kill()
    await asyncio.sleep(1)
    await around.server.postgres.start()


async def _firestore_is_killed(around: World) -> None:
    await around.server.firestore.kill()
    await asyncio.sleep(0.5)
    await around.server.firestore.start()


async def _both_are_killed(around: World) -> None:
    await around.server.firestore.kill()
    await around.server.postgres.kill()
    await around.server.postgres.start()
    await around.server.firestore.start()


async def _a_sidecar_is_asked_to_stop(around: World) -> None:
    assert await around.sidecars[0].process.terminate() == 0
    await around.sidecars[0].restart()


async def _a_sidecar_stands_still(around: World) -> None:
    around.sidecars[0].process.stop()
    await asyncio.sleep(1.5)
    around.sidecars[0].process.go_on()


OUTAGES = [
    _postgres_is_cut,
    _firestore_is_cut,
    _postgres_is_a_black_hole,
    _firestore_is_a_black_hole,
    _postgres_is_half_open,
    _firestore_is_half_open,
    _postgresql_is_killed,
    _firestore_is_killed,
    _a_sidecar_is_asked_to_stop,
    _both_are_killed,
    _everything_is_slow,
    _a_sidecar_stands_still,
]


WHERE = [
    pytest.param(outage, stage, id=f"{outage.__name__.strip('_')}-{stage}")
    for turn, stage in enumerate(("shadow", "live"))
    for number, outage in enumerate(OUTAGES)
    if ALL or number % 2 == turn
]


@pytest.mark.parametrize(("outage", "stage"), WHERE)
async def test_an_outage_under_load_loses_doubles_and_hides_nothing(loaded, outage, stage):
    around, load = loaded
    if (await _stage(around)) != stage:
        await around.stage(stage)
    load.resume()
    await outage(around)
    await asyncio.sleep(0.7)
    for sidecar in around.sidecars:
        await sidecar.postgres.heal()
        await sidecar.firestore.heal()
    await asyncio.sleep(0.3)
    before = load.done.total()
    await load.judged()
    assert before


@settings(
    max_examples=40 if ALL else 2,
    derandomize=not ALL,
    deadline=None,
    print_blob=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(schedule=schedules(sidecars=2))
@pytest.mark.timeout(900)
async def test_no_schedule_of_faults_loses_doubles_or_hides_anything(loaded, schedule):
    """Hypothesis draws them: outages of one sidecar over those of another, kills and pauses
    in the middle of a change of authority, what was held arriving after it."""
    around, load = loaded
    await load.pause()
    if (await _stage(around)) != "shadow":
        await around.stage("shadow")
    load.resume(schedule.seed)
    await happen(around, schedule)
    await load.judged()


# --- changes of authority ----------------------------------------------------------------------


async def test_flips_there_and_back_with_a_clock_that_jumps(fault_server, fault_directory):
    """H10: versions are compared by epoch first, whatever PostgreSQL's clock says."""
    async with (
        world(fault_server, fault_directory, sidecars=2, skewed=True) as around,
        Workload(around, seed=5, clients=5) as load,
    ):
        for turn, seconds in enumerate((10, -10)):
            await skew(around, seconds)
            await around.stage("live", by=turn)
            await asyncio.sleep(0.5)
            await skew(around, 0)
            await asyncio.sleep(0.3)
            # Set back, the clock lets leases of pending rows run longer by as much.
            await around.stage("shadow", by=turn, timeout=30)
            await asyncio.sleep(0.3)
            await load.judged()
            load.resume()


async def test_a_request_is_done_once_across_sidecars_crashes_and_flips(two):
    """H30: the answer is lost with its sidecar; another is asked, then asked again after a
    change of authority, and after the way back."""
    first, second = two.sidecars
    await first.restart("write.committed:kill:1")
    increment = [ClientWrite.merge("notes/1", {"total": Increment(1)})]
    with pytest.raises(CrossfadeError):
        await first.client.commit(increment, request_id="once", timeout=5)
    await first.process.gone()
    assert (await second.client.commit(increment, request_id="once")).replayed
    await two.settled()
    for stage in ("live", "shadow"):
        await two.stage(stage, by=1)
        assert (await second.client.commit(increment, request_id="once")).replayed
    await two.equal()
    assert await two.in_firestore("notes/1") == {"total": 1}


async def _after(first: Awaitable[Any], then: Awaitable[bool]) -> bool:
    await first
    return await then


async def _nothing_pends(around: World) -> bool:
    return not await around.pending()


# --- helpers -----------------------------------------------------------------------------------


def _microseconds(moment: datetime) -> int:
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


async def _tombstones(around: World) -> int:
    return int(
        await around.sql.fetchval(
            "select count(*) from crossfade.versions where path = 'notes/1' and not live"
        )
    )


async def _no_tombstones(around: World) -> bool:
    return await _tombstones(around) == 0


async def _in_postgres(around: World, path: str, fields: dict[str, int]) -> bool:
    return await around.in_postgres(path) == fields


async def _stage(around: World) -> str:
    status = await around.sidecars[0].admin.GetStatus(admin_pb2.GetStatusRequest())
    return str(status.stage)
