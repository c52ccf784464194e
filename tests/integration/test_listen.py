"""Listen over gRPC: the genuine client's listeners, one conversation with the embedded
Firestore and with the official emulator, many writers, and clients that vanish."""

import asyncio
import queue
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore
from google.cloud.firestore_v1 import types
from google.cloud.firestore_v1.base_query import FieldFilter

from crossfade import wire
from crossfade.document import Database
from crossfade.rpc import firestore_v1
from crossfade.rpc.firestore_v1.listen import MAX_TARGETS
from crossfade.store import At
from crossfade.stores.memory import MemoryStore, MemoryStores
from crossfade.write import Write
from tests.firestore_fixture import fresh_database
from tests.listening import (
    Conversation,
    View,
    Wire,
    by,
    collection,
    described,
    is_consistent,
    where,
)

COMMIT = "/google.firestore.v1.Firestore/Commit"
SECONDS = 20.0


# --- the genuine client ------------------------------------------------------------------------


class Seen:
    """What a listener's callback was given: the documents, and the changes."""

    def __init__(self) -> None:
        self._calls: queue.Queue[tuple[dict[str, int], list[str]]] = queue.Queue()

    def __call__(self, documents: Any, changes: Any, _: Any) -> None:
        found = {one.id: one.get("n") for one in documents if one.exists}
        told = [f"{change.type.name} {change.document.id}" for change in changes]
        self._calls.put((found, told))

    def next(self) -> tuple[dict[str, int], list[str]]:
        return self._calls.get(timeout=SECONDS)

    def nothing(self, seconds: float = 0.3) -> bool:
        try:
            self._calls.get(timeout=seconds)
        except queue.Empty:
            return True
        return False


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], firestore.Client]]:
    made: list[firestore.Client] = []

    def client(address: str) -> firestore.Client:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
        made.append(
            firestore.Client(project=fresh_database().project, credentials=AnonymousCredentials())
        )
        return made[-1]

    yield client
    for one in made:
        one.close()


Connect = Callable[[str], Any]


@pytest.fixture(
    params=["embedded_firestore", pytest.param("official_emulator", marks=pytest.mark.official)]
)
def address(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


async def test_client_listens_to_a_document(address: str, connect: Connect) -> None:
    def listens() -> None:
        document = connect(address).collection("c").document("a")
        seen = Seen()
        watch = document.on_snapshot(seen)
        assert seen.next() == ({}, [])
        document.set({"n": 1})
        assert seen.next() == ({"a": 1}, ["ADDED a"])
        document.update({"n": 2})
        assert seen.next() == ({"a": 2}, ["MODIFIED a"])
        document.update({"n": 2})
        document.parent.document("b").set({"n": 5})
        assert seen.nothing()
        document.delete()
        assert seen.next() == ({}, ["REMOVED a"])
        document.set({"n": 3})
        assert seen.next() == ({"a": 3}, ["ADDED a"])
        watch.unsubscribe()
        document.set({"n": 4})
        assert seen.nothing()

    await asyncio.to_thread(listens)


async def test_client_listens_to_a_collection(address: str, connect: Connect) -> None:
    def listens() -> None:
        client = connect(address)
        c = client.collection("c")
        c.document("a").set({"n": 1})
        seen = Seen()
        watch = c.on_snapshot(seen)
        assert seen.next() == ({"a": 1}, ["ADDED a"])
        batch = client.batch()
        batch.set(c.document("b"), {"n": 2})
        batch.set(c.document("c"), {"n": 3})
        batch.update(c.document("a"), {"n": 4})
        batch.commit()
        expected = {"a": 4, "b": 2, "c": 3}
        assert seen.next() == (expected, ["ADDED b", "ADDED c", "MODIFIED a"])
        c.document("b").delete()
        assert seen.next() == ({"a": 4, "c": 3}, ["REMOVED b"])
        watch.unsubscribe()

    await asyncio.to_thread(listens)


async def test_client_listens_to_queries(address: str, connect: Connect) -> None:
    def listens() -> None:
        c = connect(address).collection("c")
        for name, n in (("a", 1), ("b", 2), ("c", 3), ("d", 4)):
            c.document(name).set({"n": n})
        above, first = Seen(), Seen()
        watches = [
            c.where(filter=FieldFilter("n", ">", 2)).on_snapshot(above),
            c.order_by("n", direction="DESCENDING").limit(2).on_snapshot(first),
        ]
        assert above.next()[0] == {"c": 3, "d": 4}
        # (The client sorts by itself, and always ascending.)
        assert first.next()[0] == {"d": 4, "c": 3}
        c.document("a").update({"n": 9})
        assert above.next() == ({"c": 3, "d": 4, "a": 9}, ["ADDED a"])
        assert first.next() == ({"a": 9, "d": 4}, ["REMOVED c", "ADDED a"])
        c.document("d").update({"n": 0})
        assert above.next() == ({"c": 3, "a": 9}, ["REMOVED d"])
        assert first.next() == ({"a": 9, "c": 3}, ["REMOVED d", "ADDED c"])
        for watch in watches:
            watch.unsubscribe()

    await asyncio.to_thread(listens)


async def test_client_goes_on_after_a_restart(connect: Connect) -> None:
    """The new server has none of the old one's data, and its tokens mean nothing to it."""
    server = await firestore_v1.serve(MemoryStores(), "127.0.0.1", 0)
    port = int(server.address.rpartition(":")[2])
    client = connect(server.address)
    c, seen = client.collection("c"), Seen()

    def before() -> Any:
        c.document("a").set({"n": 1})
        c.document("b").set({"n": 2})
        watch = c.on_snapshot(seen)
        assert seen.next()[0] == {"a": 1, "b": 2}
        return watch

    watch = await asyncio.to_thread(before)
    await server.stop(0)
    stores = MemoryStores()
    stores(Database(client.project)).apply_commit([Write("c/b", {"n": 3})])
    server = await firestore_v1.serve(stores, "127.0.0.1", port)

    def after() -> None:
        assert seen.next() == ({"b": 3}, ["REMOVED a", "MODIFIED b"])
        c.document("c").set({"n": 4})
        assert seen.next() == ({"b": 3, "c": 4}, ["ADDED c"])
        watch.unsubscribe()

    await asyncio.to_thread(after)
    await server.stop(0)


# --- one conversation, two servers -------------------------------------------------------------


async def commit(channel: Any, database: Database, **documents: int | None) -> None:
    """Sets the field n of documents of c, or deletes them, in one commit."""
    request = types.CommitRequest.pb()(database=database.name)
    for name, n in documents.items():
        write = request.writes.add()
        if n is None:
            write.delete = database.full(f"c/{name}")
        else:
            write.update.name = database.full(f"c/{name}")
            write.update.fields["n"].integer_value = n
    metadata = (("google-cloud-resource-prefix", database.name),)
    call = channel.unary_unary(COMMIT)
    await call(request.SerializeToString(), timeout=SECONDS, metadata=metadata)


def normalised(frames: Sequence[Any], before: View, after: View) -> list[str]:
    """What a client learns of a step. A target that is added: its frames as they are. Of the
    others: how they differ, for the emulator sends a query whose result changed (and named
    documents of which one did) all over again. Whether the stream is consistent in the end."""
    added = [number for number in after.targets if number not in before.targets]
    said = [text for frame in frames if (text := described(frame)) != "NO_CHANGE"]
    told = [text for text in said if int(text.rpartition(" ")[2]) in added]
    removed = [number for number in before.targets if number not in after.targets]
    told += [text for text in said if text in {f"REMOVE {number}" for number in removed}]
    told += [f"{number} refused: {code}" for number, (code, _) in after.refused.items()]
    for number in before.targets:
        if number in after.targets:
            told += differences(number, before, after)
    return told + ["NO_CHANGE"] * any(map(is_consistent, frames))


def differences(number: int, before: View, after: View) -> list[str]:
    known, knows = before.targets[number], after.targets[number]
    missed = after.missing[number] - before.missing[number]
    changed = [f"CHANGE {p}={n} {number}" for p, (t, n) in knows.items() if known.get(p) != (t, n)]
    gone = [f"GONE {path} {number}" for path in known if path not in knows]
    # Of a query's document it does not matter whether it was deleted or only left.
    return sorted(changed + gone + [f"MISSING {p} {number}" for p in missed if number % 2 == 0])


Step = Callable[[Conversation, Any], Any]
ABOVE = collection(where=where("GREATER_THAN", 1))
SCRIPT: dict[str, Step] = {
    # Odd numbers are queries, even ones are documents.
    "a query": lambda talk, _: talk.follow(1, collection()),
    "a filter": lambda talk, _: talk.follow(3, ABOVE),
    "a limit": lambda talk, _: talk.follow(5, collection(order_by=by(), limit=2)),
    "the last": lambda talk, _: talk.follow(
        7, collection(order_by=by(direction="DESCENDING"), limit=1)
    ),
    "a projection": lambda talk, _: talk.follow(
        9, collection(select={"fields": [{"field_path": "m"}]})
    ),
    "nothing": lambda talk, _: talk.follow(11, collection("d")),
    "documents": lambda talk, _: talk.follow(2, documents=["c/a", "c/x", "c/a"]),
    "a document": lambda talk, _: talk.follow(4, documents=["c/y"]),
    "change": lambda talk, channel: commit(channel, talk.database, a=5),
    "create": lambda talk, channel: commit(channel, talk.database, x=0, y=7),
    "several": lambda talk, channel: commit(channel, talk.database, a=1, b=None, z=3),
    "leave": lambda talk, channel: commit(channel, talk.database, z=0),
    "delete": lambda talk, channel: commit(channel, talk.database, y=None),
    "remove": lambda talk, _: talk.ask(remove_target=3),
    "remove what is not there": lambda talk, _: talk.ask(remove_target=99),
    "a collection": lambda talk, _: talk.follow(6, documents=["c"]),
    "change again": lambda talk, channel: commit(channel, talk.database, a=6, c=None),
    "remove all": lambda talk, _: talk.ask(remove_target=1),
}


async def told(address: str) -> dict[str, list[str]]:
    """What a server says at every step of the script."""
    database = fresh_database()
    answers: dict[str, list[str]] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        await commit(channel, database, a=1, b=2, c=3)
        talk = Conversation(Wire(channel, database), database)
        for name, step in SCRIPT.items():
            before, start = deepcopy(talk.view), len(talk.frames)
            await step(talk, channel)
            await talk.quiet(0.5)
            answers[name] = normalised(talk.frames[start:], before, talk.view)
        await talk.close()
    return answers


@pytest.mark.official
async def test_a_conversation_with_both_firestores(
    embedded_firestore: str, official_emulator: str
) -> None:
    ours, official = await asyncio.gather(told(embedded_firestore), told(official_emulator))
    for name in SCRIPT:
        assert (name, ours[name]) == (name, official[name])


# --- where the official emulator differs -------------------------------------------------------


@pytest_asyncio.fixture
async def official(official_emulator: str) -> AsyncIterator[tuple[grpc.aio.Channel, Conversation]]:
    """A stream with the official emulator that follows the query c, with the document a."""
    database = fresh_database()
    async with grpc.aio.insecure_channel(official_emulator) as channel:
        await commit(channel, database, a=1)
        talk = Conversation(Wire(channel, database), database)
        await talk.follow(2, collection())
        await talk.snapshot()
        yield channel, talk
        await talk.close()


@pytest.mark.official
async def test_emulator_sends_all_over_again(official: tuple[Any, Conversation]) -> None:
    """Ours sends differences, as logs of the cloud show (nodejs-firestore issue 1057: one
    document_change, then NO_CHANGE, of a listener on 3,182 documents)."""
    channel, talk = official
    await commit(channel, talk.database, b=2)
    assert await talk.quiet() == [
        "RESET 2",
        "CHANGE c/a=1 2",
        "CHANGE c/b=2 2",
        "CURRENT 2",
        "NO_CHANGE",
    ]


@pytest.mark.official
async def test_emulator_resumes_nothing(official: tuple[Any, Conversation]) -> None:
    """Ours resumes: Target.resume_token and Target.read_time in google.firestore.v1."""
    channel, talk = official
    again = Conversation(Wire(channel, talk.database), talk.database, talk.view)
    await again.follow(2, collection(), resume_token=talk.view.token)
    assert (await again.quiet())[:3] == ["ADD 2", "RESET 2", "CHANGE c/a=1 2"]
    await again.close()


@pytest.mark.official
async def test_emulator_knows_no_once(official: tuple[Any, Conversation]) -> None:
    """Ours removes such a target when it is current: Target.once in google.firestore.v1."""
    _, talk = official
    await talk.follow(4, collection(), once=True)
    assert (await talk.quiet())[-1] == "NO_CHANGE"
    assert 4 in talk.view.targets


@pytest.mark.official
async def test_emulator_ends_the_stream_for_a_used_id(
    official: tuple[Any, Conversation],
) -> None:
    """Ours ends the target, with the error that applications saw of the cloud (flutterfire
    issue 7197: already-exists, "Target ID already exists: 2", of a listener)."""
    _, talk = official
    await talk.follow(2, collection())
    assert (await talk.ended()).code == "UNKNOWN"


@pytest.mark.official
async def test_emulator_ends_the_stream_for_a_bad_query(official: tuple[Any, Conversation]) -> None:
    """Ours ends the target, as both do for a bad document name: TargetChange.cause."""
    _, talk = official
    await talk.follow(4, collection(limit=-1))
    assert (await talk.ended()).code == "UNKNOWN"


@pytest.mark.official
async def test_emulator_takes_an_id_after_it_chose_one(official: tuple[Any, Conversation]) -> None:
    """Ours refuses it: Target.target_id in google.firestore.v1."""
    _, talk = official
    await talk.follow(0, collection())
    await talk.snapshot()
    await talk.follow(10, collection())
    await talk.snapshot()
    assert talk.view.current == {2, 3, 10}


# --- many writers, slow readers, clients that vanish -------------------------------------------


class Counted(MemoryStore):
    """Knows how many watch."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.watchers = 0
        self._changed = asyncio.Event()

    def subscribe(self, watcher: Callable[[int, Sequence[str]], None]) -> Callable[[], None]:
        self.watchers += 1
        end = super().subscribe(watcher)

        def ended() -> None:
            self.watchers -= 1
            self._changed.set()
            end()

        return ended

    async def watched_by(self, most: int) -> None:
        """Waits until at most so many watch."""
        async with asyncio.timeout(SECONDS):
            while self.watchers > most:
                self._changed.clear()
                await self._changed.wait()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[tuple[Counted, str]]:
    """A store of a server of its own, and the server's address."""
    store = Counted(fresh_database())
    made = await firestore_v1.serve(lambda _: store, "127.0.0.1", 0)
    yield store, made.address
    await store.watched_by(0)
    await made.stop(0)


WATCHED: dict[int, dict[str, Any]] = {
    2: {"query": collection()},
    4: {"query": collection(order_by=by(direction="DESCENDING"), limit=10)},
    6: {"query": collection(where=where("LESS_THAN", 40))},
    8: {"documents": [f"c/d{number}" for number in range(0, 100, 7)]},
}


def state(store: MemoryStore, number: int, moment: int) -> dict[str, int]:
    """What a target of `WATCHED` holds at a moment: update_time by path."""
    at, target = At(read_time=moment), WATCHED[number]
    request = types.StructuredQuery.pb(types.StructuredQuery(target.get("query") or collection()))
    found = store.run(wire.decode_query(request, "", store.database), at)
    times = {document.path: document.update_time for document in found}
    if "documents" in target:
        return {path: times[path] for path in target["documents"] if path in times}
    return times


async def test_two_hundred_writers(server: tuple[Counted, str]) -> None:
    """Every snapshot of every listener is the store's state of one moment, those of listeners
    that lost their connection, too; in the end all have the final state."""
    store, address = server
    database = store.database
    numbers = random.Random(3)
    done = asyncio.Event()

    def agrees(view: View, moment: int) -> bool:
        """Whether a view is the store's state of a moment."""
        return all(
            {path: time for path, (time, _) in view.targets.get(number, {}).items()}
            == state(store, number, moment)
            for number in WATCHED
        )

    async def write(channel: Any) -> None:
        for _ in range(10):
            names = numbers.sample(range(100), 3)
            changes = {f"d{name}": numbers.choice([None, *range(100)]) for name in names}
            await commit(channel, database, **changes)

    async def listen(*, breaks: bool) -> int:
        view, snapshots = View(), 0
        while True:
            async with grpc.aio.insecure_channel(address) as channel:
                talk = Conversation(Wire(channel, database), database, deepcopy(view))
                for number, target in WATCHED.items():
                    resume = {"resume_token": view.token} if view.token else {}
                    await talk.follow(number, **target, **resume)
                talk.view.current.clear()
                left = numbers.randrange(50, 1_000) if breaks and not done.is_set() else 10**9
                while left > 0:
                    left -= 1
                    try:
                        consistent = is_consistent(await talk.next(0.5))
                    except TimeoutError:
                        if done.is_set() and agrees(view, store.now()):
                            await talk.close()
                            return snapshots
                        continue
                    if consistent and talk.view.current == set(WATCHED):
                        view, snapshots = deepcopy(talk.view), snapshots + 1
                        assert agrees(view, view.read_time)
                await talk.close()

    listeners = [asyncio.create_task(listen(breaks=bool(number % 2))) for number in range(4)]
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(write(channel) for _ in range(200)))
    done.set()
    async with asyncio.timeout(60):
        assert sum(await asyncio.gather(*listeners)) > 20


async def test_a_slow_reader_finds_the_newest_state(server: tuple[Counted, str]) -> None:
    """What waits for it is what gRPC has in flight, not every change."""
    store, address = server
    padding = "x" * 50_000
    async with grpc.aio.insecure_channel(address) as channel:
        talk = Conversation(Wire(channel, store.database), store.database)
        await talk.follow(2, collection())
        await talk.snapshot()
        for n in range(2_000):
            store.apply_commit([Write(f"c/d{n % 10}", {"n": n, "padding": padding})])
            if n % 10 == 9:
                await asyncio.sleep(0.001)
        await talk.until(2, {f"d{n % 10}": n for n in range(1_990, 2_000)})
        sent = sum(frame.WhichOneof("response_type") == "document_change" for frame in talk.frames)
        assert sent < 1_000, "half of the commits, that is, were never sent"
        await talk.close()


VANISHING = """
import sys, time, grpc
from google.cloud.firestore_v1 import types
address, database, quiet = sys.argv[1:]
request = types.ListenRequest(
    database=database,
    add_target={"target_id": 2, "query": {
        "parent": database + "/documents",
        "structured_query": {"from_": [{"collection_id": "c"}]},
    }},
)
def requests():
    yield types.ListenRequest.pb(request).SerializeToString()
    time.sleep(60)
channel = grpc.insecure_channel(address)
for frame in channel.stream_stream("/google.firestore.v1.Firestore/Listen")(requests()):
    response = types.ListenResponse.pb().FromString(frame)
    if quiet == "no" or response.target_change.target_change_type == 3:
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("quiet", ["yes", "no"])
async def test_a_client_that_vanishes(server: tuple[Counted, str], quiet: str) -> None:
    """Killed while it waits for news, and in the middle of a large result."""
    store, address = server
    padding = "x" * (10 if quiet == "yes" else 300_000)
    for n in range(100):
        store.apply_commit([Write(f"c/{n}", {"n": n, "padding": padding})])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", VANISHING, address, store.database.name, quiet,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            assert await process.stdout.readline() == b"ready\n"
        await asyncio.sleep(0.2)
        assert store.watchers == 1
    finally:
        process.kill()
        await process.wait()
    await store.watched_by(0)
    store.apply_commit([Write("c/0", {"n": 1})])


async def test_cancelled_and_bad_streams_leave_the_others(server: tuple[Counted, str]) -> None:
    store, address = server
    async with grpc.aio.insecure_channel(address) as channel:
        talks = [Conversation(Wire(channel, store.database), store.database) for _ in range(3)]
        for talk in talks:
            await talk.follow(2, collection())
            await talk.snapshot()
        await talks[0].close()
        await talks[1].line.send(b"\xff")
        ended = await talks[1].ended()
        assert ended.code == "INVALID_ARGUMENT"
        store.apply_commit([Write("c/a", {"n": 1})])
        await talks[2].until(2, {"a": 1})
        await store.watched_by(1)
        await talks[2].line.done()
        assert (await talks[2].ended()).code == "OK"


async def test_a_thousand_targets(server: tuple[Counted, str]) -> None:
    store, address = server
    async with grpc.aio.insecure_channel(address) as channel:
        talk = Conversation(Wire(channel, store.database), store.database)
        for number in range(1, 1_001):
            await talk.follow(number, documents=[f"c/{number}"])
        while len(talk.view.refused) < 1_000 - MAX_TARGETS or len(talk.view.current) < MAX_TARGETS:
            await talk.next()
        code, message = talk.view.refused[1_000]
        assert grpc.StatusCode.RESOURCE_EXHAUSTED.value[0] == code
        assert f"at most {MAX_TARGETS} targets" in message
        await talk.close()
