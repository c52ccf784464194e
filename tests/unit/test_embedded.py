import asyncio
import gc
import os
import signal
from pathlib import Path

import psutil
import pytest

from crossfade import embedded
from crossfade.document import Database
from crossfade.embedded import EmbeddedError, EmbeddedFirestore, lock, restore
from crossfade.journal import Journal
from crossfade.stores.firestore import connect
from crossfade.stores.memory import MemoryStores
from crossfade.write import Write

ONE = Database("violet")


def test_stores_are_filled_from_the_journal(tmp_path: Path):
    journal = Journal(tmp_path)
    restore(journal, MemoryStores())
    stores = MemoryStores(journal=journal.append)
    written = stores(ONE).apply_commit([Write("tasks/1", {"n": 1})])
    journal.close()

    again = MemoryStores()
    restore(Journal(tmp_path), again)
    document = again(ONE).read("tasks/1")
    assert (document.fields, document.update_time) == ({"n": 1}, written.commit_time)
    assert gc.isenabled()


def test_a_damaged_journal_makes_a_start_impossible(tmp_path: Path):
    (tmp_path / "journal-000001").write_text("mine")
    with pytest.raises(EmbeddedError, match="journal-000001 is damaged at byte 0"):
        restore(Journal(tmp_path), MemoryStores())
    assert gc.isenabled()


def test_a_directory_that_cannot_be_locked_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match="file cannot be used: File exists"):
        lock(tmp_path / "file" / "lock")


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
    async with EmbeddedFirestore(data_dir=tmp_path) as firestore:
        await put(firestore.address, "tasks/1", 1)
        pid = firestore.pid
        assert pid is not None
        with pytest.raises(EmbeddedError, match="in use by another crossfade"):
            await EmbeddedFirestore(data_dir=tmp_path).start()
    assert await gone(pid)

    async with EmbeddedFirestore(data_dir=tmp_path) as firestore:
        assert await held(firestore.address, "tasks/1")
        assert not await held(firestore.address, "tasks/2")


async def test_a_killed_one_leaves_its_directory_to_the_next(tmp_path: Path, capfd):
    firestore = EmbeddedFirestore(data_dir=tmp_path)
    await firestore.start()
    await put(firestore.address, "tasks/1", 1)
    assert firestore.pid is not None
    os.kill(firestore.pid, signal.SIGKILL)
    await firestore.stop()
    with (tmp_path / "journal-000001").open("ab") as journal:
        journal.write(b"\xff\xf5")

    async with EmbeddedFirestore(data_dir=tmp_path) as again:
        assert await held(again.address, "tasks/1")
    # What the child has to say before it is ready is passed on.
    assert "never acknowledged; dropped" in capfd.readouterr().err


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
