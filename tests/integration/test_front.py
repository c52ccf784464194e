"""The genuine client library against a sidecar: nothing of the application is changed."""

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc.aio
import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

from crossfade.plan import Stage
from crossfade_client import Increment
from crossfade_client import Write as ClientWrite
from tests.listening import Conversation, Ended, Wire
from tests.sidecar import DATABASE, Running, eventually, running

STAGES = ["off", "shadow", "live", "complete"]
COLLECTIONS = ["tasks", "notes"]


@pytest.fixture(params=STAGES)
async def stack(request: Any, postgres_database: Any) -> AsyncIterator[Running]:
    stage = request.param
    first = Stage.OFF if stage == "off" else Stage.SHADOW
    async with running(await postgres_database(), first, read_percent=100) as stack:
        if stage != "off":
            await stack.copy()
        if stage in {"live", "complete"}:
            await stack.stage("live")
        if stage == "complete":
            await stack.settled()
            await stack.stage("complete")
        yield stack


@pytest.fixture
async def flipping(postgres_database: Any) -> AsyncIterator[Running]:
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as stack:
        await stack.copy()
        yield stack


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def client(stack: Running, project: str = DATABASE.project) -> Any:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", stack.sidecar.address)
        made.append(firestore.Client(project=project, credentials=AnonymousCredentials()))
        return made[-1]

    yield client
    for one in made:
        one.close()


def numbers(documents: Any) -> dict[str, int]:
    return {d.id: d.to_dict()["n"] for d in documents}


# --- documents, queries, transactions ----------------------------------------------------------


@pytest.mark.parametrize("collection", COLLECTIONS)
async def test_documents_and_queries(stack, connect, collection):
    def works() -> None:
        client = connect(stack)
        c = client.collection(collection)
        c.document("a").set({"n": 1, "tags": ["x"], "deep": {"er": 1.5}})
        c.document("b").create({"n": 2})
        with pytest.raises(exceptions.Conflict):
            c.document("b").create({"n": 3})
        c.document("a").update({"n": firestore.Increment(4), "at": firestore.SERVER_TIMESTAMP})
        found = c.document("a").get()
        assert found.to_dict()["n"] == 5
        assert 0 <= (found.update_time - found.to_dict()["at"]).total_seconds() < 0.01
        assert not c.document("none").get().exists
        with pytest.raises(exceptions.NotFound):
            c.document("none").update({"n": 1})
        batch = client.batch()
        batch.set(c.document("c"), {"n": 3})
        batch.delete(c.document("b"))
        batch.commit()
        asked = client.get_all([c.document("a"), c.document("b")])
        assert {d.id: d.exists for d in asked} == {"a": True, "b": False}
        assert numbers(c.order_by("n").stream()) == {"c": 3, "a": 5}
        assert numbers(c.where(filter=FieldFilter("n", ">", 3)).stream()) == {"a": 5}
        assert c.count().get()[0][0].value == 2
        assert c.sum("n").get()[0][0].value == 8
        c.document("a").collection("parts").document("1").set({"n": 9})
        client.document(f"{collection}/ghost/parts/2").set({"n": 10})
        assert numbers(client.collection_group("parts").stream()) == {"1": 9, "2": 10}
        assert [d.id for d in c.list_documents()] == ["a", "c", "ghost"]
        assert [d.id for d in c.list_documents(page_size=1)] == ["a", "c", "ghost"]
        assert [one.id for one in c.document("a").collections()] == ["parts"]
        assert [one.id for one in client.collections()] == [collection]
        c.document("a").delete()
        assert not c.document("a").get().exists

    await asyncio.to_thread(works)


async def test_a_transaction_of_the_library(stack, connect):
    def works() -> None:
        client = connect(stack)
        counter = client.document("notes/counter")
        counter.set({"n": 0})

        @firestore.transactional
        def add(transaction: Any) -> int:
            count = counter.get(transaction=transaction).to_dict()["n"]
            transaction.set(counter, {"n": count + 1})
            return count + 1

        for expected in (1, 2, 3):
            assert add(client.transaction()) == expected

        @firestore.transactional
        def look(transaction: Any) -> dict[str, int]:
            return numbers(client.collection("notes").get(transaction=transaction))

        assert look(client.transaction(read_only=True)) == {"counter": 3}
        assert look(client.transaction()) == {"counter": 3}

    await asyncio.to_thread(works)


@pytest.mark.parametrize("there", [True, False], ids=["to PostgreSQL", "to Firestore"])
async def test_the_library_begins_anew_after_a_change_of_authority(flipping, connect, there):
    """It does so by itself, wherever in the transaction the change comes."""
    loop = asyncio.get_running_loop()
    if not there:
        await flipping.stage("live")
    stages = ["live", "shadow"] if there else ["shadow", "live"]

    def works() -> None:
        client = connect(flipping)
        here, other = client.document("notes/here"), client.document("tasks/other")
        here.set({"n": 1})
        other.set({"n": 10})
        attempts: list[int] = []

        @firestore.transactional
        def move(transaction: Any) -> None:
            n = here.get(transaction=transaction).to_dict()["n"]
            if not attempts:
                asyncio.run_coroutine_threadsafe(flipping.stage(stages[0]), loop).result(30)
            attempts.append(n)
            m = other.get(transaction=transaction).to_dict()["n"]
            found = numbers(client.collection("notes").get(transaction=transaction))
            assert found == {"here": n}
            transaction.set(here, {"n": n + 1})
            transaction.set(other, {"n": m - 1})

        move(client.transaction())
        assert len(attempts) == 2
        assert here.get().to_dict() == {"n": 2}
        assert other.get().to_dict() == {"n": 9}

    await asyncio.to_thread(works)


async def test_the_library_begins_anew_after_a_conflict_between_two_reads(stack, connect):
    def works() -> None:
        client = connect(stack)
        here, other = client.document("notes/here"), client.document("notes/other")
        here.set({"n": 1})
        other.set({"n": 1})
        attempts: list[int] = []

        @firestore.transactional
        def move(transaction: Any) -> None:
            n = here.get(transaction=transaction).to_dict()["n"]
            if not attempts:
                here.set({"n": 5})
            attempts.append(n)
            other.get(transaction=transaction)
            transaction.set(other, {"n": n + 1})

        move(client.transaction())
        assert attempts == [1, 5]
        assert other.get().to_dict() == {"n": 6}

    await asyncio.to_thread(works)


async def test_bulk_writes_and_partitions(stack, connect):
    def works() -> None:
        client = connect(stack)
        bulk = client.bulk_writer()
        for number in range(40):
            bulk.set(client.document(f"notes/{number:02}"), {"n": number})
        bulk.close()
        parts = list(client.collection_group("notes").get_partitions(3))
        assert 1 < len(parts) <= 4
        assert sum(len(list(part.query().stream())) for part in parts) == 40

    await asyncio.to_thread(works)


async def test_another_database_is_not_there(stack, connect):
    def works() -> None:
        with pytest.raises(exceptions.NotFound, match="does not exist"):
            connect(stack, "elsewhere").document("notes/1").get(retry=None)

    await asyncio.to_thread(works)


async def test_what_is_crossfades_own_is_not_seen(flipping, connect):
    def works() -> None:
        client = connect(flipping)
        client.document("notes/1").set({"n": 1})
        assert [one.id for one in client.collections()] == ["notes"]
        for attempt in (
            lambda: client.document("_crossfade_control/default").get(retry=None),
            lambda: client.document("_crossfade_control/default").set({}),
            lambda: list(client.collection("_crossfade_intents").stream(retry=None)),
            lambda: client.collection("_crossfade_intents").count().get(retry=None),
        ):
            with pytest.raises(exceptions.InvalidArgument):
                attempt()

    await asyncio.to_thread(works)


# --- listeners ---------------------------------------------------------------------------------


class Seen:
    """What a listener of the library was called back with."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[dict[str, int], list[str]]] = queue.Queue()

    def __call__(self, documents: Any, changes: Any, _: Any) -> None:
        names = sorted(f"{change.type.name} {change.document.id}" for change in changes)
        self.calls.put((numbers(d for d in documents if d.exists), names))

    def next(self) -> tuple[dict[str, int], list[str]]:
        return self.calls.get(timeout=20)

    def until(self, documents: dict[str, int]) -> None:
        ends = time.monotonic() + 30
        while self.next()[0] != documents:
            assert time.monotonic() < ends


@pytest.mark.parametrize("collection", COLLECTIONS)
async def test_the_library_listens(stack, connect, collection):
    def listens() -> None:
        client = connect(stack)
        c = client.collection(collection)
        c.document("a").set({"n": 1})
        seen, one, some = Seen(), Seen(), Seen()
        watches = [c.on_snapshot(seen), c.document("a").on_snapshot(one)]
        watches.append(c.where(filter=FieldFilter("n", ">", 2)).on_snapshot(some))
        assert seen.next() == ({"a": 1}, ["ADDED a"])
        assert one.next() == ({"a": 1}, ["ADDED a"])
        assert some.next() == ({}, [])
        batch = client.batch()
        batch.set(c.document("b"), {"n": 2})
        batch.update(c.document("a"), {"n": 4})
        batch.commit()
        assert seen.next() == ({"a": 4, "b": 2}, ["ADDED b", "MODIFIED a"])
        assert one.next() == ({"a": 4}, ["MODIFIED a"])
        assert some.next() == ({"a": 4}, ["ADDED a"])
        c.document("a").delete()
        assert seen.next() == ({"b": 2}, ["REMOVED a"])
        assert one.next() == ({}, ["REMOVED a"])
        assert some.next() == ({}, ["REMOVED a"])
        for watch in watches:
            watch.unsubscribe()

    await asyncio.to_thread(listens)


async def test_a_listener_outlives_changes_of_authority(flipping, connect):
    """It is told of everything that was there at the end, and of what went meanwhile."""
    loop = asyncio.get_running_loop()

    def stage(name: str) -> None:
        asyncio.run_coroutine_threadsafe(flipping.stage(name), loop).result(30)

    def listens() -> None:
        client = connect(flipping)
        c = client.collection("notes")
        c.document("a").set({"n": 1})
        c.document("gone").set({"n": 1})
        seen = Seen()
        watch = c.on_snapshot(seen)
        seen.until({"a": 1, "gone": 1})
        stage("live")
        c.document("gone").delete()
        c.document("b").set({"n": 2})
        seen.until({"a": 1, "b": 2})
        c.document("a").delete()
        stage("shadow")
        c.document("c").set({"n": 3})
        seen.until({"b": 2, "c": 3})
        watch.unsubscribe()

    await asyncio.to_thread(listens)


@pytest.fixture
async def live(flipping: Running) -> Running:
    await flipping.stage("live")
    return flipping


async def test_a_commit_of_another_sidecar_is_told_of(live, connect):
    async with live.another() as second:

        def listens() -> None:
            seen = Seen()
            watch = connect(live).collection("notes").on_snapshot(seen)
            assert seen.next() == ({}, [])
            there = connect(second).collection("notes")
            there.document("a").set({"n": 1})
            assert seen.next() == ({"a": 1}, ["ADDED a"])
            again = Seen()
            other = there.on_snapshot(again)
            assert again.next() == ({"a": 1}, ["ADDED a"])
            watch.unsubscribe()
            connect(live).document("notes/b").set({"n": 2})
            assert again.next() == ({"a": 1, "b": 2}, ["ADDED b"])
            other.unsubscribe()

        await asyncio.to_thread(listens)


async def test_nobody_is_notified_where_nobody_listens(live, connect):
    """NOTIFY makes commits wait for one another, so it is left where it is for nobody."""
    told: list[str] = []
    await live.sql.add_listener("crossfade", lambda *args: told.append(args[-1]))
    await live.client.set("notes/1", {"n": 1})
    async with grpc.aio.insecure_channel(live.sidecar.address) as channel:
        conversation = Conversation(Wire(channel, DATABASE), DATABASE)
        await conversation.follow(1, documents=["notes/1"])
        await conversation.snapshot()
        await live.client.set("notes/2", {"n": 2})

        async def heard() -> bool:
            return '["notes/2"]' in told

        await eventually(heard)
        await conversation.close()

    async def over() -> bool:
        return not live.sidecar.listening

    await eventually(over)
    before = len(told)
    await live.client.set("notes/3", {"n": 3})
    await live.sql.execute("notify crossfade, 'end'")

    async def end() -> bool:
        return told[-1] == "end"

    await eventually(end)
    assert len(told) == before + 1


async def test_a_stream_ends_when_its_connection_is_lost(live):
    async with grpc.aio.insecure_channel(live.sidecar.address) as channel:
        conversation = Conversation(Wire(channel, DATABASE), DATABASE)
        await conversation.follow(1, query={"from": [{"collection_id": "notes"}]})
        await conversation.snapshot()
        killed = await live.sql.fetchval(
            """select count(pg_terminate_backend(pid)) from pg_locks
            where locktype = 'advisory' and mode = 'ExclusiveLock' and objsubid = 1"""
        )
        assert killed == 1
        with pytest.raises(Ended) as caught:
            await conversation.snapshot()
        assert caught.value.code == "UNAVAILABLE"
        # The next one begins anew, once the loss is dealt with.
        again = Conversation(Wire(channel, DATABASE), DATABASE)
        await live.client.set("notes/1", {"n": 1})
        await again.follow(1, query={"from": [{"collection_id": "notes"}]})
        await again.snapshot()
        assert again.view.ids(1) == {"1": 1}
        await again.close()


async def test_many_streams_share_few_connections(live):
    for number in range(50):
        await live.client.set(f"notes/{number}", {"n": number})
    async with grpc.aio.insecure_channel(live.sidecar.address) as channel:
        conversations = [Conversation(Wire(channel, DATABASE), DATABASE) for _ in range(40)]
        for conversation in conversations:
            await conversation.follow(1, query={"from": [{"collection_id": "notes"}]})
        views = await asyncio.gather(*(one.snapshot() for one in conversations))
        assert all(len(view.ids(1)) == 50 for view in views)
        for number in range(50, 60):
            await live.client.set(f"notes/{number}", {"n": number})

        async def caught_up(conversation: Conversation) -> None:
            while len((await conversation.snapshot()).ids(1)) < 60:
                pass

        async with asyncio.timeout(60):
            await asyncio.gather(*map(caught_up, conversations))
        connections = await live.sql.fetchval(
            "select count(*) from pg_stat_activity where application_name = 'crossfade'"
        )
        assert connections < 30
        for conversation in conversations:
            await conversation.close()


async def test_a_commit_too_large_for_one_notification(live):
    names = [f"notes/{number:03}{'x' * 100}" for number in range(300)]
    async with grpc.aio.insecure_channel(live.sidecar.address) as channel:
        conversation = Conversation(Wire(channel, DATABASE), DATABASE)
        await conversation.follow(1, documents=[names[0], names[-1]])
        await conversation.follow(2, query={"from": [{"collection_id": "notes"}]})
        await conversation.snapshot()
        await live.client.commit([ClientWrite.set(name, {"n": 1}) for name in names])
        deadline = time.monotonic() + 20
        while (view := await conversation.snapshot()) and time.monotonic() < deadline:
            if len(view.ids(2)) == len(names):
                break
        assert len(view.ids(2)) == len(names)
        assert len(view.ids(1)) == 2
        await conversation.close()


async def test_every_snapshot_is_of_one_moment(live):
    """Each commit keeps the sum of all documents: no snapshot may show another one."""
    names = [f"notes/{number}" for number in range(6)]
    for name in names:
        await live.client.set(name, {"n": 100})
    stop = asyncio.Event()
    sums: list[int] = []

    async def moving(offset: int) -> None:
        turn = offset
        while not stop.is_set():
            turn += 1
            here, there = names[turn % 6], names[(turn * 5 + 1 + offset) % 6]
            if here == there:
                continue
            await live.client.commit(
                [
                    ClientWrite.update(here, {"n": Increment(-1)}),
                    ClientWrite.update(there, {"n": Increment(1)}),
                ]
            )

    movers = [asyncio.create_task(moving(offset)) for offset in range(3)]
    async with grpc.aio.insecure_channel(live.sidecar.address) as channel:
        conversation = Conversation(Wire(channel, DATABASE), DATABASE)
        # Two targets, of which each sees half: what they show together is of one moment, too.
        query = {"from": [{"collection_id": "notes"}]}
        await conversation.follow(1, query=query)
        await conversation.follow(2, documents=names[:3])
        await conversation.follow(3, documents=names[3:])
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline or len(sums) < 10:
            await conversation.snapshot()
            view = conversation.view
            if {1, 2, 3} <= view.current:
                sums.append(sum(view.ids(1).values()))
                sums.append(sum(view.ids(2).values()) + sum(view.ids(3).values()))
        stop.set()
        await asyncio.gather(*movers)
        await conversation.close()
    assert len(sums) >= 10
    assert set(sums) == {600}
