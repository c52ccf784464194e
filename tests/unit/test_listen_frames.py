"""The Listen method over the in-memory store, without gRPC: frames, resuming, and how much
is read, sent and kept."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import pytest_asyncio
from google.cloud.firestore_v1 import types
from google.protobuf.timestamp_pb2 import Timestamp

from crossfade import wire
from crossfade.document import Database
from crossfade.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unavailable
from crossfade.query import Query
from crossfade.rpc.firestore_v1.listen import MAX_TARGETS, Listen
from crossfade.rpc.firestore_v1.listen_targets import MAX_TOUCHED
from crossfade.store import NOW, At, Page, Reading
from crossfade.stores.memory import MemoryStore
from crossfade.write import Write
from tests.listening import (
    Conversation,
    Direct,
    Ended,
    View,
    by,
    collection,
    described,
    is_consistent,
    where,
)

DATABASE = Database("p")


class Watched(MemoryStore):
    """Counts what is read and who watches. `reading` is called before every read."""

    def __init__(self, database: Database = DATABASE) -> None:
        super().__init__(database)
        self.gets: list[list[str]] = []
        self.queries = 0
        self.watchers = 0
        self.reading: Callable[[At], None] = lambda _: None

    async def get(self, paths: Sequence[str], *, at: At = NOW, **options: Any) -> Reading:
        self.gets.append(list(paths))
        self.reading(at)
        return await super().get(paths, at=at, **options)

    async def query(self, query: Query, *, timeout: float, at: At = NOW) -> AsyncIterator[Page]:
        self.queries += 1
        self.reading(at)
        async for page in super().query(query, timeout=timeout, at=at):
            yield page

    def subscribe(self, watcher: Callable[[int, Sequence[str]], None]) -> Callable[[], None]:
        self.watchers += 1
        end = super().subscribe(watcher)

        def ended() -> None:
            self.watchers -= 1
            end()

        return ended

    def put(self, **documents: int | None) -> int:
        """Sets the field n of documents of c, or deletes them, in one commit."""
        writes = [
            Write(f"c/{name}", None if n is None else {"n": n}) for name, n in documents.items()
        ]
        return self.apply_commit(writes).commit_time


@pytest.fixture
def store() -> Watched:
    return Watched()


class Desk:
    """Opens streams on one Listen and closes them all in the end."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.listen = Listen(lambda _: store)
        self._open: list[Conversation] = []

    def open(self, view: View | None = None) -> Conversation:
        made = Conversation(Direct(self.listen), self.store.database, view)
        self._open.append(made)
        return made

    async def close(self) -> None:
        for conversation in self._open:
            await conversation.close()


@pytest_asyncio.fixture
async def desk(store: Watched) -> AsyncIterator[Desk]:
    made = Desk(store)
    yield made
    await made.close()
    assert store.watchers == 0


def described_all(conversation: Conversation) -> list[str]:
    return [described(frame) for frame in conversation.frames]


# --- what is said, in which order --------------------------------------------------------------


async def test_a_query_from_the_first_frame_on(store: Watched, desk: Desk) -> None:
    store.put(a=1, b=2)
    talk = desk.open()
    await talk.follow(7, collection())
    await talk.snapshot()
    assert described_all(talk) == [
        "ADD 7",
        "CHANGE c/a=1 7",
        "CHANGE c/b=2 7",
        "CURRENT 7",
        "NO_CHANGE",
    ]
    current, consistent = (frame.target_change for frame in talk.frames[-2:])
    assert current.resume_token == consistent.resume_token != b""
    assert current.read_time == consistent.read_time
    store.put(a=3, b=None)
    assert await talk.quiet() == ["CHANGE c/a=3 7", "DELETE c/b 7", "NO_CHANGE"]
    await talk.ask(remove_target=7)
    store.put(a=4)
    assert await talk.quiet() == ["REMOVE 7"]
    assert not talk.view.refused


async def test_documents_missing_ones_too(store: Watched, desk: Desk) -> None:
    store.put(a=1)
    talk = desk.open()
    await talk.follow(2, documents=["c/x", "c/a", "c/x"])
    await talk.snapshot()
    assert described_all(talk) == [
        "ADD 2",
        "DELETE c/x 2",
        "CHANGE c/a=1 2",
        "CURRENT 2",
        "NO_CHANGE",
    ]
    store.put(x=1, a=None)
    assert await talk.quiet() == ["DELETE c/a 2", "CHANGE c/x=1 2", "NO_CHANGE"]
    store.put(a=None, other=1)
    assert await talk.quiet() == []


async def test_a_document_that_no_longer_matches_is_removed(store: Watched, desk: Desk) -> None:
    store.put(a=1, b=2)
    talk = desk.open()
    await talk.follow(2, collection(where=where("GREATER_THAN", 1)))
    await talk.snapshot()
    store.put(b=0)
    assert await talk.quiet() == ["REMOVE c/b 2", "NO_CHANGE"]
    store.put(b=5, a=6)
    assert await talk.quiet() == ["CHANGE c/a=6 2", "CHANGE c/b=5 2", "NO_CHANGE"]
    store.put(b=None)
    assert await talk.quiet() == ["DELETE c/b 2", "NO_CHANGE"]
    store.put(c=0)
    assert await talk.quiet() == []


@pytest.mark.parametrize("direction", ["ASCENDING", "DESCENDING"])
async def test_limits_let_in_and_push_out(store: Watched, desk: Desk, direction: str) -> None:
    sign = 1 if direction == "ASCENDING" else -1
    store.put(a=sign, b=2 * sign, c=3 * sign)
    talk = desk.open()
    await talk.follow(2, collection(order_by=by(direction=direction), limit=2))
    await talk.until(2, {"a": sign, "b": 2 * sign})
    store.put(c=0)
    assert await talk.quiet() == ["CHANGE c/c=0 2", "REMOVE c/b 2", "NO_CHANGE"]
    store.put(a=None)
    assert await talk.quiet() == [f"CHANGE c/b={2 * sign} 2", "DELETE c/a 2", "NO_CHANGE"]


async def test_offsets_and_projections(store: Watched, desk: Desk) -> None:
    store.apply_commit([Write("c/a", {"n": 1, "m": 1}), Write("c/b", {"n": 2, "m": 1})])
    talk = desk.open()
    await talk.follow(2, collection(offset=1))
    await talk.follow(4, collection(select={"fields": [{"field_path": "m"}]}))
    await talk.snapshot()
    assert talk.view.ids(2) == {"b": 2}
    assert talk.view.ids(4) == {"a": 0, "b": 0}
    store.apply_commit([Write("c/0", {"n": 0, "m": 5})])
    await talk.until(2, {"a": 1, "b": 2})
    (added,) = [f.document_change.document for f in talk.frames if "c/0" in described(f)]
    assert list(added.fields) == ["m"]


async def test_collection_groups_parents_and_everything_below(store: Watched, desk: Desk) -> None:
    paths = ["c/a", "c/a/c/b", "x/y/c/d", "c/a/z/e"]
    store.apply_commit([Write(path, {"n": 1}) for path in paths])
    talk = desk.open()
    await talk.follow(2, {"from_": [{"collection_id": "c", "all_descendants": True}]})
    await talk.follow(4, {"from_": [{"all_descendants": True}]})
    await talk.ask(
        add_target={
            "target_id": 6,
            "query": {
                "parent": DATABASE.full("c/a"),
                "structured_query": {"from_": [{"all_descendants": True}]},
            },
        }
    )
    await talk.snapshot()
    for n in (2, 3):
        assert sorted(talk.view.targets[2]) == ["c/a", "c/a/c/b", "x/y/c/d"]
        assert sorted(talk.view.targets[4]) == sorted(paths)
        assert sorted(talk.view.targets[6]) == ["c/a/c/b", "c/a/z/e"]
        store.apply_commit([Write(path, {"n": n}) for path in paths])
        assert len(await talk.quiet()) == 3 + 4 + 2 + 1


async def test_targets_of_one_stream_are_consistent_together(store: Watched, desk: Desk) -> None:
    store.put(a=1)
    talk = desk.open()
    await talk.follow(2, collection())
    await talk.follow(4, documents=["c/a"])
    await talk.snapshot()
    assert talk.view.current == {2, 4}
    store.put(a=2)
    assert await talk.quiet() == ["CHANGE c/a=2 2", "CHANGE c/a=2 4", "NO_CHANGE"]


async def test_once(store: Watched, desk: Desk) -> None:
    store.put(a=1)
    talk = desk.open()
    await talk.follow(2, collection(), once=True)
    assert await talk.quiet() == ["ADD 2", "CHANGE c/a=1 2", "CURRENT 2", "NO_CHANGE", "REMOVE 2"]
    store.put(a=2)
    assert await talk.quiet() == []
    await talk.follow(2, collection())
    assert (await talk.snapshot()).ids(2) == {"a": 2}


async def test_no_documents_at_all(store: Watched, desk: Desk) -> None:
    talk = desk.open()
    await talk.follow(2, documents=[])
    await talk.follow(4, collection())
    await talk.snapshot()
    assert talk.view.current == {2, 4}


async def test_what_was_asked_before_the_half_closed_is_answered(
    store: Watched, desk: Desk
) -> None:
    store.put(a=1)
    talk = desk.open()
    await talk.follow(2, collection())
    await talk.line.done()
    assert (await talk.ended()).code == "OK"
    assert described_all(talk) == ["ADD 2", "CHANGE c/a=1 2", "CURRENT 2", "NO_CHANGE"]


async def test_a_stream_without_news_ends_with_its_client(store: Watched, desk: Desk) -> None:
    talk = desk.open()
    await talk.follow(2, collection())
    await talk.snapshot()
    await talk.quiet(0.05)
    await talk.line.done()
    assert (await talk.ended()).code == "OK"
    assert store.watchers == 0


async def test_nothing_asked() -> None:
    talk = Conversation(Direct(Listen(lambda _: Watched())), DATABASE)
    await talk.line.done()
    assert (await talk.ended()).code == "OK"


# --- ids and refusals --------------------------------------------------------------------------


async def test_the_server_chooses_ids(store: Watched, desk: Desk) -> None:
    talk = desk.open()
    await talk.follow(1, collection())
    await talk.snapshot()
    await talk.follow(0, collection())
    await talk.follow(0, documents=["c/a"])
    await talk.snapshot()
    assert talk.view.current == {1, 2, 3}
    await talk.follow(9, collection())
    code, message = await talk.removed(9)
    assert code == 3
    assert "target_id" in message


@pytest.mark.parametrize(
    ("number", "target", "reason"),
    [
        (4, {"documents": ["c"]}, "collection"),
        (4, {"documents": ["c/__x__"]}, "reserved"),
        (4, {"query": collection(limit=-1)}, "limit"),
        (4, {"query": collection(where=where("OPERATOR_UNSPECIFIED", 1))}, "op"),
        (4, {"query": {"from_": [{"collection_id": "c"}] * 2}}, "from"),
        (4, {"query": collection(), "resume_token": b"x", "expected_count": 1, "once": True}, ""),
        (4, {}, "documents"),
        (0, {}, "documents"),
        (-1, {"query": collection()}, "negative"),
        (4, {"query": collection(), "read_time": {"nanos": -5}}, "read_time"),
    ],
)
async def test_a_bad_target_ends_and_the_stream_goes_on(
    store: Watched, desk: Desk, number: int, target: dict[str, Any], reason: str
) -> None:
    store.put(a=1)
    talk = desk.open()
    await talk.follow(2, collection())
    await talk.snapshot()
    await talk.follow(number, **target)
    code, message = await talk.removed(number or 1)
    if reason:
        assert code == 3
        assert reason in message
    store.put(a=2)
    assert (await talk.until(2, {"a": 2})).current == {2}


async def test_targets_of_another_database(store: Watched, desk: Desk) -> None:
    other = Database("q")
    talk = desk.open()
    await talk.ask(add_target={"target_id": 2, "documents": {"documents": [other.full("c/a")]}})
    assert (await talk.removed(2))[0] == 3
    query = {"parent": other.root, "structured_query": collection()}
    await talk.ask(add_target={"target_id": 2, "query": query})
    assert (await talk.removed(2))[0] == 3


async def test_what_is_nearest_is_not_listened_to(store: Watched, desk: Desk) -> None:
    talk = desk.open()
    nearest = {
        "vector_field": {"field_path": "v"},
        "query_vector": {"map_value": {}},
        "distance_measure": 1,
        "limit": 1,
    }
    await talk.follow(2, collection(find_nearest=nearest))
    assert (await talk.removed(2))[0] == 12


async def test_an_id_in_use(store: Watched, desk: Desk) -> None:
    """The client hears that there is no such target, so there is none."""
    talk = desk.open()
    await talk.follow(2, collection())
    await talk.snapshot()
    await talk.follow(2, documents=["c/a"])
    assert await talk.removed(2) == (6, "Target ID already exists: 2")
    store.put(a=1)
    assert await talk.quiet() == []
    await talk.follow(2, collection())
    assert (await talk.snapshot()).ids(2) == {"a": 1}


async def test_more_targets_than_a_stream_holds(store: Watched, desk: Desk) -> None:
    talk = desk.open()
    for number in range(1, 1_001):
        await talk.follow(number, documents=[f"c/{number}"])
    while len(talk.view.refused) < 1_000 - MAX_TARGETS:
        await talk.next()
    while len(talk.view.current) < MAX_TARGETS:
        await talk.next()
    assert min(talk.view.refused) == MAX_TARGETS + 1
    code, message = talk.view.refused[1_000]
    assert code == 8
    assert f"at most {MAX_TARGETS} targets" in message
    await talk.ask(remove_target=1)
    await talk.follow(1_001, documents=["c/a"])
    store.put(a=1)
    await talk.until(1_001, {"a": 1})


@pytest.mark.parametrize(
    "request_bytes", [b"", b"\xff\xff", b"\x0a\x03abc", b"\x0a\x18projects/p/databases/"]
)
async def test_requests_that_end_the_stream(store: Watched, request_bytes: bytes) -> None:
    line = Direct(Listen(lambda _: store))
    await line.send(request_bytes)
    with pytest.raises(InvalidArgument):
        await line.receive()
    with pytest.raises(Ended):
        await line.receive()


async def test_a_later_request_that_ends_the_stream(store: Watched) -> None:
    for later in ({}, {"database": "projects/q/databases/d", "remove_target": 1}):
        line = Direct(Listen(lambda _: store))
        talk = Conversation(line, DATABASE)
        await talk.follow(2, collection())
        await talk.snapshot()
        if later:
            talk.database = Database("q")
        await talk.ask(**{k: v for k, v in later.items() if k != "database"})
        with pytest.raises(InvalidArgument):
            await talk.next()
        assert store.watchers == 0


# --- resuming ----------------------------------------------------------------------------------


async def gone_away(desk: Desk, number: int = 2, **target: Any) -> View:
    """What a client knows that listened for a while and went away."""
    talk = desk.open()
    await talk.follow(number, **target)
    await talk.snapshot()
    await talk.close()
    return talk.view


TARGETS: list[dict[str, Any]] = [
    {"query": collection()},
    {"query": collection(order_by=by(), limit=2)},
    {"documents": ["c/a", "c/b", "c/x"]},
]


def point(view: View, how: str) -> dict[str, Any]:
    """Where a view stands, as a target says it."""
    if how == "token":
        return {"resume_token": view.token}
    return {
        "read_time": Timestamp(
            nanos=view.read_time % 1_000_000 * 1_000, seconds=view.read_time // 1_000_000
        )
    }


@pytest.mark.parametrize("how", ["token", "time"])
@pytest.mark.parametrize("target", TARGETS)
async def test_resuming_sends_what_changed(
    store: Watched, desk: Desk, target: dict[str, Any], how: str
) -> None:
    store.put(a=1, b=2)
    view = await gone_away(desk, **target)
    store.put(a=3)
    store.put(a=0, b=None)
    talk = desk.open(view)
    await talk.follow(2, **target, **point(view, how))
    await talk.snapshot()
    assert described_all(talk) == [
        "ADD 2",
        "CHANGE c/a=0 2",
        "DELETE c/b 2",
        "CURRENT 2",
        "NO_CHANGE",
    ]
    assert view.ids(2) == {"a": 0}
    store.put(a=7)
    await talk.until(2, {"a": 7})


@pytest.mark.parametrize("how", ["token", "time"])
async def test_resuming_when_nothing_changed(store: Watched, desk: Desk, how: str) -> None:
    store.put(a=1)
    view = await gone_away(desk, query=collection())
    store.apply_commit([Write("d/other", {})])
    talk = desk.open(view)
    await talk.follow(2, collection(), **point(view, how), expected_count=1)
    await talk.snapshot()
    assert described_all(talk) == ["ADD 2", "CURRENT 2", "NO_CHANGE"]


async def test_a_token_is_good_in_the_middle_of_changes(store: Watched, desk: Desk) -> None:
    """The token that came with CURRENT is resumed as well as one of a consistent stream."""
    store.put(a=1)
    talk = desk.open()
    await talk.follow(2, collection())
    while not talk.view.current:
        frame = await talk.next()
    talk.view.token = frame.target_change.resume_token
    await talk.close()
    store.put(b=2)
    again = desk.open(talk.view)
    await again.follow(2, collection(), resume_token=talk.view.token)
    assert (await again.snapshot()).ids(2) == {"a": 1, "b": 2}
    assert "CHANGE c/a=1 2" not in described_all(again)


@pytest.mark.parametrize("how", ["token", "time"])
async def test_resuming_long_ago_begins_again(store: Watched, desk: Desk, how: str) -> None:
    store.put(a=1, b=1)
    view = await gone_away(desk, query=collection())
    left_at = view.read_time
    store.put(b=None)

    def forgotten(at: At) -> None:
        if at.read_time is not None and at.read_time <= left_at:
            raise FailedPrecondition("too old")

    store.reading = forgotten
    talk = desk.open(view)
    await talk.follow(2, collection(), **point(view, how), expected_count=2)
    await talk.snapshot()
    assert described_all(talk) == ["ADD 2", "RESET 2", "CHANGE c/a=1 2", "CURRENT 2", "NO_CHANGE"]
    assert view.ids(2) == {"a": 1}


@pytest.mark.parametrize("wrong", ["another server", "another database", "junk", "later"])
async def test_tokens_from_elsewhere_begin_again(store: Watched, desk: Desk, wrong: str) -> None:
    store.put(a=1)
    view = await gone_away(desk, query=collection())
    resume: dict[str, Any] = {"resume_token": view.token}
    if wrong == "another server":
        desk.listen = Listen(lambda _: store)
    elif wrong == "another database":
        elsewhere = Desk(Watched(Database("q")))
        desk.listen = elsewhere.listen = Listen(
            {DATABASE: store, elsewhere.store.database: elsewhere.store}.__getitem__
        )
        resume["resume_token"] = (await gone_away(elsewhere, query=collection())).token
    elif wrong == "junk":
        resume["resume_token"] = view.token[:-1]
    else:
        resume = {"read_time": Timestamp(seconds=view.read_time // 1_000_000 + 100)}
    talk = desk.open(view)
    await talk.follow(2, collection(), **resume)
    await talk.snapshot()
    assert described_all(talk) == ["ADD 2", "RESET 2", "CHANGE c/a=1 2", "CURRENT 2", "NO_CHANGE"]


@pytest.mark.parametrize("target", [{"query": collection()}, {"documents": ["c/a", "c/b", "c/x"]}])
async def test_a_client_that_knows_another_number_of_documents_is_told(
    store: Watched, desk: Desk, target: dict[str, Any]
) -> None:
    store.put(a=1, b=1)
    view = await gone_away(desk, **target)
    store.put(b=None)
    talk = desk.open(view)
    await talk.follow(2, **target, resume_token=view.token, expected_count=3)
    await talk.snapshot()
    assert described_all(talk) == [
        "ADD 2",
        "DELETE c/b 2",
        "FILTER 2 count=1",
        "CURRENT 2",
        "NO_CHANGE",
    ]


async def test_disconnected_again_and_again(store: Watched, desk: Desk) -> None:
    """At any frame: what is resumed from the last consistent state misses nothing, and tells
    only of what is not as it was then."""
    numbers = random.Random(7)
    store.put(**{f"d{n}": n for n in range(20)})
    targets: dict[int, dict[str, Any]] = {
        2: {"query": collection()},
        4: {"query": collection(order_by=by(direction="DESCENDING"), limit=5)},
        6: {"query": collection(where=where("LESS_THAN", 50))},
        8: {"documents": [f"c/d{n}" for n in range(0, 40, 3)]},
    }
    view, snapshots = View(), 0
    for _ in range(60):
        talk = desk.open(deepcopy(view))
        talk.view.current.clear()
        for number, target in targets.items():
            resume = {"resume_token": view.token} if view.token else {}
            await talk.follow(number, **target, **resume)
        for _ in range(numbers.randrange(120)):
            if numbers.random() < 0.3:
                store.put(**{f"d{numbers.randrange(40)}": numbers.choice([None, *range(100)])})
            try:
                frame = await talk.next(0.02)
            except TimeoutError:
                continue
            if frame.WhichOneof("response_type") == "document_change":
                change = frame.document_change
                known = view.targets.get(change.target_ids[0], {}).get(
                    change.document.name.partition("/documents/")[2]
                )
                assert known is None or known[0] != change.document.update_time.ToMicroseconds()
            if is_consistent(frame) and talk.view.current == set(targets):
                view, snapshots = deepcopy(talk.view), snapshots + 1
                assert_state(store, view, targets)
        await talk.close()
    assert snapshots > 100


def assert_state(store: MemoryStore, view: View, targets: dict[int, dict[str, Any]]) -> None:
    """That the view is the store's state at the view's time, target by target."""
    for number, target in targets.items():
        if "documents" in target:
            continue
        request = types.StructuredQuery.pb(types.StructuredQuery(target["query"]))
        query = wire.decode_query(request, "", store.database)
        found = store.run(query, At(read_time=view.read_time))
        expected = {document.path: document.update_time for document in found}
        assert {path: time for path, (time, _) in view.targets[number].items()} == expected
    everything = store.run(Query(collection="c"), At(read_time=view.read_time))
    times = {document.path: document.update_time for document in everything}
    for number, target in targets.items():
        if "documents" in target:
            there = {path: times[path] for path in target["documents"] if path in times}
            assert {path: time for path, (time, _) in view.targets[number].items()} == there
            assert view.missing[number] == set(target["documents"]) - set(there)


# --- how much is read, sent and kept -----------------------------------------------------------


async def test_commits_elsewhere_cost_nothing(store: Watched, desk: Desk) -> None:
    store.put(a=1)
    talk = desk.open()
    await talk.follow(2, collection(limit=5))
    await talk.follow(4, {"from_": [{"collection_id": "c", "all_descendants": True}], "limit": 5})
    await talk.follow(6, documents=["c/b"])
    await talk.snapshot()
    read = store.queries, len(store.gets)
    elsewhere = ["d/a", "d/c", "d/c/e/f"]
    store.apply_commit([Write(path, {"n": 1}) for path in elsewhere])
    assert await talk.quiet() == []
    assert (store.queries, len(store.gets)) == read
    store.apply_commit([Write("x/y/c/z", {"n": 1})])
    assert len(await talk.quiet()) == 2
    assert (store.queries, len(store.gets)) == (read[0] + 1, read[1])


async def test_only_what_was_touched_is_read(store: Watched, desk: Desk) -> None:
    store.put(**{f"d{n}": n for n in range(100)})
    talk = desk.open()
    await talk.follow(2, collection(where=where("GREATER_THAN", 50), order_by=by()))
    await talk.snapshot()
    store.put(d3=99, d80=1, new=7)
    assert len(await talk.quiet()) == 3
    store.put(d4=98)
    assert await talk.quiet() == ["CHANGE c/d4=98 2", "NO_CHANGE"]
    assert store.queries == 1
    assert store.gets == [["c/d3", "c/d80", "c/new"], ["c/d4"]]


async def test_a_commit_of_many_documents_is_read_as_a_whole(store: Watched, desk: Desk) -> None:
    talk = desk.open()
    await talk.follow(2, collection())
    await talk.snapshot()
    store.put(**{f"d{n}": n for n in range(MAX_TOUCHED + 1)})
    await talk.snapshot()
    assert len(talk.view.ids(2)) == MAX_TOUCHED + 1
    assert (store.queries, store.gets) == (2, [])


async def test_a_slow_reader_finds_the_newest_state(store: Watched, desk: Desk) -> None:
    """While nothing is received nothing is read, and what is kept does not grow."""
    targets: dict[int, dict[str, Any]] = {
        2: {"query": collection()},
        4: {"query": collection(limit=3)},
        6: {"documents": ["c/d0"]},
    }
    store.put(**{f"d{n}": 0 for n in range(10)})
    talk = desk.open()
    for number, target in targets.items():
        await talk.follow(number, **target)
    await talk.snapshot()
    reads = store.queries + len(store.gets)
    for commit in range(1, 5_001):
        store.put(**{f"d{commit % 10}": commit, f"gone{commit}": 1})
        store.put(**{f"gone{commit}": None})
        if commit % 100 == 0:
            await asyncio.sleep(0)
    assert store.queries + len(store.gets) == reads
    assert await talk.quiet() == [
        *(f"CHANGE c/d{n}={5_000 if n == 0 else 4_990 + n} 2" for n in range(10)),
        *(f"CHANGE c/d{n}={5_000 if n == 0 else 4_990 + n} 4" for n in range(3)),
        "CHANGE c/d0=5000 6",
        "NO_CHANGE",
    ]
    assert_state(store, talk.view, targets)


async def test_a_reader_so_slow_that_the_moment_is_gone(store: Watched, desk: Desk) -> None:
    """The targets that were not read yet are read at a later moment; the stream is called
    consistent only then."""
    store.put(a=1, b=1)
    talk = desk.open()
    await talk.follow(2, collection())
    await talk.follow(4, collection(where=where("LESS_THAN", 100)))
    for _ in range(3):
        await talk.next()  # ADD 2, ADD 4, and the first document
    store.put(a=2)
    oldest = store.now()

    def gone(at: At) -> None:
        if at.read_time is not None and at.read_time < oldest:
            raise FailedPrecondition("too old")

    store.reading = gone
    await talk.snapshot()
    assert talk.view.current == {2, 4}
    assert talk.view.ids(2) == talk.view.ids(4) == {"a": 2, "b": 1}
    assert sum(is_consistent(frame) for frame in talk.frames) == 1


async def test_changes_that_a_slow_reader_has_missed_are_read_later(
    store: Watched, desk: Desk
) -> None:
    store.put(a=1, b=1, c=1)
    talk = desk.open()
    await talk.follow(2, collection())
    await talk.follow(4, collection(where=where("LESS_THAN", 100)))
    await talk.snapshot()
    store.put(a=2)
    assert described(await talk.next()) == "CHANGE c/a=2 2"
    store.put(b=2)
    oldest = store.now()

    def gone(at: At) -> None:
        if at.read_time is not None and at.read_time < oldest:
            raise FailedPrecondition("too old")

    store.reading = gone
    await talk.snapshot()
    assert talk.view.ids(2) == talk.view.ids(4) == {"a": 2, "b": 2, "c": 1}
    assert store.queries == 2


async def test_a_target_that_is_too_long_ago_at_any_moment_ends(store: Watched, desk: Desk) -> None:
    """Also while others have news in every round."""
    store.put(a=0)
    talk = desk.open()
    await talk.follow(2, collection())
    await talk.follow(4, documents=["c/b"])

    def gone(_: At) -> None:
        if store.gets[-1:] == [["c/b"]]:
            raise FailedPrecondition("too old")

    store.reading = gone
    for n in range(1, 30):
        await talk.next()
        store.put(a=n)
    assert talk.view.refused == {4: (9, "too old")}
    await talk.until(2, {"a": 29})


async def test_a_stream_without_news_says_that_it_is_alive(store: Watched) -> None:
    talk = Conversation(Direct(Listen(lambda _: store, idle=0.05)), DATABASE)
    await talk.follow(2, collection())
    await talk.snapshot()
    first = talk.view.read_time, talk.view.token
    await talk.snapshot()
    assert described_all(talk)[-2:] == ["NO_CHANGE", "NO_CHANGE"]
    assert talk.view.read_time > first[0]
    assert talk.view.token != first[1]
    start, loop = len(talk.frames), asyncio.get_running_loop()
    until = loop.time() + 0.5
    while loop.time() < until:
        await talk.next()
    assert len(talk.frames) - start <= 0.5 / 0.05 + 2
    # Commits that change nothing of the target are no reason to say nothing.
    async with asyncio.timeout(10):
        pending = asyncio.ensure_future(talk.snapshot())
        while not pending.done():
            store.apply_commit([Write("c/x", None)])
            store.apply_commit([Write("d/x", {})])
            await asyncio.sleep(0.005)
    await talk.close()
    assert store.watchers == 0


async def test_no_targets_no_news(store: Watched) -> None:
    talk = Conversation(Direct(Listen(lambda _: store, idle=0.02)), DATABASE)
    await talk.ask(remove_target=9)
    assert await talk.quiet(0.2) == []
    await talk.close()
    assert store.watchers == 0


# --- when the store fails ----------------------------------------------------------------------


async def test_what_the_store_refuses_is_the_targets_error(store: Watched, desk: Desk) -> None:
    talk = desk.open()
    await talk.follow(2, collection())
    await talk.snapshot()

    def refused(_: At) -> None:
        raise PermissionDenied("not for you")

    store.reading = refused
    store.put(a=1)
    assert await talk.removed(2) == (7, "not for you")
    store.reading = lambda _: None
    await talk.follow(2, collection())
    assert (await talk.snapshot()).ids(2) == {"a": 1}


@pytest.mark.parametrize("error", [Unavailable("away"), ValueError("a defect")])
async def test_what_the_store_cannot_do_ends_the_stream(store: Watched, error: Exception) -> None:
    """And that stream alone. What it had told of is resumed."""
    listen = Listen(lambda _: store)
    talk, other = (Conversation(Direct(listen), DATABASE) for _ in range(2))
    await talk.follow(2, collection())
    await talk.snapshot()
    await other.follow(2, documents=["d/a"])
    await other.snapshot()

    def failing(_: At) -> None:
        raise error

    store.reading = failing
    store.put(a=1)
    with pytest.raises(type(error)):
        await talk.next()
    assert store.watchers == 1
    store.reading = lambda _: None
    again = Conversation(Direct(listen), DATABASE, talk.view)
    await again.follow(2, collection(), resume_token=talk.view.token)
    assert (await again.snapshot()).ids(2) == {"a": 1}
    store.apply_commit([Write("d/a", {"n": 1})])
    await other.until(2, {"a": 1})
    await again.close()
    await other.close()
    assert store.watchers == 0
