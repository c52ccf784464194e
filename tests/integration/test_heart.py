"""The heart over real stores: what is answered by whom, and what happens when a store fails."""

import asyncio
from typing import Any

import grpc
import pytest

from crossfade import pending
from crossfade.errors import Unavailable
from crossfade.plan import Stage
from crossfade.stores.firestore import FirestoreStore
from crossfade.telemetry import FALLBACK_READS, READS, RETURNED_READS, VERDICTS
from crossfade.write import Write
from crossfade_api.v1 import admin_pb2
from crossfade_client import (
    Increment,
    NotFoundError,
    OutcomeUnknownError,
    Query,
    UnavailableError,
)
from crossfade_client import (
    Write as ClientWrite,
)
from tests.sidecar import Running, eventually, running
from tests.waiting import Waiting

# A mapped collection and one in the generic table.
PATHS = ("tasks/1", "notes/1")


@pytest.fixture
async def url(postgres_database) -> str:
    return await postgres_database()


@pytest.fixture
async def shadowing(url):
    """Stage shadow, copied, PostgreSQL answering everything it can show to be fresh."""
    async with running(url, Stage.SHADOW, read_percent=100) as stack:
        await stack.copy()
        yield stack


async def mark_pending(stack: Running, path: str) -> None:
    """A pending row as another sidecar would hold it."""
    collection = path.rpartition("/")[0]
    await stack.sql.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        values ('elsewhere', $1, $2, $3, 1, now() + interval '1 hour', 'commit')""",
        path,
        collection,
        collection.rpartition("/")[2],
    )


async def unmark(stack: Running) -> None:
    await stack.sql.execute("delete from crossfade.pending where intent = 'elsewhere'")


async def in_postgres(stack: Running, path: str) -> Any:
    from crossfade import wire
    from crossfade.plan import StoreName
    from tests.sidecar import DATABASE

    reading = await stack.sidecar.stores[StoreName.POSTGRESQL].get([path], timeout=5)
    data = reading.documents[0].data
    return None if data is None else wire.parse_document(data, DATABASE)


def answers(stack: Running) -> tuple[int, int]:
    return stack.count(READS, "firestore"), stack.count(READS, "postgresql")


# --- who answers -------------------------------------------------------------------------------


async def test_off_writes_firestore_alone(url):
    async with running(url, Stage.OFF) as stack:
        await stack.client.set("tasks/1", {"status": "pending"})
        assert stack.memory.read("tasks/1").fields == {"status": "pending"}
        assert await in_postgres(stack, "tasks/1") is None
        assert (await stack.client.get("tasks/1")).fields == {"status": "pending"}
        assert answers(stack) == (1, 0)


@pytest.mark.parametrize("path", PATHS)
async def test_the_mirror_answers_what_is_settled(shadowing, path):
    await shadowing.client.set(path, {"status": "pending", "n": 1})
    await shadowing.settled()
    found = await shadowing.client.get(path)
    assert found.fields == {"status": "pending", "n": 1}
    assert answers(shadowing) == (0, 1)
    stored = shadowing.memory.read(path)
    assert found.update_time.timestamp() == pytest.approx(stored.update_time / 1e6, abs=1e-6)


@pytest.mark.parametrize("path", PATHS)
async def test_a_pending_document_is_answered_by_the_authority(shadowing, path):
    await shadowing.client.set(path, {"n": 1})
    await shadowing.settled()
    await mark_pending(shadowing, path)
    # Firestore moves on, as a commit of another sidecar would, whose put is still to come.
    await shadowing.direct.commit([Write(path, {"n": 2})], timeout=5)
    assert (await shadowing.client.get(path)).fields == {"n": 2}
    assert shadowing.count(RETURNED_READS, "pending") == 1


async def test_a_missing_document_that_is_pending_is_not_answered_by_the_mirror(shadowing):
    await mark_pending(shadowing, "tasks/new")
    await shadowing.direct.commit([Write("tasks/new", {"n": 1})], timeout=5)
    assert (await shadowing.client.get("tasks/new")).fields == {"n": 1}


async def test_one_pending_document_sends_the_whole_batch_to_the_authority(shadowing):
    await shadowing.client.commit(
        [ClientWrite.set("tasks/a", {"n": 0}), ClientWrite.set("tasks/b", {"n": 0})]
    )
    await shadowing.settled()
    await mark_pending(shadowing, "tasks/b")
    await shadowing.direct.commit(
        [Write("tasks/a", {"n": 1}), Write("tasks/b", {"n": 1})], timeout=5
    )
    found = await shadowing.client.get_all(["tasks/a", "tasks/b"])
    assert [snapshot.fields["n"] for snapshot in found] == [1, 1]


async def test_both_clients_count_sum_and_average(shadowing):
    writes = [ClientWrite.set(f"tasks/{i}", {"n": i, "status": "done"}) for i in range(4)]
    await shadowing.client.commit(writes)
    await shadowing.settled()
    done = Query("tasks").where("status", "==", "done")
    for client in (shadowing.client, Waiting(shadowing.sidecar.address, timeout=10.0)):
        assert await client.count(done) == 4
        assert await client.sum(done, "n") == 6
        assert await client.average(done, "n") == 1.5
    await client.close()


@pytest.mark.parametrize("collection", ["tasks", "notes"])
async def test_a_query_goes_to_the_authority_while_its_collection_is_pending(shadowing, collection):
    await shadowing.client.set(f"{collection}/1", {"status": "a"})
    await shadowing.settled()
    query = Query(collection).where("status", "==", "a")
    assert [s.id async for s in shadowing.client.query(query)] == ["1"]
    assert answers(shadowing) == (0, 1)
    await mark_pending(shadowing, f"{collection}/2")
    await shadowing.direct.commit([Write(f"{collection}/2", {"status": "a"})], timeout=5)
    assert [s.id async for s in shadowing.client.query(query)] == ["1", "2"]
    assert answers(shadowing) == (1, 1)


async def test_nothing_is_answered_by_the_mirror_before_the_copy_has_ended(url):
    async with running(url, Stage.SHADOW, read_percent=100) as stack:
        await stack.direct.commit([Write("tasks/old", {"n": 1})], timeout=5)
        assert (await stack.client.get("tasks/old")).fields == {"n": 1}
        assert answers(stack) == (1, 0)
        done = await stack.copy()
        assert (done.copied, done.done) == (1, True)
        assert (await stack.client.get("tasks/old")).fields == {"n": 1}
        assert answers(stack) == (1, 1)


# --- fallback ----------------------------------------------------------------------------------


async def test_postgresql_stands_in_for_firestore_only_where_it_is_fresh(shadowing):
    await shadowing.client.set("tasks/1", {"n": 1})
    await shadowing.client.set("tasks/2", {"n": 1})
    await shadowing.settled()
    await shadowing.percent(0)
    await mark_pending(shadowing, "tasks/2")
    await shadowing.firestore_server.stop(0)
    found = await shadowing.client.get("tasks/1", timeout=3)
    assert found.fields == {"n": 1}
    assert shadowing.count(FALLBACK_READS, "postgresql") == 1
    with pytest.raises(UnavailableError):
        await shadowing.client.get("tasks/2", timeout=1)
    await unmark(shadowing)


async def test_not_found_is_an_answer_and_no_reason_to_ask_the_other_store(shadowing):
    await shadowing.client.set("tasks/1", {"n": 1})
    await shadowing.settled()
    await shadowing.percent(0)
    # Deleted in Firestore; PostgreSQL still has it, and says that it is pending.
    await mark_pending(shadowing, "tasks/1")
    await shadowing.direct.commit([Write("tasks/1", None)], timeout=5)
    with pytest.raises(NotFoundError):
        await shadowing.client.get("tasks/1")
    await shadowing.percent(100)
    with pytest.raises(NotFoundError):
        await shadowing.client.get("tasks/1")
    await unmark(shadowing)


# --- writes ------------------------------------------------------------------------------------


async def test_partial_writes_of_many_callers_leave_both_stores_equal(shadowing):
    async def caller(number: int) -> None:
        for step in range(10):
            await shadowing.client.merge("tasks/1", {f"field{number}": step, "total": Increment(1)})

    await asyncio.gather(*map(caller, range(6)))
    await shadowing.settled()
    ours, theirs = await in_postgres(shadowing, "tasks/1"), shadowing.memory.read("tasks/1")
    assert ours.fields == theirs.fields
    assert ours.fields["total"] == 60
    assert ours.update_time == theirs.update_time


async def test_sets_and_deletes_of_many_callers_leave_both_stores_equal(shadowing):
    async def caller(number: int) -> None:
        for step in range(15):
            path = f"tasks/{step % 3}"
            if (step + number) % 4 == 0:
                await shadowing.client.delete(path)
            else:
                await shadowing.client.set(path, {"by": number, "step": step})

    await asyncio.gather(*map(caller, range(6)))
    await shadowing.settled()
    for path in ("tasks/0", "tasks/1", "tasks/2"):
        ours, theirs = await in_postgres(shadowing, path), shadowing.memory.read(path)
        assert (ours and ours.fields) == (theirs and theirs.fields)


async def test_a_put_that_never_came_is_made_good_by_the_worker(shadowing, monkeypatch):
    async def crash(*_args, **_kwargs):
        raise Unavailable("the sidecar died here")

    monkeypatch.setattr(pending, "LEASE_SECONDS", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(pending.Pending, "settle", crash)
        await shadowing.client.set("tasks/1", {"n": 1})
        # Acknowledged, not in the mirror, pending: so the authority answers.
        assert (await shadowing.client.get("tasks/1")).fields == {"n": 1}
        assert answers(shadowing) == (1, 0)
    await shadowing.settled()
    assert (await in_postgres(shadowing, "tasks/1")).fields == {"n": 1}


async def test_a_refused_commit_changes_nothing_and_leaves_nothing_pending(shadowing):
    with pytest.raises(NotFoundError):
        await shadowing.client.update("tasks/none", {"n": 1}, request_id=None)
    await shadowing.settled(5.0)  # long before the lease would be over
    with pytest.raises(NotFoundError):
        await shadowing.client.update("tasks/none", {"n": 1})
    await shadowing.settled()
    assert await in_postgres(shadowing, "tasks/none") is None


async def test_a_commit_whose_answer_was_lost_is_found_out_and_done_once(shadowing, monkeypatch):
    real = FirestoreStore.commit

    async def answer_lost(self, writes, *, timeout, intent=None, transaction=None):
        await real(self, writes, timeout=timeout, intent=intent, transaction=transaction)
        raise Unavailable("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(FirestoreStore, "commit", answer_lost)
        await shadowing.client.merge("tasks/1", {"total": Increment(1)}, request_id=None)
    await shadowing.settled()
    assert shadowing.memory.read("tasks/1").fields == {"total": 1}
    assert (await in_postgres(shadowing, "tasks/1")).fields == {"total": 1}


async def test_a_commit_that_arrives_after_it_was_given_up_is_never_applied(shadowing, monkeypatch):
    real = FirestoreStore.commit
    held = []

    async def request_lost(self, writes, *, timeout, intent=None, transaction=None):
        held.append((writes, intent))
        raise Unavailable("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(FirestoreStore, "commit", request_lost)
        with pytest.raises(UnavailableError, match="not applied"):
            await shadowing.client.set("tasks/1", {"n": 1}, request_id=None)
    writes, intent = held[0]
    with pytest.raises(Exception, match="revoked"):
        await real(shadowing.direct, writes, timeout=5, intent=intent)
    assert shadowing.memory.read("tasks/1") is None


async def test_an_outcome_nobody_knows_is_said_to_be_unknown(shadowing, monkeypatch):
    async def silent(*_args, **_kwargs):
        raise Unavailable("no answer")

    monkeypatch.setattr(pending, "LEASE_SECONDS", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(FirestoreStore, "commit", silent)
        patch.setattr(FirestoreStore, "revoke", silent)
        with pytest.raises(OutcomeUnknownError):
            await shadowing.client.set("tasks/1", {"n": 1}, request_id=None)
        assert await shadowing.sql.fetchval("select count(*) from crossfade.pending") == 1
    await shadowing.settled()  # a worker revokes it and settles


async def test_a_request_of_stage_off_is_done_once_for_all(url):
    """Nothing but Firestore knew of it, until the copy took it along."""
    async with running(url, Stage.OFF) as stack:
        change = {"total": Increment(1)}
        await stack.client.merge("tasks/1", change, request_id="same")
        await stack.stage("shadow")
        await stack.copy()
        await stack.stage("live")
        again = await stack.client.merge("tasks/1", change, request_id="same")
        assert again.replayed
        assert (await stack.client.get("tasks/1")).fields == {"total": 1}


@pytest.mark.parametrize("stage", ["off", "shadow", "live"])
async def test_a_repeated_request_is_done_once(url, stage):
    async with running(url, Stage.OFF) as stack:
        if stage != "off":
            await stack.stage("shadow")
            await stack.copy()
            await stack.stage(stage)
        for _ in range(3):
            await stack.client.merge("tasks/1", {"total": Increment(1)}, request_id="same")
        again = await stack.client.merge("tasks/1", {"total": Increment(1)}, request_id="same")
        assert again.replayed
        assert (await stack.client.get("tasks/1")).fields == {"total": 1}


async def test_a_caller_that_goes_away_changes_nothing(shadowing):
    channel = grpc.aio.insecure_channel(shadowing.sidecar.address)
    commit: Any = channel.unary_unary("/crossfade.v1.Crossfade/Commit")
    from crossfade_client._requests import commit_request

    for number in range(20):
        request = commit_request([ClientWrite.set("tasks/1", {"n": number})], None)
        call = commit(request.SerializeToString(), timeout=5)
        await asyncio.sleep(0.001 * (number % 5))
        call.cancel()
    await channel.close()
    await asyncio.sleep(0.2)
    await shadowing.settled()
    ours, theirs = await in_postgres(shadowing, "tasks/1"), shadowing.memory.read("tasks/1")
    assert (ours and ours.fields) == (theirs and theirs.fields)


@pytest.mark.parametrize("mode", ["wait", "required"])
async def test_waiting_for_the_mirror_means_that_it_has_it(url, mode):
    async with running(url, Stage.SHADOW, mirror=mode) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        assert (await in_postgres(stack, "tasks/1")).fields == {"n": 1}


# --- shadow ------------------------------------------------------------------------------------


async def test_a_hand_edit_is_wrong_and_is_healed(shadowing):
    await shadowing.client.set("notes/1", {"n": 1})
    await shadowing.settled()
    await shadowing.sql.execute("update crossfade.documents set fields = '{\"n\": 7}'")
    await shadowing.percent(0, shadow_rate=1.0)
    await shadowing.client.get("notes/1")
    await eventually(lambda: _counted(shadowing, "wrong"))
    await shadowing.settled()
    assert (await in_postgres(shadowing, "notes/1")).fields == {"n": 1}


async def test_a_hole_in_the_pending_rows_is_stale(shadowing):
    await shadowing.client.set("tasks/1", {"n": 1})
    await shadowing.settled()
    await shadowing.direct.commit([Write("tasks/1", {"n": 2})], timeout=5)  # around the sidecar
    await asyncio.sleep(0.3)  # beyond behind_bound
    await shadowing.percent(0, shadow_rate=1.0)
    await shadowing.client.get("tasks/1")
    await eventually(lambda: _counted(shadowing, "stale"))


async def test_missing_and_extra_are_found_in_documents_and_queries(shadowing):
    await shadowing.direct.commit([Write("notes/only-there", {"n": 1})], timeout=5)
    await shadowing.client.set("notes/only-here", {"n": 1})
    await shadowing.settled()
    await shadowing.direct.commit([Write("notes/only-here", None)], timeout=5)
    await shadowing.percent(0, shadow_rate=1.0)
    await shadowing.client.find("notes/only-there")
    await eventually(lambda: _counted(shadowing, "missing"))
    await shadowing.client.find("notes/only-here")
    await eventually(lambda: _counted(shadowing, "extra"))
    await shadowing.settled()
    assert [s.id async for s in shadowing.client.query("notes")] == ["only-there"]
    await eventually(lambda: _counted(shadowing, "match"))


async def _counted(stack: Running, verdict: str) -> bool:
    return stack.count(VERDICTS, verdict) > 0


# --- changes of authority ----------------------------------------------------------------------


async def test_there_and_back_again(url):
    async with running(url, Stage.SHADOW, read_percent=100) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        await stack.copy()
        await stack.stage("live")
        await stack.client.set("tasks/1", {"n": 2})
        await stack.client.merge("notes/1", {"total": Increment(1)})
        await stack.client.set("tasks/gone", {"n": 1})
        await stack.client.delete("tasks/gone")
        assert (await stack.client.get("tasks/1")).fields == {"n": 2}
        await stack.settled()
        assert stack.memory.read("tasks/1").fields == {"n": 2}
        assert stack.memory.read("notes/1").fields == {"total": 1}
        assert stack.memory.read("tasks/gone") is None
        await stack.stage("shadow")
        assert (await stack.client.get("tasks/1")).fields == {"n": 2}
        await stack.client.set("tasks/1", {"n": 3})
        await stack.settled()
        assert (await in_postgres(stack, "tasks/1")).fields == {"n": 3}
        await stack.stage("live")
        await stack.stage("ramp_down")
        await stack.stage("complete")
        await stack.client.set("tasks/1", {"n": 4})
        assert (await stack.client.get("tasks/1")).fields == {"n": 4}
        assert stack.memory.read("tasks/1").fields == {"n": 3}


async def test_no_write_fails_or_is_lost_while_the_authority_changes(url):
    async with running(url, Stage.SHADOW, read_percent=50) as stack:
        await stack.copy()
        done: dict[str, int] = {}
        stop = False

        async def writer(number: int) -> None:
            while not stop:
                await stack.client.merge(f"tasks/{number}", {"total": Increment(1)})
                done[f"tasks/{number}"] = done.get(f"tasks/{number}", 0) + 1

        writers = [asyncio.create_task(writer(n)) for n in range(5)]
        for stage in ("live", "shadow", "live", "ramp_down", "dual_write"):
            await asyncio.sleep(0.2)
            await stack.stage(stage)
        stop = True
        await asyncio.gather(*writers)
        await stack.settled()
        for path, total in done.items():
            assert (await stack.client.get(path)).fields == {"total": total}
            assert (await in_postgres(stack, path)).fields == {"total": total}
            assert stack.memory.read(path).fields == {"total": total}


async def test_a_writer_around_the_sidecar_is_never_overwritten(url):
    async with running(url, Stage.SHADOW) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        await stack.copy()
        await stack.stage("live")
        await stack.direct.commit([Write("tasks/1", {"n": "foreign"})], timeout=5)
        await stack.client.set("tasks/1", {"n": 2})

        async def buried() -> bool:
            status = await stack.admin.GetStatus(admin_pb2.GetStatusRequest())
            return bool(status.dead_letters == 1)

        await eventually(buried)
        assert stack.memory.read("tasks/1").fields == {"n": "foreign"}
        assert (await stack.client.get("tasks/1")).fields == {"n": 2}


async def test_firestore_as_mirror_answers_its_share_with_the_authoritys_version(url):
    async with running(url, Stage.SHADOW) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        await stack.copy()
        await stack.stage("live")
        await stack.client.set("tasks/1", {"n": 2})
        await stack.settled()
        before = (await stack.client.get("tasks/1")).update_time
        await stack.percent(0)
        found = await stack.client.get("tasks/1")
        assert (found.fields, found.update_time) == ({"n": 2}, before)
        assert stack.count(READS, "firestore") == 1
        await stack.direct.commit([Write("tasks/1", {"n": "foreign"})], timeout=5)
        assert (await stack.client.get("tasks/1")).fields == {"n": 2}


async def test_deletes_during_off_do_not_come_back(url):
    async with running(url, Stage.SHADOW, read_percent=100) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        await stack.copy()
        await stack.settled()
        await stack.stage("off")
        await stack.client.delete("tasks/1")
        await stack.stage("shadow")
        with pytest.raises(NotFoundError):
            await stack.client.get("tasks/1")
        await stack.copy()
        await stack.settled()
        with pytest.raises(NotFoundError):
            await stack.client.get("tasks/1")
        assert await in_postgres(stack, "tasks/1") is None


@pytest.mark.parametrize(
    ("start", "target", "reason"),
    [
        (Stage.SHADOW, "live", "first copy has not ended"),
        (Stage.OFF, "nowhere", "is none of"),
    ],
)
async def test_a_change_that_would_lose_data_is_refused(url, start, target, reason):
    async with running(url, start) as stack:
        with pytest.raises(grpc.aio.AioRpcError, match=reason):
            await stack.stage(target)


async def test_complete_is_the_end_of_the_way_back(url):
    async with running(url, Stage.SHADOW) as stack:
        await stack.copy()
        await stack.stage("complete")
        with pytest.raises(grpc.aio.AioRpcError, match="no way back"):
            await stack.stage("shadow")


async def test_a_drained_commit_outlives_the_stop(url, monkeypatch):
    real = pending.Pending.settle

    async def slow(self, *args, **kwargs):
        await asyncio.sleep(0.3)
        await real(self, *args, **kwargs)

    monkeypatch.setattr(pending.Pending, "settle", slow)
    async with running(url, Stage.SHADOW) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        sql = stack.sql
        await stack.sidecar.stop(2.0)
        assert await sql.fetchval("select count(*) from crossfade.pending where path <> ''") == 0


async def test_a_dead_letter_holds_a_change_of_authority_and_says_so(url):
    async with running(url, Stage.SHADOW) as stack:
        await stack.copy()
        await mark_pending(stack, "tasks/1")
        await stack.sql.execute("update crossfade.pending set dead = true")
        with pytest.raises(grpc.aio.AioRpcError, match="1 document is a dead letter"):
            await stack.stage("live")
        await stack.client.set("tasks/2", {"n": 1})  # the former stage stands, and is open
        await unmark(stack)
        await stack.stage("live")
