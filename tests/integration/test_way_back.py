"""The way back with several workers, some of which die or stall at the worst moment.

The sidecar's own worker is stopped; the workers of these tests have nothing in common but
the two stores, as if each were in a sidecar of its own.
"""

import asyncio
from contextlib import suppress

import pytest

from crossfade.document import Fields, to_micros
from crossfade.errors import Unavailable
from crossfade.mapping import to_json
from crossfade.pending import Pending, intent_of
from crossfade.plan import Stage
from crossfade.recopy import Recopy
from crossfade.store import Intent, WriteOutcome
from crossfade.stores.firestore import FirestoreStore, IntentExists, connect
from crossfade.stores.postgres.way_back import WayBack, fingerprint
from crossfade.write import Write
from crossfade_client import Increment
from crossfade_client import Write as ClientWrite
from tests.sidecar import DATABASE, Running, running

PATH = "tasks/1"


class Died(BaseException):
    """What a kill looks like from within: nothing is given back, nothing tidied up."""


class Worker(Recopy):
    """Settles batches when it is told to."""

    def __init__(self, stack: Running, firestore: FirestoreStore, batch: int) -> None:
        mirror = stack.sidecar.members["default"].forward._pending.mirror
        pending = Pending(mirror, firestore, DATABASE, timeout=5.0)
        super().__init__(
            stack.sidecar.control,
            pending,
            firestore,
            stack.telemetry,
            DATABASE,
            batch=batch,
            attempts=3,
        )
        self.firestore = firestore
        self.way_back = WayBack(mirror._lanes, mirror._tables, "default")
        self._reverse._way_back = self.way_back

    async def until_idle(self) -> None:
        for _ in range(20):
            if not await self.step():
                return
        pytest.fail("there is always more to settle")


class Workers:
    def __init__(self, stack: Running) -> None:
        self.stack = stack
        self._made: list[Worker] = []

    async def another(self, batch: int = 100) -> Worker:
        firestore = connect(DATABASE, self.stack.firestore_server.address)
        self._made.append(Worker(self.stack, firestore, batch))
        return self._made[-1]

    async def leases_end(self) -> None:
        await self.stack.sql.execute(
            "update crossfade.pending set lease_until = clock_timestamp() where not dead"
        )

    async def rows(self) -> list[tuple[str, bool]]:
        rows = await self.stack.sql.fetch("select path, dead from crossfade.pending order by id")
        return [tuple(row) for row in rows]

    async def attempts(self) -> int:
        return await self.stack.sql.fetchval("select count(*) from crossfade.attempts")

    async def peer_time(self, path: str = PATH) -> int:
        return await self.stack.sql.fetchval(
            "select peer_time from crossfade.versions where path = $1", path
        )

    def held(self, path: str = PATH):
        document = self.stack.memory.read(path)
        return None if document is None else document.fields

    async def agree(self, path: str, fields: dict[str, int] | None) -> None:
        """Both stores hold the fields, know it, and nothing is left of how they came to."""
        assert self.held(path) == fields
        document = self.stack.memory.read(path)
        assert await self.peer_time(path) == (0 if document is None else document.update_time)
        assert await self.rows() == []
        assert await self.attempts() == 0

    async def close(self) -> None:
        for worker in self._made:
            await worker.firestore.close()


@pytest.fixture
async def workers(postgres_database):
    async with running(await postgres_database(), Stage.SHADOW) as stack:
        await stack.copy()
        await stack.stage("live")
        (own,) = [task for task in stack.sidecar._tasks if task.get_name() == "recopy"]
        own.cancel()
        with suppress(asyncio.CancelledError):
            await own
        made = Workers(stack)
        yield made
        await made.close()


class Held:
    """A call that waits before it is made, or after."""

    def __init__(self, owner: object, name: str, *, after: bool = False) -> None:
        self._real = getattr(owner, name)
        self._after = after
        self._reached, self._open = asyncio.Event(), asyncio.Event()
        setattr(owner, name, self._call)

    async def _call(self, *args, **options):
        result = await self._real(*args, **options) if self._after else None
        self._reached.set()
        await self._open.wait()
        return result if self._after else await self._real(*args, **options)

    async def reached(self) -> None:
        await asyncio.wait_for(self._reached.wait(), 5)

    def go_on(self) -> None:
        self._open.set()


async def dies(worker: Worker) -> None:
    with pytest.raises(Died):
        await worker.step()


def kill_after(owner: object, name: str) -> None:
    real = getattr(owner, name)

    async def call(*args, **options):
        await real(*args, **options)
        raise Died

    setattr(owner, name, call)


# --- a worker that dies ------------------------------------------------------------------------


@pytest.mark.parametrize("then", [{"n": 2}, None])
async def test_what_a_dead_worker_sent_is_no_foreign_writers(workers, then):
    """R2: applied, not remembered, and the row has moved on before another worker comes."""
    one, two = await workers.another(), await workers.another()
    kill_after(one.firestore, "commit")
    await workers.stack.client.set(PATH, {"n": 1})
    await dies(one)
    assert workers.held() == {"n": 1}
    if then is None:
        await workers.stack.client.delete(PATH)
    else:
        await workers.stack.client.set(PATH, then)
    await workers.leases_end()
    await two.until_idle()
    await workers.agree(PATH, then)


async def test_what_a_dead_worker_deleted_is_no_foreign_writers(workers):
    one, two = await workers.another(), await workers.another()
    await workers.stack.client.set(PATH, {"n": 1})
    await two.until_idle()
    kill_after(one.firestore, "commit")
    await workers.stack.client.delete(PATH)
    await dies(one)
    assert workers.held() is None
    await workers.stack.client.set(PATH, {"n": 2})
    await workers.leases_end()
    await two.until_idle()
    await workers.agree(PATH, {"n": 2})


async def test_a_dead_workers_commit_that_arrives_late_brings_nothing_back(workers):
    """R3: a create, its worker dead, the delete; no precondition fences what is absent."""
    one, two = await workers.another(), await workers.another()
    real, sent = one.firestore.commit, []

    async def lost(writes, *, timeout, intent=None):
        sent.append((writes, intent))
        raise Died

    one.firestore.commit = lost
    await workers.stack.client.set(PATH, {"n": 1})
    await dies(one)
    await workers.stack.client.delete(PATH)
    await workers.leases_end()
    await two.until_idle()
    writes, intent = sent[0]
    with pytest.raises(IntentExists, match="revoked"):
        await real(writes, timeout=5, intent=intent)
    await workers.agree(PATH, None)


async def test_a_foreign_document_is_found_after_a_take_over_too(workers):
    one, two = await workers.another(), await workers.another()
    kill_after(one.way_back, "prepare")
    await workers.stack.client.set(PATH, {"n": 1})
    await dies(one)
    await workers.stack.direct.commit([Write(PATH, {"by": "somebody"})], timeout=5)
    await workers.leases_end()
    await two.until_idle()
    assert workers.held() == {"by": "somebody"}
    assert await workers.rows() == [(PATH, True)]


# --- a worker that stalls, and goes on when others have done its work --------------------------


async def test_a_worker_that_stalls_before_it_reads_sends_nothing(workers):
    one, two = await workers.another(), await workers.another()
    held = Held(one.way_back, "prepare")
    await workers.stack.client.set(PATH, {"n": 1})
    stalled = asyncio.create_task(one.step())
    await held.reached()
    await workers.stack.client.set(PATH, {"n": 2})
    await workers.leases_end()
    await two.until_idle()
    sent = []
    one.firestore.commit = lambda *args, **_: sent.append(args)
    held.go_on()
    await stalled
    assert sent == []
    await workers.agree(PATH, {"n": 2})


@pytest.mark.parametrize("exists", [False, True])
async def test_a_worker_that_stalls_before_it_sends_is_refused(workers, exists):
    """G1: its commit would land on top of the newer one."""
    one, two = await workers.another(), await workers.another()
    if exists:
        await workers.stack.client.set(PATH, {"n": 0})
        await two.until_idle()
    held = Held(one.firestore, "commit")
    await workers.stack.client.set(PATH, {"n": 1})
    stalled = asyncio.create_task(one.step())
    await held.reached()
    await workers.stack.client.set(PATH, {"n": 2})
    await workers.leases_end()
    await two.until_idle()
    held.go_on()
    await stalled
    await two.until_idle()
    await workers.agree(PATH, {"n": 2})


async def test_a_worker_that_stalls_before_it_remembers_changes_nothing(workers):
    one, two = await workers.another(), await workers.another()
    held = Held(one.firestore, "commit", after=True)
    await workers.stack.client.set(PATH, {"n": 1})
    stalled = asyncio.create_task(one.step())
    await held.reached()
    await workers.stack.client.set(PATH, {"n": 2})
    await workers.leases_end()
    await two.until_idle()
    held.go_on()
    await stalled
    await workers.agree(PATH, {"n": 2})


async def test_a_worker_that_lost_its_claim_raises_no_alarm(workers):
    """It looks into Firestore, stalls, and what it saw was the other worker's."""
    one, two = await workers.another(), await workers.another()
    await workers.stack.client.set(PATH, {"n": 0})
    await two.until_idle()
    await workers.stack.direct.commit([Write(PATH, {"by": "somebody"})], timeout=5)
    held = Held(one.firestore, "get", after=True)
    await workers.stack.client.set(PATH, {"n": 1})
    stalled = asyncio.create_task(one.step())
    await held.reached()
    # Whoever it was puts things right, and another worker has the row now.
    await workers.stack.direct.commit([Write(PATH, {"n": 1})], timeout=5)
    await workers.leases_end()
    other = Held(two.firestore, "commit")
    working = asyncio.create_task(two.step())
    await other.reached()
    held.go_on()
    await stalled
    assert await workers.rows() == [(PATH, False)]
    other.go_on()
    await working
    await workers.agree(PATH, {"n": 1})


async def test_nothing_is_sent_that_was_not_written_down_before(workers):
    one = await workers.another()
    real, seen = one.firestore.commit, []

    async def commit(writes, *, timeout, intent=None):
        row = await workers.stack.sql.fetchrow(
            "select path, fingerprint from crossfade.attempts where intent = $1", intent.id
        )
        seen.append(tuple(row))
        return await real(writes, timeout=timeout, intent=intent)

    one.firestore.commit = commit
    await workers.stack.client.set(PATH, {"n": 1})
    await one.until_idle()
    assert seen == [(PATH, fingerprint({"n": 1}))]
    await workers.agree(PATH, {"n": 1})


# --- requests ----------------------------------------------------------------------------------


async def proof(workers: Workers, request_id: str, writes: list[Write]) -> IntentExists:
    """What Firestore alone knows of a request that is repeated."""
    intent = Intent(intent_of(request_id, 0), 99, mirrored=True)
    with pytest.raises(IntentExists) as caught:
        await workers.stack.direct.commit(writes, timeout=5, intent=intent)
    return caught.value


@pytest.mark.parametrize("batch", [1, 100])
async def test_a_request_is_known_to_firestore_before_its_rows_go(workers, batch):
    """M1: after a rollback with PostgreSQL away nobody else could tell it from a new one."""
    worker = await workers.another(batch)
    await workers.stack.client.set("notes/1", {"n": 1})
    await worker.until_idle()
    writes = [ClientWrite.merge("tasks/1", {"total": Increment(1)}), ClientWrite.delete("notes/1")]
    first = await workers.stack.client.commit(writes, request_id="same")
    await worker.until_idle()
    found = await proof(workers, "same", [Write("tasks/1", {"total": 2})])
    assert (found.state, found.commit_time) == ("applied", to_micros(first.commit_time))
    outcome = await workers.stack.direct.intent_outcome(intent_of("same", 0), 2, timeout=5)
    assert outcome.writes == (WriteOutcome(found.commit_time), WriteOutcome(None))
    await workers.agree("tasks/1", {"total": 1})


async def test_a_request_stays_pending_while_firestore_does_not_know_it(workers):
    worker = await workers.another()
    await workers.stack.client.set(PATH, {"n": 1}, request_id="same")
    real, sent = worker.firestore.commit, []

    async def commit(writes, *, timeout, intent=None):
        sent.append([write.path for write in writes])
        raise Died

    worker.firestore.commit = commit
    await dies(worker)
    assert sent == [[PATH, f"_crossfade_intents/{intent_of('same', 0)}"]]
    worker.firestore.commit = real
    await workers.leases_end()
    await worker.until_idle()
    assert (await proof(workers, "same", [])).state == "applied"


async def test_a_request_that_was_revoked_and_then_done_counts_as_done(workers):
    """Its first attempt was at Firestore, before the change of authority."""
    worker = await workers.another()
    await workers.stack.direct.revoke(intent_of("same", 0), timeout=5)
    await workers.stack.client.set(PATH, {"n": 1}, request_id="same")
    await worker.until_idle()
    assert (await proof(workers, "same", [])).state == "applied"


@pytest.mark.parametrize("write", [ClientWrite.set(PATH, {"n": 1}), ClientWrite.delete("tasks/2")])
async def test_a_request_that_changed_nothing_is_known_too(workers, write):
    worker = await workers.another()
    await workers.stack.client.set(PATH, {"n": 1})
    await workers.stack.client.commit([write], request_id="same")
    await worker.until_idle()
    assert (await proof(workers, "same", [])).state == "applied"
    await workers.agree(PATH, {"n": 1})


async def test_after_a_rollback_a_request_is_done_once_though_postgresql_is_away(
    postgres_database, monkeypatch
):
    async def away(*_args, **_options):
        raise Unavailable("PostgreSQL is away")

    async with running(await postgres_database(), Stage.SHADOW) as stack:
        await stack.copy()
        await stack.stage("live")
        writes = [ClientWrite.merge(PATH, {"total": Increment(1)}), ClientWrite.set("notes/1", {})]
        first = await stack.client.commit(writes, request_id="same")
        await stack.stage("shadow")
        await stack.settled()
        mirror = stack.sidecar.members["default"].forward._pending.mirror
        for name in ("_open", "takes_rows", "put", "claim"):
            monkeypatch.setattr(mirror, name, away)
        again = await stack.client.commit(writes, request_id="same", timeout=8)
        assert again.replayed
        assert again.commit_time == first.commit_time
        assert [w.update_time for w in again.writes] == [w.update_time for w in first.writes]
        assert stack.memory.read(PATH).fields == {"total": 1}
        monkeypatch.undo()


# --- fingerprints ------------------------------------------------------------------------------


def test_fingerprints_tell_what_is_not_identical():
    documents: list[Fields | None] = [
        None,
        {},
        {"a": 1},
        {"a": 1.0},
        {"a": True},
        {"a": "1"},
        {"a": b"1"},
        {"a": 0.0},
        {"a": -0.0},
        {"a": float("nan")},
        {"a": None},
        {"a": {"b": 1}},
        {"a": [1, 2]},
        {"a": [2, 1]},
        {"a": {"$d": 1}},
    ]
    marks = [fingerprint(fields) for fields in documents]
    assert len(set(marks)) == len(documents)


@pytest.mark.parametrize("name", ["c", "$c", "c\0"])
def test_fingerprints_do_not_depend_on_the_order_of_names(name):
    one: Fields = {"a": [{"b": 1, name: 2}], name: {"x": 1, "a": 2}}
    other: Fields = {name: {"a": 2, "x": 1}, "a": [{name: 2, "b": 1}]}
    assert str(to_json(one)) != str(to_json(other))
    assert fingerprint(one) == fingerprint(other)
