"""Transactions of the heart, while either store is the authority, and across a change of it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from crossfade.aggregate import Aggregation, AggregationKind
from crossfade.call import Call
from crossfade.document import Database
from crossfade.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from crossfade.plan import Stage, StoreName
from crossfade.query import FieldFilter, Op, Query
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.memory import MemoryStores
from crossfade.transactions import IDLE, LIFETIME, Transactions
from crossfade.wire import parse_document
from crossfade.write import Write
from crossfade_client import AbortedError
from tests.firestore_fixture import fresh_database
from tests.sidecar import DATABASE, Running, beside, eventually, running

# A mapped collection and one in the generic table.
COLLECTIONS = ("tasks", "notes")
MOST_TRIES = 100


def call(stack: Running, seconds: float = 20.0) -> Call:
    return Call(stack.telemetry, time.monotonic() + seconds)


def heart(stack: Running) -> Transactions:
    return stack.sidecar.transactions


OFFICIAL = "shadow, with the official emulator"


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    """One that the official emulator has not seen yet."""
    fresh = fresh_database()
    monkeypatch.setattr("tests.sidecar.DATABASE", fresh)
    monkeypatch.setattr(f"{__name__}.DATABASE", fresh)
    return fresh


@dataclass
class Emulator:
    address: str


@asynccontextmanager
async def official(request: Any, postgres_url: str) -> AsyncIterator[Running]:
    """In stage shadow, over a Firestore that locks what a transaction reads."""
    request.getfixturevalue("database")
    emulator = Emulator(request.getfixturevalue("official_emulator"))
    stage = Stage.SHADOW
    async with beside(MemoryStores(), emulator, postgres_url, stage, read_percent=100) as stack:
        await stack.copy()
        yield stack


@pytest.fixture(
    params=[
        *("off", "shadow", "live", "complete"),
        pytest.param(OFFICIAL, marks=pytest.mark.official),
    ]
)
async def stack(request: Any, postgres_database: Any) -> AsyncIterator[Running]:
    """A sidecar in each stage, by the way that leads there."""
    if request.param == OFFICIAL:
        async with official(request, await postgres_database()) as stack:
            yield stack
        return
    first = Stage.OFF if request.param == "off" else Stage.SHADOW
    async with running(await postgres_database(), first, read_percent=100) as stack:
        if request.param != "off":
            await stack.copy()
        if request.param in {"live", "complete"}:
            await stack.stage("live")
        if request.param == "complete":
            await stack.settled()
            await stack.stage("complete")
        yield stack


def locks(stack: Running) -> bool:
    """Whether what a transaction reads is locked: others wait, up to a time-out of seconds."""
    return isinstance(stack.firestore_server, Emulator)


def crowd(stack: Running, size: int) -> range:
    """So many at once, or few where each waits for those before it."""
    return range(4) if locks(stack) else range(size)


async def put(stack: Running, path: str, **fields: Any) -> None:
    await stack.client.set(path, fields)


def first_fields(reading: Any) -> Any:
    return parse_document(reading.documents[0].data, DATABASE).fields


async def fields_of(stack: Running, path: str) -> Any:
    """By the authority."""
    transactions = heart(stack)

    async def work(transaction: Any) -> Any:
        document = await transaction.get(path)
        return None if document is None else document.fields

    return await transactions.run(work, call(stack))


async def again(attempt: Any) -> int:
    """How often it was aborted before it was done."""
    for tries in range(MOST_TRIES):
        try:
            await attempt()
        except Aborted:
            # By chance, or those who met meet again: on a store with locks for two seconds.
            await asyncio.sleep(random.uniform(0, 0.05) * (1 + tries))
        else:
            return tries
    pytest.fail(f"aborted {MOST_TRIES} times")


# --- what concurrent transactions may not do ---------------------------------------------------


@pytest.mark.parametrize("collection", COLLECTIONS)
async def test_no_update_is_lost(stack, collection):
    path = f"{collection}/counter"
    await put(stack, path, n=0)

    async def add(transaction: Any) -> None:
        document = await transaction.get(path)
        transaction.write(Write(path, {"n": document.fields["n"] + 1}))

    adding = crowd(stack, 12)
    await asyncio.gather(*(heart(stack).run(add, call(stack)) for _ in adding))
    assert await fields_of(stack, path) == {"n": len(adding)}


@pytest.mark.parametrize("collection", COLLECTIONS)
async def test_no_write_skew(stack, collection):
    """Two are on call, and each may leave while another stays."""
    for name in ("a", "b"):
        await put(stack, f"{collection}/{name}", on_call=True)

    async def leave(name: str) -> None:
        async def work(transaction: Any) -> None:
            documents = await transaction.get_all([f"{collection}/a", f"{collection}/b"])
            if sum(d.fields["on_call"] for d in documents) == 2:
                transaction.write(Write(f"{collection}/{name}", {"on_call": False}))

        await heart(stack).run(work, call(stack))

    for _ in range(2 if locks(stack) else 5):
        await asyncio.gather(leave("a"), leave("b"))
        left = [(await fields_of(stack, f"{collection}/{n}"))["on_call"] for n in ("a", "b")]
        assert sorted(left) == [False, True]
        for name in ("a", "b"):
            await put(stack, f"{collection}/{name}", on_call=True)


@pytest.mark.parametrize("collection", COLLECTIONS)
async def test_no_phantom(stack, collection):
    """Each adds one where it finds fewer than three: never a fourth."""
    query = Query(collection=collection, where=FieldFilter(("status",), Op.EQUAL, "open"))

    async def add(name: str) -> None:
        async def work(transaction: Any) -> None:
            if len(await transaction.find(query)) < 3:
                transaction.write(Write(f"{collection}/{name}", {"status": "open"}))

        await heart(stack).run(work, call(stack))

    await asyncio.gather(*(add(str(number)) for number in crowd(stack, 10)))

    async def count(transaction: Any) -> int:
        return len(await transaction.find(query))

    assert await heart(stack).run(count, call(stack)) == 3


async def test_no_phantom_in_a_collection_group(stack):
    query = Query(
        collection="items", all_descendants=True, where=FieldFilter(("n",), Op.GREATER_THAN, 0)
    )

    async def add(name: str) -> None:
        async def work(transaction: Any) -> None:
            if not await transaction.find(query):
                transaction.write(Write(f"carts/{name}/items/1", {"n": 1}))

        await heart(stack).run(work, call(stack))

    await asyncio.gather(*(add(str(number)) for number in crowd(stack, 8)))

    async def count(transaction: Any) -> int:
        return len(await transaction.find(query))

    assert await heart(stack).run(count, call(stack)) == 1


async def test_no_phantom_behind_an_aggregation(stack):
    query = Query(collection="notes")
    counting = [Aggregation(AggregationKind.COUNT, "n")]
    transactions = heart(stack)

    async def add(name: str) -> None:
        async def attempt() -> None:
            identity = await transactions.begin(call(stack))
            try:
                found: Any = (await transactions.aggregate(identity, query, counting, call(stack)))[
                    0
                ]
                writes = [Write(f"notes/{name}", {})] if found["n"] < 2 else []
                await transactions.commit(identity, writes, call(stack))
            except Aborted:
                await transactions.rollback(identity, call(stack))
                raise

        await again(attempt)

    await asyncio.gather(*(add(str(number)) for number in crowd(stack, 6)))
    identity = await transactions.begin(call(stack))
    found, _ = await transactions.aggregate(identity, query, counting, call(stack))
    await transactions.rollback(identity, call(stack))
    assert found == {"n": 2}


async def test_a_transaction_and_a_plain_commit_are_one_after_the_other(stack):
    """A store with locks lets the commit wait and gives it up, one without the transaction."""
    await put(stack, "notes/1", n=1)
    transactions = heart(stack)
    identity = await transactions.begin(call(stack))
    reading = await transactions.get(identity, ["notes/1", "notes/2"], call(stack))
    assert first_fields(reading) == {"n": 1}
    try:
        await put(stack, "notes/2", n=2)
    except AbortedError:
        assert locks(stack)
        await transactions.commit(identity, [Write("notes/1", {"n": 2})], call(stack))
        assert await fields_of(stack, "notes/1") == {"n": 2}
    else:
        with pytest.raises(Aborted):
            await transactions.commit(identity, [Write("notes/1", {"n": 2})], call(stack))
        assert await fields_of(stack, "notes/1") == {"n": 1}


async def test_a_read_only_transaction_sees_one_moment(stack):
    await put(stack, "notes/1", n=1)
    await put(stack, "tasks/1", status="a")
    transactions = heart(stack)
    identity = await transactions.begin(call(stack), read_only=True)
    first = await transactions.get(identity, ["notes/1"], call(stack))
    await stack.client.set("tasks/1", {"status": "b"})
    await put(stack, "tasks/2", status="b")
    second = await transactions.get(identity, ["tasks/1"], call(stack))
    assert first_fields(first) == {"n": 1}
    assert first_fields(second) == {"status": "a"}
    pages = [
        page async for page in transactions.query(identity, Query(collection="tasks"), call(stack))
    ]
    assert b"tasks/2" not in b"".join(page.frames for page in pages)
    with pytest.raises(InvalidArgument):
        await transactions.commit(identity, [Write("notes/1", {})], call(stack))
    await transactions.rollback(identity, call(stack))


# --- requests ----------------------------------------------------------------------------------


async def test_a_request_is_done_once(stack):
    await put(stack, "notes/counter", n=0)
    seen: list[bool] = []

    async def add(transaction: Any) -> int:
        seen.append(transaction.replayed)
        count = (await transaction.get("notes/counter")).fields["n"]
        if transaction.replayed:
            return count
        transaction.write(Write("notes/counter", {"n": count + 1}))
        return count + 1

    for _ in range(3):
        assert await heart(stack).run(add, call(stack), request_id="one") == 1
    assert seen[0] is False
    assert seen[1:] == [True, True]
    assert await fields_of(stack, "notes/counter") == {"n": 1}


async def test_a_request_that_meets_others_is_done_once(stack):
    """Every attempt has the same intent, however often it is aborted. (Those who meet on the
    official emulator wait two seconds for each other, once for every one that is done.)"""
    await put(stack, "notes/counter", n=0)

    async def add(transaction: Any) -> None:
        count = (await transaction.get("notes/counter")).fields["n"]
        if not transaction.replayed:
            transaction.write(Write("notes/counter", {"n": count + 1}))

    asking = crowd(stack, 8)
    await asyncio.gather(
        *(heart(stack).run(add, call(stack, 60), request_id=f"r{number // 2}") for number in asking)
    )
    assert await fields_of(stack, "notes/counter") == {"n": len(asking) // 2}


async def test_a_request_that_was_done_meanwhile_holds_nothing(stack):
    await put(stack, "notes/1", n=1)
    transactions = heart(stack)
    identity = await transactions.begin(call(stack))
    await transactions.get(identity, ["notes/1"], call(stack))

    async def other(transaction: Any) -> None:
        transaction.write(Write("notes/2", {"n": 1}))

    await transactions.run(other, call(stack), request_id="one")
    writes = [Write("notes/2", {"n": 1})]
    assert (await transactions.commit(identity, writes, call(stack), "one")).replayed
    await put(stack, "notes/1", n=2)  # a lock would be waited for, and this given up
    assert await fields_of(stack, "notes/1") == {"n": 2}


async def test_a_refusal_is_handed_on_and_nothing_is_done(stack):
    await put(stack, "notes/1", n=1)

    async def work(transaction: Any) -> None:
        await transaction.get("notes/2")
        transaction.write(Write("notes/2", {"n": 2}), Write("notes/1", {}, exists=False))

    with pytest.raises(AlreadyExists):
        await heart(stack).run(work, call(stack))
    assert await fields_of(stack, "notes/2") is None
    await stack.settled()


async def test_what_the_work_raises_ends_the_transaction(stack):
    async def work(transaction: Any) -> None:
        await transaction.get("notes/1")
        transaction.write(Write("notes/1", {}))
        raise LookupError("no such thing")

    with pytest.raises(LookupError):
        await heart(stack).run(work, call(stack))
    assert len(heart(stack)) == 0
    # Nothing holds the document: another writes it at once.
    await put(stack, "notes/1", n=1)


# --- the mirror follows ------------------------------------------------------------------------


async def test_the_mirror_has_what_a_transaction_wrote(postgres_database):
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as stack:
        await stack.copy()

        async def work(transaction: Any) -> None:
            await transaction.get("tasks/1")
            transaction.write(Write("tasks/1", {"status": "a"}))

        await heart(stack).run(work, call(stack))
        await stack.settled()
        found = await stack.sidecar.stores[StoreName.POSTGRESQL].get(["tasks/1"], timeout=5)
        assert first_fields(found) == {"status": "a"}


@pytest.mark.parametrize(
    "store", ["embedded", pytest.param("official", marks=pytest.mark.official)]
)
async def test_transactions_go_on_while_postgresql_is_away(
    request, postgres_database, monkeypatch, store
):
    url = await postgres_database()
    async with (
        official(request, url)
        if store == "official"
        else running(url, Stage.SHADOW, read_percent=100)
    ) as stack:
        await stack.copy()
        await put(stack, "tasks/1", n=1)
        await stack.settled()

        async def away(*_args: Any, **_kwargs: Any) -> None:
            raise Unavailable("PostgreSQL is away")

        mirror = stack.sidecar.members["default"].forward._pending.mirror
        with monkeypatch.context() as patch:
            for name in ("_open", "takes_rows", "put", "claim"):
                patch.setattr(mirror, name, away)

            async def add(transaction: Any) -> None:
                count = (await transaction.get("tasks/1")).fields["n"]
                transaction.write(Write("tasks/1", {"n": count + 1}))

            await asyncio.gather(*(heart(stack).run(add, call(stack)) for _ in range(3)))
            assert await fields_of(stack, "tasks/1") == {"n": 4}
            assert not stack.sidecar.control.lease.document.gate_open
        await stack.settled(20)
        found = await stack.sidecar.stores[StoreName.POSTGRESQL].get(["tasks/1"], timeout=5)
        assert first_fields(found) == {"n": 4}


@pytest.mark.parametrize("lost", ["answer", "request"])
async def test_an_answer_that_is_lost_does_nothing_twice(postgres_database, monkeypatch, lost):
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as stack:
        await stack.copy()
        await put(stack, "notes/counter", n=0)
        commit, losses = FirestoreStore.commit, 1

        async def unanswered(self: Any, writes: Any, **options: Any) -> Any:
            nonlocal losses
            if losses and options.get("transaction") is not None:
                losses -= 1
                if lost == "answer":
                    await commit(self, writes, **options)
                raise Unavailable("lost")
            return await commit(self, writes, **options)

        monkeypatch.setattr(FirestoreStore, "commit", unanswered)

        async def add(transaction: Any) -> None:
            count = (await transaction.get("notes/counter")).fields["n"]
            if not transaction.replayed:
                transaction.write(Write("notes/counter", {"n": count + 1}))

        for _ in range(3):
            with suppress(Unavailable):  # it is known not to have been applied
                await heart(stack).run(add, call(stack), request_id="one")
        assert losses == 0
        assert await fields_of(stack, "notes/counter") == {"n": 1}
        await stack.settled()


# --- a change of authority ---------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False], ids=["to PostgreSQL", "to Firestore"])
async def test_what_was_begun_before_a_change_of_authority_is_aborted(postgres_database, there):
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as stack:
        await stack.copy()
        if not there:
            await stack.stage("live")
        await put(stack, "tasks/1", n=1)
        transactions = heart(stack)
        identities = [await transactions.begin(call(stack)) for _ in range(3)]
        identities.append(await transactions.begin(call(stack), read_only=True))
        for identity in identities:
            await transactions.get(identity, ["tasks/1"], call(stack))
        await stack.stage("live" if there else "shadow")
        with pytest.raises(Aborted):
            await transactions.commit(identities[0], [Write("tasks/1", {"n": 9})], call(stack))
        with pytest.raises(Aborted):
            await transactions.get(identities[1], ["tasks/1"], call(stack))
        with pytest.raises(Aborted):
            [
                page
                async for page in transactions.query(
                    identities[2], Query(collection="tasks"), call(stack)
                )
            ]
        with pytest.raises(Aborted):
            await transactions.get(identities[3], ["tasks/1"], call(stack))
        # None of them holds anything in a store, though nobody has rolled one back.
        assert len(stack.memory._transactions) == 0
        assert len(transactions) == 0
        for identity in identities:
            await transactions.rollback(identity, call(stack))
        assert await fields_of(stack, "tasks/1") == {"n": 1}


async def test_no_update_is_lost_across_changes_of_authority(postgres_database):
    """Nor with two sidecars, of which one learns late."""
    async with (
        running(await postgres_database(), Stage.SHADOW, read_percent=100) as stack,
        stack.another(read_percent=100) as second,
    ):
        await stack.copy()
        await put(stack, "tasks/1", n=0)
        stop = asyncio.Event()
        done = 0

        async def add(transaction: Any) -> None:
            count = (await transaction.get("tasks/1")).fields["n"]
            transaction.write(Write("tasks/1", {"n": count + 1}))

        async def adding(there: Running) -> None:
            nonlocal done
            while not stop.is_set():
                await heart(there).run(add, call(there))
                done += 1

        tasks = [asyncio.create_task(adding(there)) for there in (stack, stack, second, second)]
        for stage in ("live", "shadow", "live"):
            await asyncio.sleep(0.3)
            await stack.stage(stage)
        await asyncio.sleep(0.3)
        stop.set()
        await asyncio.gather(*tasks)
        assert done > 5
        assert await fields_of(stack, "tasks/1") == {"n": done}


# --- limits ------------------------------------------------------------------------------------


@pytest.fixture
async def live(postgres_database: Any) -> AsyncIterator[Running]:
    async with running(await postgres_database(), Stage.SHADOW) as stack:
        await stack.copy()
        await stack.stage("live")
        yield stack


@pytest.mark.parametrize("aged", ["idle", "old"])
async def test_open_transactions_have_an_end(live, monkeypatch, aged):
    transactions = heart(live)
    now = 1_000.0
    monkeypatch.setattr(transactions, "_clock", lambda: now)
    identity = await transactions.begin(call(live))
    snapshot = await transactions.begin(call(live), read_only=True)
    if aged == "idle":
        now += IDLE + 1
    else:
        for _ in range(int(LIFETIME / IDLE) + 1):
            now += IDLE - 1
            await transactions.get(identity, ["tasks/1"], call(live))
            await transactions.get(snapshot, ["tasks/1"], call(live))
            if now > 1_000 + LIFETIME - IDLE:
                now = 1_000 + LIFETIME + 1
                break
    with pytest.raises(InvalidArgument, match="expired"):
        await transactions.get(identity, ["tasks/1"], call(live))
    assert len(transactions) == 1
    await transactions.sweep()
    assert len(transactions) == 0
    assert transactions._snapshots._lanes.in_use == 0


async def test_read_only_transactions_are_few(live):
    transactions = heart(live)
    identities = [await transactions.begin(call(live), read_only=True) for _ in range(4)]
    with pytest.raises(ResourceExhausted):
        await transactions.begin(call(live, 1.0), read_only=True)
    await transactions.rollback(identities[0], call(live))
    identities.append(await transactions.begin(call(live), read_only=True))
    for identity in identities:
        await transactions.rollback(identity, call(live))

    async def free() -> bool:
        return transactions._snapshots._lanes.in_use == 0

    await eventually(free)


@pytest.mark.parametrize("transaction", [b"", b"f", b"x" * 25, b"p" + b"\0" * 24])
async def test_what_is_no_transaction_is_refused(live, transaction):
    with pytest.raises((InvalidArgument, Aborted)):
        await heart(live).get(transaction, ["tasks/1"], call(live))


async def test_postgresql_keeps_no_past(live):
    transactions = heart(live)
    await put(live, "tasks/1", n=1)
    reading = await transactions.get(await transactions.begin(call(live)), ["tasks/1"], call(live))
    then = reading.read_time
    assert (
        await transactions.authority.get_at(then, ["tasks/1"], call(live))
    ).documents == reading.documents
    await put(live, "tasks/1", n=2)
    with pytest.raises(FailedPrecondition):
        await transactions.authority.get_at(then, ["tasks/1"], call(live))
    with pytest.raises(FailedPrecondition):
        await transactions.begin(call(live), read_only=True, read_time=then)
    with pytest.raises(InvalidArgument):
        await transactions.authority.get_at(then + 3_600_000_000, ["tasks/1"], call(live))
