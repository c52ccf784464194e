"""Reads by path: lossless, of one moment, and honest about how fresh they are."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossfade.document import Document, identical
from crossfade.errors import InvalidArgument
from crossfade.mapping import CollectionMapping, Mappings
from crossfade.store import MirrorState, Stored
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.store import PostgresStore
from crossfade.wire import parse_document
from crossfade.write import Write
from tests import strategies
from tests.postgres_fixture import DATABASE, MakeLanes, MakeStore
from tests.unit.test_mapping import TABLE, documents
from violet.mapping import MAPPINGS

MAPPED = Mappings([CollectionMapping("everything", TABLE)])


async def put(store: PostgresStore, documents: dict[str, Any]) -> int:
    writes = [Write(path, fields) for path, fields in documents.items()]
    return (await store.commit(writes, timeout=10)).commit_time


async def get(store: PostgresStore, *paths: str) -> Sequence[Stored]:
    return (await store.get(paths, timeout=10)).documents


def document(stored: Stored) -> Document:
    assert stored.data is not None
    return parse_document(stored.data, DATABASE)


async def mark_pending(lanes: Lanes, path: str) -> None:
    parent = path.rpartition("/")[0]
    await lanes.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        values (gen_random_uuid(), $1, $2, $3, 1, now(), 'test')""",
        path,
        parent,
        parent.rpartition("/")[2],
        timeout=5,
    )


@pytest.mark.parametrize("mapped", [True, False])
async def test_every_document_comes_back(postgres_lanes: MakeLanes, mapped: bool):
    lanes = await postgres_lanes()
    if mapped:
        await create_schema(lanes, MAPPED)
    store = PostgresStore(lanes, MAPPED if mapped else Mappings(), DATABASE)
    loop = asyncio.get_running_loop()
    examples: list[tuple[str, dict[str, Any]]] = []

    @given(st.sampled_from(strategies.IDS), documents())
    @settings(max_examples=150, database=None, suppress_health_check=list(HealthCheck))
    def collect(name: str, fields: dict[str, Any]) -> None:
        examples.append((f"everything/{name}", fields))

    await loop.run_in_executor(None, collect)
    for path, fields in examples:
        await put(store, {path: fields})
        (alone,) = await get(store, path)
        (_, among, _) = await get(store, "everything/none", path, path)
        assert alone == among
        assert identical(document(alone).fields, fields)


async def test_a_missing_document_and_its_tombstone(make_store: MakeStore):
    store = await make_store(True)
    (never,) = await get(store, "tasks/1")
    assert never == Stored("tasks/1", None, None, None)
    await put(store, {"tasks/1": {"status": "done"}})
    deleted = await store.commit([Write("tasks/1", None)], timeout=5)
    (gone,) = await get(store, "tasks/1")
    assert gone == Stored("tasks/1", None, (0, deleted.commit_time), None)


async def test_times_and_versions(make_store: MakeStore):
    store = await make_store(True)
    first = await put(store, {"tasks/1": {"a": 1}})
    second = await put(store, {"tasks/1": {"a": 2}})
    (stored,) = await get(store, "tasks/1")
    assert stored.version == (0, second)
    assert (document(stored).create_time, document(stored).update_time) == (first, second)
    assert (await store.get(["tasks/1"], timeout=5)).read_time >= second


async def test_several_tables_in_the_order_asked_for(make_store: MakeStore):
    store = await make_store(True)
    contents = {
        "tasks/1": {"status": "done"},
        "notes/1": {"size": 1},
        "tasks/1/audio_chunks/1": {"n": 1},
        "users/1": {"email": "a"},
    }
    await put(store, contents)
    asked = ["notes/1", "tasks/1", "users/2", "users/1", "tasks/1/audio_chunks/1", "tasks/1"]
    found = await get(store, *asked)
    assert [stored.path for stored in found] == asked
    for stored in found:
        expected = contents.get(stored.path)
        assert (stored.data is None) == (expected is None)
        if expected is not None:
            assert identical(document(stored).fields, expected)


async def test_the_same_collection_id_below_a_document_is_another_collection(
    postgres_lanes: MakeLanes,
):
    lanes = await postgres_lanes()
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    await put(store, {"tasks/1": {"a": 1}, "tasks/1/tasks/1": {"a": 2}})
    one, other = await get(store, "tasks/1", "tasks/1/tasks/1")
    assert document(one).fields == {"a": 1}
    assert document(other).fields == {"a": 2}
    generic = await lanes.fetch("select path from crossfade.documents", timeout=5)
    assert [row["path"] for row in generic] == ["tasks/1/tasks/1"]


async def test_paths_with_control_characters(make_store: MakeStore):
    for mapped in (True, False):
        store = await make_store(mapped)
        paths = ["tasks/a\0b", "tasks/a\1b", "tasks/a\1\1b", "tasks/a\0b/sub\0/\1"]
        await put(store, {path: {"path": path} for path in paths})
        for stored in await get(store, *paths):
            assert document(stored).fields == {"path": stored.path}
            assert document(stored).path == stored.path


async def test_a_path_beyond_the_index_is_refused_by_name(make_store: MakeStore):
    store = await make_store(False)
    segments = [
        "".join(chr(0x4E00 + (i * 7919 + s) % 20_000) for i in range(499)) for s in range(4)
    ]
    with pytest.raises(InvalidArgument, match="path is too long"):
        await put(store, {"/".join(segments): {}})


async def test_no_paths_are_refused(make_store: MakeStore):
    store = await make_store(False)
    with pytest.raises(InvalidArgument):
        await store.get([], timeout=5)


# --- freshness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(
    ("row", "pending"),
    [
        ("tasks/1", True),
        ("tasks", True),
        ("", True),
        ("tasks/2", False),
        ("notes", False),
        ("tasks/1/chunks/1", False),
    ],
)
async def test_what_makes_a_read_pending(
    postgres_lanes: MakeLanes, mapped: bool, row: str, pending: bool
):
    lanes = await postgres_lanes()
    store = PostgresStore(lanes, MAPPINGS if mapped else Mappings(), DATABASE)
    await mark_pending(lanes, row)
    # The document is missing: that it is pending must be told all the same.
    for paths in (["tasks/1"], ["tasks/1", "tasks/3"], ["tasks/3", "other/1", "tasks/1"]):
        state = (await store.get(paths, timeout=5)).state
        assert state == MirrorState(0, 0, pending), paths
    await put(store, {"tasks/1": {}})
    state = (await store.get(["tasks/1"], timeout=5)).state
    assert state == MirrorState(0, 0, pending)


async def test_the_state_is_that_of_the_control_row(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes()
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    other = PostgresStore(lanes, MAPPINGS, DATABASE, group="other")
    await lanes.execute(
        """insert into crossfade.control (grp, stage, authority, epoch, generation)
        values ('default', 'shadow', 'firestore', 7, 3)""",
        timeout=5,
    )
    for paths in (["tasks/1"], ["tasks/1", "tasks/2"], ["tasks/1", "notes/1"]):
        assert (await store.get(paths, timeout=5)).state == MirrorState(7, 3, pending=False)
        assert (await other.get(paths, timeout=5)).state == MirrorState(0, 0, pending=False)


async def test_the_peer_time_is_told_of_its_own_version_only(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes()
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    time = await put(store, {"tasks/1": {"a": 1}})
    remember = """update crossfade.versions
        set peer_time = 5, peer_epoch = 0, peer_version = $1 where path = 'tasks/1'"""
    await lanes.execute(remember, time, timeout=5)
    assert (await get(store, "tasks/1"))[0].peer_time == 5
    await put(store, {"tasks/1": {"a": 2}})
    assert (await get(store, "tasks/1"))[0].peer_time is None


async def test_documents_of_one_call_are_of_one_moment(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=8)
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    paths = ["tasks/1", "users/1", "notes/1"]
    await put(store, {path: {"n": 0} for path in paths})
    stop = False

    async def write() -> None:
        number = 0
        while not stop:
            number += 1
            await put(store, {path: {"n": number} for path in paths})

    writer = asyncio.create_task(write())
    seen: set[Any] = set()
    while len(seen) < 5:
        fields = [document(stored).fields["n"] for stored in await get(store, *paths)]
        assert len(set(fields)) == 1
        seen.add(fields[0])
    stop = True
    await writer
