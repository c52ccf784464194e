import asyncio
import os
import signal
import stat
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from crossfade import embedded
from crossfade.document import Database, Document, Fields, GeoPoint, Reference, identical
from crossfade.embedded import (
    EmbeddedError,
    EmbeddedFirestore,
    Saver,
    read_snapshot,
    snapshot,
    write_snapshot,
)
from crossfade.stores.firestore import connect
from crossfade.stores.memory import MemoryStores
from crossfade.write import Write

ONE, OTHER = Database("violet"), Database("violet", "archive")
FIELDS: Fields = {
    "null": None,
    "nan": float("nan"),
    "minus": -0.0,
    "big": -(2**63),
    "text": "a\0b 日本 \U0001f3b5",
    "bytes": b"\xff\0",
    "time": datetime(1, 1, 1, 0, 0, 0, 1, UTC),
    "place": GeoPoint(-90.0, 180.0),
    "reference": Reference(ONE.full("tasks/1")),
    "nested": {"list": [1, 1.0, {"empty": {}}], "odd name": []},
}


def filled() -> MemoryStores:
    stores = MemoryStores()
    stores(ONE).load(
        [Document("tasks/1", FIELDS, 5, 7), Document("tasks/1/chunks/__id7__", {}, 6, 6)]
    )
    stores(OTHER).load([Document("tasks/1", {"other": True}, 1, 2)])
    return stores


def test_a_snapshot_keeps_every_value_time_and_database(tmp_path: Path):
    file = tmp_path / "deep" / "documents.data"
    write_snapshot(file, snapshot(filled()))

    stores = MemoryStores()
    assert read_snapshot(file, stores) == 3

    for before, after in zip(filled(), stores, strict=True):
        assert before.database == after.database
        pairs = list(zip(before.dump(), after.dump(), strict=True))
        assert pairs
        for left, right in pairs:
            assert (left.path, left.create_time, left.update_time) == (
                right.path,
                right.create_time,
                right.update_time,
            )
            assert identical(left.fields, right.fields)


def test_no_file_is_an_empty_start(tmp_path: Path):
    assert read_snapshot(tmp_path / "none", MemoryStores()) == 0


@pytest.mark.parametrize("cut", [1, 3, 20])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, cut: int):
    file = tmp_path / "documents.data"
    write_snapshot(file, snapshot(filled()))
    file.write_bytes(file.read_bytes()[:-cut])

    with pytest.raises(EmbeddedError, match=r"damaged after 2 documents; move it away"):
        read_snapshot(file, MemoryStores())


def test_another_file_is_refused_and_left_alone(tmp_path: Path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")

    with pytest.raises(EmbeddedError, match="is not a snapshot"):
        read_snapshot(file, MemoryStores())
    assert file.read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path):
    file = tmp_path / "documents.data"
    write_snapshot(file, [b"old"])
    before = file.read_bytes()

    def failing():
        yield b"new"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_snapshot(file, failing())

    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_only_the_owner_may_read_the_documents(tmp_path: Path):
    file = tmp_path / "documents.data"
    write_snapshot(file, [])

    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_what_did_not_change_is_not_saved_again(tmp_path: Path):
    stores, file = filled(), tmp_path / "documents.data"
    saver = Saver(stores, file)
    assert not await saver.save()

    await stores(ONE).commit([Write("tasks/2", {"a": 1})], timeout=1)
    assert await saver.save()
    assert not await saver.save()
    await stores(ONE).commit([Write("tasks/2", None)], timeout=1)
    assert await saver.save()

    again = MemoryStores()
    assert read_snapshot(file, again) == 3


async def test_times_go_on_after_a_load(tmp_path: Path):
    file = tmp_path / "documents.data"
    late = 2**50
    stores = MemoryStores()
    stores(ONE).load([Document("tasks/1", {}, late, late)])
    write_snapshot(file, snapshot(stores))

    again = MemoryStores()
    read_snapshot(file, again)
    outcome = await again(ONE).commit([Write("tasks/1", {"a": 1})], timeout=1)

    assert outcome.commit_time > late


# --- as a process of its own -------------------------------------------------------------------


async def put(address: str, path: str, number: int) -> None:
    store = connect(ONE, address)
    try:
        await store.commit([Write(path, {"number": number})], timeout=5)
    finally:
        await store.close()


async def held(address: str, path: str) -> bool:
    store = connect(ONE, address)
    try:
        return (await store.get([path], timeout=5)).documents[0].data is not None
    finally:
        await store.close()


async def gone(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        await asyncio.sleep(0.1)
    return False


async def test_a_second_start_has_the_documents_of_the_first(tmp_path: Path):
    file = tmp_path / "documents.data"
    async with EmbeddedFirestore(data_file=file) as firestore:
        await put(firestore.address, "tasks/1", 1)
        pid = firestore.pid
        assert pid is not None
        with pytest.raises(EmbeddedError, match="in use by another crossfade"):
            await EmbeddedFirestore(data_file=file).start()
    assert await gone(pid)

    async with EmbeddedFirestore(data_file=file) as firestore:
        assert await held(firestore.address, "tasks/1")
        assert not await held(firestore.address, "tasks/2")


async def test_a_killed_one_has_what_was_saved_before(tmp_path: Path, monkeypatch):
    file = tmp_path / "documents.data"
    firestore = EmbeddedFirestore(data_file=file)
    await firestore.start()
    await put(firestore.address, "tasks/1", 1)
    for _ in range(100):
        if file.exists():
            break
        await asyncio.sleep(0.1)
    assert firestore.pid is not None
    os.kill(firestore.pid, signal.SIGKILL)
    await firestore.stop()

    async with EmbeddedFirestore(data_file=file) as again:
        assert await held(again.address, "tasks/1")


async def test_it_ends_with_its_parent():
    """The parent's end of stdin closes, whatever ended the parent."""
    firestore = EmbeddedFirestore()
    await firestore.start()
    pid, process = firestore.pid, firestore._process
    assert pid is not None
    assert process is not None
    assert process.stdin is not None

    process.stdin.close()

    assert await gone(pid)
    assert await process.wait() == 0
    await firestore.stop()


async def test_a_taken_port_is_named():
    async with EmbeddedFirestore() as firestore:
        port = int(firestore.address.rpartition(":")[2])
        with pytest.raises(EmbeddedError, match=str(port)):
            await EmbeddedFirestore(port).start()


async def test_one_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(embedded, "START_SECONDS", 0.01)
    firestore = EmbeddedFirestore()

    with pytest.raises(EmbeddedError, match="did not answer"):
        await firestore.start()

    assert firestore.pid is None
