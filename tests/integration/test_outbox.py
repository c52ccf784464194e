"""Commits while PostgreSQL is away: nothing is refused, forgotten, or hidden from readers."""

import asyncio
import time
from typing import Any

import asyncpg
import pytest

from crossfade.errors import Aborted, Unavailable
from crossfade.outbox import Outbox
from crossfade.pace import OPENINGS
from crossfade.plan import Stage, StoreName
from crossfade.stores.fences import ControlDocument, Entry
from crossfade.stores.firestore import FirestoreStore
from crossfade.telemetry import OUTBOX, READS, RETURNED_READS, SHADOW_DROPPED, VERDICTS
from crossfade.wire import parse_document
from crossfade_client import CrossfadeError, Increment, UnavailableError, Write
from tests.sidecar import DATABASE, Running, eventually, running


@pytest.fixture
async def first(postgres_database):
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as stack:
        await stack.copy()
        yield stack


@pytest.fixture
async def second(first):
    async with first.another(read_percent=100) as stack:
        yield stack


@pytest.fixture
def cut(monkeypatch):
    """Cuts a sidecar off from taking pending rows; the returned function mends it."""

    def cut(stack: Running):
        async def away(*_args, **_kwargs):
            raise Unavailable("PostgreSQL is away")

        mirror = stack.sidecar.members["default"].forward._pending.mirror
        patch = pytest.MonkeyPatch()
        for name in ("_open", "takes_rows", "put", "claim"):
            patch.setattr(mirror, name, away)
        return patch.undo

    return cut


def gate(stack: Running) -> int:
    return stack.sidecar.control.lease.document.gate


async def entries(stack: Running) -> list[Entry]:
    return await stack.sidecar.control.lease.fences.entries(timeout=5)


async def in_postgres(stack: Running, path: str):
    reading = await stack.sidecar.stores[StoreName.POSTGRESQL].get([path], timeout=5)
    data = reading.documents[0].data
    return None if data is None else parse_document(data, DATABASE).fields


async def test_an_outage_of_the_mirror_is_none_of_the_application(first, cut):
    mend = cut(first)
    await first.client.set("tasks/1", {"n": 1}, timeout=5)
    await first.client.merge("tasks/1", {"n": Increment(2)}, timeout=5)
    assert first.memory.read("tasks/1").fields == {"n": 3}
    assert (await first.client.get("tasks/1")).fields == {"n": 3}
    assert gate(first) == 1
    assert len(await entries(first)) == 2
    mend()
    await eventually(lambda: _open(first))
    await first.settled()
    assert await in_postgres(first, "tasks/1") == {"n": 3}
    assert not await entries(first)
    assert first.count(OUTBOX, "written") == first.count(OUTBOX, "drained") == 2


async def _open(stack: Running) -> bool:
    return (
        gate(stack) % 2 == 0 and not stack.sidecar.members["default"].forward.outbox.mirror_is_out
    )


async def test_no_other_sidecar_answers_from_a_copy_that_the_outbox_left_behind(first, second, cut):
    """The second sidecar reaches PostgreSQL, where nothing says that a commit is missing."""
    await first.client.set("tasks/1", {"n": 1})
    await first.settled()
    # The sharpest case: the second sidecar has just been told that the gate is open.
    await second.sidecar.control.lease.renew()
    mend = cut(first)
    stop, stale, acknowledged = False, [], 1

    async def reader() -> None:
        while not stop:
            known = acknowledged
            found = await second.client.get("tasks/1")
            if found.fields["n"] < known:
                stale.append((known, found.fields["n"]))

    readers = [asyncio.create_task(reader()) for _ in range(3)]
    for n in range(2, 12):
        await first.client.set("tasks/1", {"n": n}, timeout=5)
        acknowledged = n
    mend()
    await eventually(lambda: _open(first))
    for n in range(12, 20):
        await first.client.set("tasks/1", {"n": n}, timeout=5)
        acknowledged = n
    stop = True
    await asyncio.gather(*readers)
    assert stale == []
    assert second.count(READS, "postgresql") > 0
    assert second.count(RETURNED_READS, "gate") > 0
    await first.settled()
    assert await in_postgres(first, "tasks/1") == {"n": 19}


async def test_the_gate_closes_before_leases_end_and_then_once_for_all(first, cut):
    """The first commit of an outage waits for the leases, the next ones do not."""
    cut(first)
    began = time.monotonic()
    await first.client.set("tasks/1", {"n": 1}, timeout=5)
    waited = time.monotonic() - began
    assert waited > first.sidecar.control.lease.seconds
    began = time.monotonic()
    await asyncio.gather(*(first.client.set(f"tasks/{n}", {"n": n}, timeout=5) for n in range(9)))
    assert gate(first) == 1
    assert len(await entries(first)) == 10


async def test_a_gate_that_was_opened_and_closed_again_is_another(first, second, cut):
    """A commit that waited for an earlier closing is refused under the next."""
    mend = cut(first)
    await first.client.set("tasks/1", {"n": 1}, timeout=5)
    outbox = first.sidecar.members["default"].forward.outbox
    assert outbox._waited == 1
    mend()
    await eventually(lambda: _open(first))
    cut(second)
    await second.client.set("tasks/2", {"n": 1}, timeout=5)
    assert gate(second) == 3
    cut(first)
    began = time.monotonic()
    await first.client.set("tasks/3", {"n": 1}, timeout=5)
    assert time.monotonic() - began > first.sidecar.control.lease.seconds
    assert outbox._waited == 3


async def test_a_closed_gate_is_seen_again_by_the_commit_itself(first, second, cut, monkeypatch):
    """However long a sidecar relied on what it knew of the gate: its transaction looks."""
    mend = cut(first)
    await first.client.set("tasks/1", {"n": 1}, timeout=5)
    mend()
    await eventually(lambda: _open(first))
    lease = first.sidecar.control.lease
    before = ControlDocument(lease.document.epoch, open=True, gate=1, mirrored=True)

    async def frozen(*_args) -> ControlDocument:
        return before

    monkeypatch.setattr(lease, "document", before)
    monkeypatch.setattr(lease, "_until", time.monotonic() + 60)
    monkeypatch.setattr(lease, "renew", frozen)
    monkeypatch.setattr(lease, "learn", lambda *_args: None)
    cut(first)
    with pytest.raises(CrossfadeError):
        await first.client.set("tasks/1", {"n": 2}, timeout=2)
    assert first.memory.read("tasks/1").fields == {"n": 1}


async def test_a_late_outbox_commit_is_refused_once_the_gate_is_open(first, cut, monkeypatch):
    """Held on its way, while the gate opens without it: nothing would ever drain it."""
    mend = cut(first)
    await first.client.set("tasks/1", {"n": 1}, timeout=5)
    held, real = asyncio.Event(), FirestoreStore._send
    reached = asyncio.Event()

    async def late(self, writes, deadline, transaction=None):
        mine = self is first.sidecar.members["default"].forward._firestore
        if mine and transaction is not None and not reached.is_set():
            reached.set()
            await held.wait()
        return await real(self, writes, deadline, transaction)

    monkeypatch.setattr(FirestoreStore, "_send", late)
    write = asyncio.create_task(first.client.set("tasks/1", {"n": 2}, timeout=8))
    await asyncio.wait_for(reached.wait(), 5)
    mend()
    await eventually(lambda: _open(first))
    held.set()
    await write  # tried again: with pending rows, or under the next closing
    await first.settled()
    assert first.memory.read("tasks/1").fields == {"n": 2}
    assert await in_postgres(first, "tasks/1") == {"n": 2}


async def test_a_request_is_done_once_though_its_first_answer_came_through_the_outbox(
    first, second, cut
):
    mend = cut(first)
    change = {"n": Increment(1)}
    await first.client.merge("tasks/1", change, request_id="r1", timeout=5)
    await first.client.merge("tasks/1", change, request_id="r1", timeout=5)
    await second.client.merge("tasks/1", change, request_id="r1", timeout=5)
    mend()
    await eventually(lambda: _open(first))
    await first.client.merge("tasks/1", change, request_id="r1", timeout=5)
    await first.settled()
    await first.stage("live")
    await first.client.merge("tasks/1", change, request_id="r1", timeout=5)
    assert (await first.client.get("tasks/1")).fields == {"n": 1}


async def test_what_waits_in_the_outbox_brings_back_nothing_that_was_deleted_since(
    first, second, cut, monkeypatch
):
    """H4, H5: its entry is drained when the delete is settled and its tombstone is pruned."""
    real, drains = Outbox.drain, asyncio.Event()

    async def drain(self, snapshot) -> bool:
        return drains.is_set() and await real(self, snapshot)

    monkeypatch.setattr(Outbox, "drain", drain)
    cut(first)
    await first.client.set("tasks/1", {"n": 1}, timeout=5)
    await second.client.delete("tasks/1")
    await eventually(lambda: _nothing_pends(second))
    gone, _ = await second.sidecar.members["default"].mirror.pruning.tombstones(
        "", limit=9, timeout=5
    )
    assert gone == 1
    drains.set()
    await second.settled()
    assert first.memory.read("tasks/1") is None
    assert await in_postgres(second, "tasks/1") is None


async def _nothing_pends(stack: Running) -> bool:
    return not await stack.sql.fetchval("select count(*) from crossfade.pending where path <> ''")


async def test_a_change_of_authority_waits_for_the_outbox(first, second, cut, monkeypatch):
    """Sidecar one writes past PostgreSQL; sidecar two takes PostgreSQL into charge."""
    real = Outbox.drain

    async def slowly(self, snapshot) -> bool:
        await asyncio.sleep(1)
        return await real(self, snapshot)

    monkeypatch.setattr(Outbox, "drain", slowly)
    cut(first)
    await first.client.set("tasks/1", {"n": 1}, timeout=5)
    await second.stage("live")
    assert await in_postgres(second, "tasks/1") == {"n": 1}
    assert (await second.client.get("tasks/1")).fields == {"n": 1}


async def test_a_sidecar_that_missed_the_change_writes_nothing_past_it(first, second, cut):
    """Cut off from PostgreSQL, it still believes that Firestore is in charge."""
    cut(first)
    row = first.sidecar.control

    async def unread() -> None:
        raise Unavailable("PostgreSQL is away")

    patch = pytest.MonkeyPatch()
    patch.setattr(row, "refresh", unread)
    await second.stage("live")
    with pytest.raises(CrossfadeError):
        await first.client.set("tasks/1", {"n": 1}, timeout=2)
    with pytest.raises(UnavailableError):
        await first.client.get("tasks/1", timeout=2)
    assert first.memory.read("tasks/1") is None
    patch.undo()
    await first.client.set("tasks/1", {"n": 2}, timeout=5)
    await second.settled()
    assert first.memory.read("tasks/1").fields == {"n": 2}


async def test_a_sidecar_that_starts_in_the_outage_goes_on_through_the_outbox(first, monkeypatch):
    """PostgreSQL cannot be reached at all; it comes back later."""
    real, away = asyncpg.connect, True

    async def connect(dsn, **options):
        if away and options.get("connection_class") is not None:
            raise ConnectionRefusedError(111, "refused")
        return await real(dsn, **options)

    monkeypatch.setattr(asyncpg, "connect", connect)
    async with first.another(stage=Stage.SHADOW, read_percent=100) as restarted:
        await restarted.client.set("tasks/1", {"n": 1}, timeout=8)
        assert (await restarted.client.get("tasks/1")).fields == {"n": 1}
        away = False
        await eventually(lambda: _open(restarted))
        assert restarted.sidecar.control.snapshot.stage is Stage.SHADOW
        await first.settled()
        assert await in_postgres(restarted, "tasks/1") == {"n": 1}


async def test_required_refuses_rather_than_go_past_the_mirror(postgres_database, cut):
    async with running(await postgres_database(), Stage.SHADOW, mirror="required") as stack:
        await stack.copy()
        cut(stack)
        with pytest.raises(UnavailableError):
            await stack.client.set("tasks/1", {"n": 1}, timeout=2)
        assert stack.memory.read("tasks/1") is None


async def test_more_paths_than_one_document_may_name(first, cut):
    mend = cut(first)
    name = "x" * 1400
    writes = [Write.set(f"notes/{number}{name}", {"n": 1}) for number in range(300)]
    await first.client.commit(writes, timeout=20)
    assert len(await entries(first)) == 2
    mend()
    await eventually(lambda: _open(first))
    await first.settled(20)
    for number in (0, 299):
        assert await in_postgres(first, f"notes/{number}{name}") == {"n": 1}


async def test_the_control_document_is_changed_by_compare_and_set_only(first):
    fences = first.sidecar.control.lease.fences
    stale = await fences.read(timeout=5)
    await fences.change(stale, ControlDocument(9, False, 0, True), timeout=5)
    with pytest.raises(Aborted):
        await fences.change(stale, ControlDocument(1, True, 0, True), timeout=5)


async def test_no_verdict_blames_the_mirror_for_what_went_past_it(first, cut):
    """It is older, and nothing says that it is pending: that would be `stale`."""
    await first.client.set("tasks/1", {"n": 1})
    await first.settled()
    await first.percent(0, shadow_rate=1.0)
    cut(first)
    for n in range(2, 6):
        await first.client.set("tasks/1", {"n": n}, timeout=5)
        await first.client.get("tasks/1")
        await asyncio.sleep(0.1)
    assert first.count(SHADOW_DROPPED, "gate") > 0
    for verdict in ("wrong", "stale", "missing", "extra"):
        assert first.count(VERDICTS, verdict) == 0


# --- a mirror that is only slow -----------------------------------------------------------------


@pytest.fixture
def slow_down():
    """Makes PostgreSQL slow to take pending rows, and to say that it would; the returned
    function mends it."""

    def slow_down(stack: Running, seconds: float):
        mirror, patch = stack.sidecar.members["default"].mirror, pytest.MonkeyPatch()

        def late(real):
            async def call(*args, **kwargs):
                await asyncio.sleep(seconds)
                return await real(*args, **kwargs)

            return call

        for name in ("_open", "takes_rows"):
            patch.setattr(mirror, name, late(getattr(mirror, name)))
        return patch.undo

    return slow_down


@pytest.fixture
async def wary(postgres_database):
    """A sidecar that goes around a slow mirror and knows what is usual."""
    options: Any = {"read_percent": 100, "slow_mirror": "around"}
    async with running(await postgres_database(), Stage.SHADOW, **options) as stack:
        await stack.copy()
        await commits(stack, 2 * OPENINGS)
        await stack.settled()
        yield stack


async def commits(stack: Running, times: int, first: int = 0) -> list[float]:
    """Commits of one document, one after the other: the seconds that each took."""
    took = []
    for number in range(first, first + times):
        began = time.monotonic()
        await stack.client.set("tasks/1", {"n": number}, timeout=5)
        took.append(time.monotonic() - began)
    return took


async def test_a_slow_mirror_is_gone_around_and_nobody_waits_for_the_gate(
    wary, slow_down, monkeypatch
):
    real = Outbox.commit
    waited: list[bool] = []

    async def commit(self, writes, intent, entries, *rest):
        waited.extend(not each.outbox._is_closed(each.snapshot) for each in entries)
        return await real(self, writes, intent, entries, *rest)

    monkeypatch.setattr(Outbox, "commit", commit)
    mend = slow_down(wary, 0.08)
    pace = wary.sidecar.members["default"].outbox.pace
    for _ in range(8 * OPENINGS):
        await commits(wary, 1)
        if wary.count(OUTBOX, "written"):
            break
    assert pace.slow
    assert gate(wary) == 1
    await commits(wary, OPENINGS)
    assert len(waited) > OPENINGS
    assert not any(waited)
    assert (await wary.client.get("tasks/1")).fields == {"n": OPENINGS - 1}
    # What goes past it is drained all the same, and the gate stays closed.
    await wary.settled(20)
    assert gate(wary) == 1
    assert await in_postgres(wary, "tasks/1") == {"n": OPENINGS - 1}
    mend()
    await eventually(lambda: _open(wary), 20)
    assert not pace.slow
    written = wary.count(OUTBOX, "written")
    await commits(wary, 3)
    assert wary.count(OUTBOX, "written") == written == wary.count(OUTBOX, "drained")


async def test_no_other_sidecar_answers_from_a_copy_that_a_slow_one_went_around(wary, slow_down):
    async with wary.another(read_percent=100) as second:
        await second.client.get("tasks/1")
        slow_down(wary, 0.08)
        stop, stale, acknowledged = False, [], 0

        async def reader() -> None:
            while not stop:
                known = acknowledged
                found = await second.client.get("tasks/1")
                if found.fields["n"] < known:
                    stale.append((known, found.fields["n"]))

        await commits(wary, 1)
        reading = asyncio.create_task(reader())
        for n in range(1, 6 * OPENINGS):
            await commits(wary, 1, first=n)
            acknowledged = n
        stop = True
        await reading
        assert stale == []
        assert wary.count(OUTBOX, "written") > OPENINGS
        assert second.count(RETURNED_READS, "gate") > 0


async def test_who_asked_for_answers_to_wait_waits_for_a_slow_mirror(postgres_database, slow_down):
    options: Any = {"mirror": "wait", "slow_mirror": "around"}
    async with running(await postgres_database(), Stage.DUAL_WRITE, **options) as stack:
        await stack.copy()
        await commits(stack, 2 * OPENINGS)
        slow_down(stack, 0.06)
        assert min(await commits(stack, 2 * OPENINGS)) > 0.06
        assert gate(stack) == 0
        assert stack.count(OUTBOX, "written") == 0
