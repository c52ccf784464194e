"""The journal's files as a start finds them, whatever happened to the one before."""

import asyncio
import errno
import os
import random
import shutil
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from crossfade import journal as journals
from crossfade import records
from crossfade.document import Database, Document, Fields, GeoPoint, Reference, identical
from crossfade.errors import FailedPrecondition, ResourceExhausted, Unavailable
from crossfade.journal import Journal, JournalError
from crossfade.store import At
from crossfade.stores.memory import MemoryStores
from crossfade.write import Write

ONE, OTHER = Database("violet"), Database("violet", "archive")
FIELDS: Fields = {
    "null": None,
    "nan": float("nan"),
    "minus": -0.0,
    "big": -(2**63),
    "text": "a\0b 日本 \U0001f3b5",
    "bytes": b"\xff\0\xff\xf5CR",
    "time": datetime(1, 1, 1, 0, 0, 0, 1, UTC),
    "place": GeoPoint(-90.0, 180.0),
    "reference": Reference(ONE.full("tasks/1")),
    "nested": {"list": [1, 1.0, {"empty": {}}], "odd name": []},
}


class Served:
    """Stores with a journal, as the embedded Firestore has them."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.journal = Journal(directory, **options)
        self.stores = MemoryStores(journal=self.journal.append)
        for database, held in self.journal.open().items():
            self.stores(database).load(held.drain())
            self.stores(database).advance(held.time)

    def commit(self, *writes: Write, database: Database = ONE) -> int:
        return self.stores(database).apply_commit(writes).commit_time

    def state(self) -> dict[tuple[Database, str], Document]:
        return {(s.database, document.path): document for s in self.stores for document in s.dump()}

    def capture(self) -> Mapping[Database, Sequence[Document]]:
        return {store.database: list(store.dump()) for store in self.stores}

    def close(self) -> None:
        self.journal.close()


def expect_same(left: Served, right: Served) -> None:
    ours, theirs = left.state(), right.state()
    assert ours.keys() == theirs.keys()
    for key, one in ours.items():
        other = theirs[key]
        assert (one.create_time, one.update_time) == (other.create_time, other.update_time)
        assert identical(one.fields, other.fields)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def filled(directory: Path) -> Served:
    served = Served(directory)
    served.commit(Write("tasks/1", FIELDS), Write("tasks/1/chunks/__id7__", {}))
    served.commit(Write("tasks/1", {"other": True}), database=OTHER)
    served.commit(Write("tasks/2", {"n": 1}))
    served.commit(Write("tasks/2", {"n": 2}), Write("tasks/3", {"n": 3}))
    served.commit(Write("tasks/3", None))
    return served


# --- starting again ----------------------------------------------------------------------------


def test_every_value_time_and_database_is_kept(tmp_path: Path):
    served = filled(tmp_path / "deep")
    again = Served(tmp_path / "deep")  # nothing was closed: as after kill -9

    expect_same(served, again)
    assert len(again.state()) == 4
    assert files(tmp_path / "deep") == ["journal-000001"]


def test_a_new_directory_is_an_empty_start(tmp_path: Path):
    served = Served(tmp_path)

    assert served.state() == {}
    served.close()
    assert Served(tmp_path).state() == {}


def test_only_the_owner_may_read_the_documents(tmp_path: Path):
    served = filled(tmp_path)
    asyncio.run(served.journal.compact(served.capture))

    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in files(tmp_path)}
    assert modes == {"journal-000002": 0o600, "snapshot-000002": 0o600}


def test_commit_times_go_on_from_the_last_one_even_of_a_deletion(tmp_path: Path):
    late = 2**51
    served = Served(tmp_path)
    served.stores(ONE).load([Document("tasks/1", {}, late, late)])
    deleted = served.commit(Write("tasks/1", None))
    assert deleted > late
    for compacted in (False, True):
        again = Served(tmp_path)
        assert again.state() == {}
        written = again.commit(Write("tasks/2", {}))
        assert written > deleted
        deleted = again.commit(Write("tasks/2", None))
        if not compacted:
            asyncio.run(again.journal.compact(again.capture))


async def test_the_time_before_a_start_cannot_be_read(tmp_path: Path):
    """What was deleted then is not known any more: not found would be wrong."""
    served = Served(tmp_path)
    served.commit(Write("tasks/1", {}))
    before = served.commit(Write("tasks/2", {}))
    last = served.commit(Write("tasks/1", None))
    again = Served(tmp_path).stores(ONE)

    with pytest.raises(FailedPrecondition, match="too old"):
        await again.get(["tasks/1"], timeout=1, at=At(read_time=before))
    reading = await again.get(["tasks/1", "tasks/2"], timeout=1, at=At(read_time=last))
    assert [stored.data is None for stored in reading.documents] == [True, False]


def test_what_changes_nothing_is_not_written(tmp_path: Path):
    served = filled(tmp_path)
    before = (tmp_path / "journal-000001").stat().st_size

    served.commit(Write("tasks/2", {"n": 2}), Write("tasks/9", None))
    served.commit()

    assert (tmp_path / "journal-000001").stat().st_size == before


def test_expired_and_cleared_documents_stay_away(tmp_path: Path):
    served = filled(tmp_path)
    served.commit(Write("due/1", {"at": datetime(2020, 1, 1, tzinfo=UTC)}))
    assert served.stores(ONE).expire("due", "at") == 1
    served.stores(OTHER).reset()

    again = Served(tmp_path)
    expect_same(served, again)
    assert {key[0] for key in again.state()} == {ONE}
    served.stores(ONE).reset()
    assert Served(tmp_path).state() == {}


# --- a write that was cut off, and other damage ------------------------------------------------


def test_a_record_cut_off_at_the_end_is_dropped_and_said(tmp_path: Path):
    served = filled(tmp_path)
    before = served.state()
    file = tmp_path / "journal-000001"
    size = file.stat().st_size
    served.commit(Write("tasks/4", {"secret": "value"}))
    served.close()
    whole = file.read_bytes()
    for length in range(size + 1, len(whole)):
        file.write_bytes(whole[:length])
        with structlog.testing.capture_logs() as logged:
            again = Served(tmp_path)
        assert again.state().keys() == before.keys()
        assert [(entry["log_level"], entry["offset"]) for entry in logged] == [("warning", size)]
        assert "secret" not in str(logged)
        again.commit(Write("tasks/5", {}))
        again.close()
        after = Served(tmp_path)
        expect_same(again, after)
        after.close()


@pytest.mark.parametrize("length", range(len(records.MAGIC)))
def test_a_journal_that_was_just_begun_is_empty(tmp_path: Path, length: int):
    served = filled(tmp_path)
    (tmp_path / "journal-000002").write_bytes(records.MAGIC[:length])

    again = Served(tmp_path)
    expect_same(served, again)
    again.commit(Write("tasks/5", {}))
    expect_same(again, Served(tmp_path))


def test_damage_before_intact_records_is_an_error_with_file_and_offset(tmp_path: Path):
    served = Served(tmp_path)
    file = tmp_path / "journal-000001"
    served.commit(Write("tasks/1", {"text": "a" * 50}))
    second = file.stat().st_size
    served.commit(Write("tasks/2", {"text": "b" * 50}))
    served.commit(Write("tasks/3", {}))
    served.close()
    data = bytearray(file.read_bytes())
    data[second + 60] ^= 1
    file.write_bytes(data)

    for _ in range(2):  # and nothing is changed by looking
        with pytest.raises(JournalError, match=f"{file} is damaged at byte {second}: ") as error:
            Served(tmp_path)
    assert file.read_bytes() == data

    assert f"truncate -s {second} {file}" in str(error.value)
    os.truncate(file, second)
    assert {key[1] for key in Served(tmp_path).state()} == {"tasks/1"}


def test_a_cut_in_an_earlier_journal_is_damage(tmp_path: Path):
    served = filled(tmp_path)
    served.journal._begin(2)
    served.commit(Write("tasks/5", {}))
    os.truncate(tmp_path / "journal-000001", 100)

    with pytest.raises(JournalError, match=r"journal-000001 is damaged at byte \d+: "):
        Served(tmp_path)


@pytest.mark.parametrize("cut", [1, 15, 40])
def test_a_damaged_snapshot_is_an_error(tmp_path: Path, cut: int):
    served = filled(tmp_path)
    asyncio.run(served.journal.compact(served.capture))
    file = tmp_path / "snapshot-000002"
    os.truncate(file, file.stat().st_size - cut)

    with pytest.raises(JournalError, match=r"snapshot-000002 is damaged at byte \d+: .* move"):
        Served(tmp_path)


def test_a_missing_journal_is_named(tmp_path: Path):
    served = filled(tmp_path)
    served.journal._begin(2)
    served.journal._begin(3)
    (tmp_path / "journal-000002").unlink()
    with pytest.raises(JournalError, match="journal-000002 is missing"):
        Served(tmp_path)
    (tmp_path / "journal-000003").unlink()
    (tmp_path / "journal-000001").rename(tmp_path / "snapshot-000004")
    with pytest.raises(JournalError, match="journal-000004 is missing"):
        Served(tmp_path)


def test_another_file_of_that_name_is_left_alone(tmp_path: Path):
    (tmp_path / "journal-000001").write_text("mine")

    with pytest.raises(JournalError, match="damaged at byte 0"):
        Served(tmp_path)
    assert (tmp_path / "journal-000001").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")

    with pytest.raises(JournalError, match=r"--data-dir .*file cannot be used: File exists"):
        Served(tmp_path / "file")


# --- a disk that is full -----------------------------------------------------------------------


class Disk:
    """Writes that stop after `room` bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
        self.room: int | None = None
        self.truncates = True
        self._number = number
        self._write, self._truncate = os.write, os.ftruncate
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "ftruncate", self.truncate)

    def write(self, fd: int, data: bytes) -> int:
        if self.room is None:
            return self._write(fd, data)
        if not self.room:
            raise OSError(self._number, os.strerror(self._number))
        written = self._write(fd, data[: self.room])
        self.room -= written
        return written

    def truncate(self, fd: int, length: int) -> None:
        if not self.truncates:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._truncate(fd, length)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, ResourceExhausted), (errno.EIO, Unavailable)]
)
def test_a_commit_that_cannot_be_stored_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
):
    served = filled(tmp_path)
    before = served.state()
    size = (tmp_path / "journal-000001").stat().st_size
    disk = Disk(monkeypatch, number)
    with structlog.testing.capture_logs() as logged:
        for room in (0, 1, 30, 80):
            disk.room = room
            with pytest.raises(kind, match=os.strerror(number)):
                served.commit(Write("tasks/1", {"n": 2}), Write("tasks/6", {"text": "b" * 50}))
            assert served.state() == before
            assert (tmp_path / "journal-000001").stat().st_size == size
        expect_same(served, Served(tmp_path))
        disk.room = None
        served.commit(Write("tasks/6", {"n": 1}))
        served.commit(Write("tasks/6", {"n": 2}))
    # One line when it begins and one when it is over.
    assert [entry["event"] for entry in logged] == [
        "commits cannot be stored",
        "commits are stored again",
    ]
    expect_same(served, Served(tmp_path))


def test_half_a_record_that_stays_ends_all_commits_and_is_dropped_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    served = filled(tmp_path)
    disk = Disk(monkeypatch)
    disk.room, disk.truncates = 30, False
    with pytest.raises(ResourceExhausted):
        served.commit(Write("tasks/6", {}))
    disk.room = None

    with pytest.raises(Unavailable, match="restart the server"):
        served.commit(Write("tasks/6", {}))
    asyncio.run(served.journal.compact(served.capture))
    with pytest.raises(Unavailable, match="restart the server"):
        served.commit(Write("tasks/6", {}))
    assert files(tmp_path) == ["journal-000001"]
    disk.truncates = True
    again = Served(tmp_path)
    expect_same(served, again)
    again.commit(Write("tasks/6", {}))


# --- compaction --------------------------------------------------------------------------------


async def test_a_snapshot_replaces_what_came_before(tmp_path: Path):
    served = filled(tmp_path)
    for expected in (2, 3):
        await served.journal.compact(served.capture)
        assert files(tmp_path) == [f"journal-{expected:06}", f"snapshot-{expected:06}"]
        served.commit(Write("tasks/7", {"n": expected}))
        expect_same(served, Served(tmp_path))


def test_what_a_crash_left_of_a_compaction_does_not_matter(tmp_path: Path):
    served = filled(tmp_path)
    old = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    asyncio.run(served.journal.compact(served.capture))
    served.commit(Write("tasks/8", {}))
    # Killed before the old files were removed ...
    for name, data in old.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "snapshot-000003.part").write_bytes(b"half")
    again = Served(tmp_path)
    expect_same(served, again)
    assert files(tmp_path) == ["journal-000002", "snapshot-000002"]
    # ... or when there was a new journal and no snapshot yet.
    again.journal._begin(3)
    again.commit(Write("tasks/9", {}))
    expect_same(again, Served(tmp_path))


async def test_commits_go_on_while_a_snapshot_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    served = filled(tmp_path)
    for number in range(200):
        served.commit(Write(f"many/{number}", {"n": number}))
    reached, go_on = threading.Event(), threading.Event()

    def wait(_: float) -> None:
        reached.set()
        assert go_on.wait(10)

    monkeypatch.setattr(time, "sleep", wait)
    compacting = asyncio.create_task(served.journal.compact(served.capture))
    assert await asyncio.to_thread(reached.wait, 10)
    served.commit(Write("many/1", None), Write("many/new", {}))
    served.commit(Write("many/199", {"n": "changed"}))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in files(tmp_path):
        if name != "copy":
            shutil.copy(tmp_path / name, copy)
    expect_same(served, Served(copy))  # a crash now loses nothing

    go_on.set()
    await compacting
    assert "snapshot-000002" in files(tmp_path)
    served.commit(Write("many/2", None))
    expect_same(served, Served(tmp_path))


async def test_it_compacts_by_itself_when_the_journal_has_grown(tmp_path: Path):
    served = Served(tmp_path, compact_bytes=20_000)
    running = asyncio.create_task(served.journal.run(served.capture))
    chance = random.Random(7)
    seen: set[str] = set()
    for number in range(600):
        path = f"tasks/{chance.randrange(60)}"
        fields: Fields | None = {"n": number, "text": "x" * 100} if chance.random() < 0.8 else None
        served.commit(Write(path, fields), database=chance.choice([ONE, OTHER]))
        seen.update(files(tmp_path))
        if number % 7 == 0:
            await asyncio.sleep(0.001)
    served.journal.finish()
    await running
    assert sum(name.startswith("snapshot-") and name[-1].isdigit() for name in seen) >= 2
    assert sum((tmp_path / name).stat().st_size for name in files(tmp_path)) < 100_000
    expect_same(served, Served(tmp_path))


async def test_commits_that_come_during_a_compaction_do_not_ask_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    served = Served(tmp_path, compact_bytes=20_000)
    reached, go_on = threading.Event(), threading.Event()

    def wait(_: float) -> None:
        reached.set()
        assert go_on.wait(10)

    monkeypatch.setattr(time, "sleep", wait)
    real, ended, compactions = served.journal.compact, asyncio.Event(), 0

    async def compact(*given: Any, **more: Any) -> None:
        nonlocal compactions
        compactions += 1
        await real(*given, **more)
        ended.set()

    monkeypatch.setattr(served.journal, "compact", compact)
    running = asyncio.create_task(served.journal.run(served.capture))
    number = 0
    while not reached.is_set():
        served.commit(Write(f"tasks/{number % 60}", {"n": number, "text": "x" * 100}))
        await asyncio.sleep(0)
        number += 1
    served.commit(Write("tasks/1", {"n": -1}))
    go_on.set()
    await asyncio.wait_for(ended.wait(), 10)
    await asyncio.sleep(0.05)
    assert compactions == 1
    served.journal.finish()
    await running
    expect_same(served, Served(tmp_path))


async def test_a_snapshot_that_fails_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    served = Served(tmp_path, compact_bytes=5_000)
    real, failing = os.fsync, True

    def fsync(fd: int) -> None:
        if failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    running = asyncio.create_task(served.journal.run(served.capture))

    async def grow() -> None:
        for number in range(200):
            served.commit(Write(f"tasks/{number % 5}", {"text": "x" * 100, "n": number}))
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)

    with structlog.testing.capture_logs() as logged:
        await grow()
    assert 1 <= len(logged) <= 12  # 46 KB, and not once for each of 200 commits
    assert {entry["reason"] for entry in logged} == {os.strerror(errno.ENOSPC)}
    assert not [name for name in files(tmp_path) if name.startswith("snapshot")]
    expect_same(served, Served(tmp_path))
    failing = False
    await grow()
    assert [name for name in files(tmp_path) if name.startswith("snapshot")]
    served.journal.finish()
    await running
    expect_same(served, Served(tmp_path))


async def test_a_start_and_a_clean_stop_leave_a_short_journal(tmp_path: Path):
    def grow(served: Served) -> None:
        for number in range(150):
            served.commit(Write(f"tasks/{number % 3}", {"text": "x" * 10_000, "n": number}))

    served = Served(tmp_path)
    grow(served)
    served.close()

    served = Served(tmp_path)
    running = asyncio.create_task(served.journal.run(served.capture))
    for _ in range(200):
        if files(tmp_path) == ["journal-000002", "snapshot-000002"]:
            break
        await asyncio.sleep(0.01)
    grow(served)
    assert (tmp_path / "journal-000002").stat().st_size > 1_000_000
    served.journal.finish()
    await running
    assert files(tmp_path) == ["journal-000003", "snapshot-000003"]
    assert (tmp_path / "journal-000003").stat().st_size == len(records.MAGIC)
    expect_same(served, Served(tmp_path))


async def test_a_stop_does_not_wait_for_a_long_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(journals, "BREATH", 0.05)
    served = Served(tmp_path, compact_bytes=1_000)
    served.commit(*(Write(f"tasks/{number}", {"n": number}) for number in range(6_400)))
    running = asyncio.create_task(served.journal.run(served.capture))
    while not (tmp_path / "snapshot-000002.part").exists():  # noqa: ASYNC110 - it is a file
        await asyncio.sleep(0.01)

    served.journal.finish()
    await asyncio.wait_for(running, 2)
    assert files(tmp_path) == ["journal-000001", "journal-000002"]
    expect_same(served, Served(tmp_path))


async def test_forced_to_the_disk_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    plain = Served(tmp_path / "plain")
    plain.commit(Write("tasks/1", {}))
    assert synced == []
    forced = Served(tmp_path / "forced", fsync=True)
    synced.clear()
    forced.commit(Write("tasks/1", {}))
    forced.commit(Write("tasks/2", {}))
    assert len(synced) == 2


# --- the hooks of the in-memory store ----------------------------------------------------------


def test_a_database_holds_so_many_documents_and_no_more():
    stores = MemoryStores(max_documents=3)
    store = stores(ONE)
    store.apply_commit([Write(f"tasks/{number}", {}) for number in range(3)])
    with pytest.raises(ResourceExhausted, match="the limit of this server is 3"):
        store.apply_commit([Write("tasks/0", {"n": 1}), Write("tasks/3", {})])
    assert store.read("tasks/0").fields == {}
    store.apply_commit([Write("tasks/0", None), Write("tasks/3", {})])
    store.apply_commit([Write("tasks/4", {}), Write("tasks/4", None), Write("tasks/1", {"n": 1})])
    stores(OTHER).apply_commit([Write("tasks/0", {})])


def test_more_that_were_there_before_may_become_fewer():
    store = MemoryStores(max_documents=1)(ONE)
    store.load([Document(f"tasks/{number}", {}, 1, 1) for number in range(3)])
    store.apply_commit([Write("tasks/0", None)])
    store.apply_commit([Write("tasks/1", {"n": 1})])
    with pytest.raises(ResourceExhausted):
        store.apply_commit([Write("tasks/4", {})])
