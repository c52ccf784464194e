"""The embedded Firestore as a process that is killed, fills its disk, is far away or fails."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from google.api_core.exceptions import Aborted, ResourceExhausted, ServiceUnavailable
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore

from crossfade import records, wire
from crossfade.document import Database, Document
from crossfade.embedded import EmbeddedError, EmbeddedFirestore
from crossfade.errors import CrossfadeError
from crossfade.stores.firestore import FirestoreStore, connect
from crossfade.write import Write

DATABASES = [Database("violet"), Database("violet", "archive")]
WRITERS = 6
ROUNDS = 3
NOTHING = "asked for with --fail: lost on the way there, nothing was done"
DONE = "asked for with --fail: lost on the way back, the call was done"


# --- kill -9 -----------------------------------------------------------------------------------


@dataclass
class Writer:
    """Writes two documents in each commit, and takes one of an earlier commit away.

    `times` are those of the acknowledged commits, by number.
    """

    number: int
    next: int = 0
    times: dict[int, int] = field(default_factory=dict)

    @property
    def database(self) -> Database:
        return DATABASES[self.number % len(DATABASES)]

    def path(self, number: int) -> str:
        return f"commits/{self.number}-{number}"

    @property
    def head(self) -> str:
        return f"heads/{self.number}"

    async def write(self, store: FirestoreStore) -> None:
        """Until the server is gone."""
        while True:
            number, self.next = self.next, self.next + 1
            writes = [
                Write(self.head, {"number": number}),
                Write(self.path(number), {"number": number, "text": "x" * 200}),
                Write(self.path(number - 5), None),
            ]
            try:
                outcome = await store.commit(writes, timeout=5)
            except CrossfadeError:
                return
            self.times[number] = outcome.commit_time

    async def check(self, store: FirestoreStore) -> int:
        """Every acknowledged commit is there as a whole. The latest time that is known of."""
        paths = [self.head, *map(self.path, range(self.next))]
        head, *rest = await documents(store, self.database, paths)
        assert head is not None
        last: Any = head.fields["number"]
        # The one that was under way may have been stored: nobody said that it was not.
        assert last in {max(self.times), self.next - 1}
        assert {n for n, document in enumerate(rest) if document is not None} == set(
            range(max(0, last - 4), last + 1)
        )
        first = min(self.times)
        assert head.create_time == self.times[first]
        for number, document in enumerate(rest):
            if document is None:
                continue
            assert document.fields["number"] == number
            expected = self.times.get(number, head.update_time if number == last else None)
            assert (document.create_time, document.update_time) == (expected, expected)
        assert head.update_time == self.times.get(last, head.update_time)
        self.times[last] = head.update_time
        self.next = last + 1
        return max(self.times.values())


async def documents(
    store: FirestoreStore, database: Database, paths: Sequence[str]
) -> list[Document | None]:
    reading = await store.get(paths, timeout=10)
    found = {stored.path: stored.data for stored in reading.documents}
    return [
        None if (data := found[path]) is None else wire.parse_document(data, database)
        for path in paths
    ]


@pytest.mark.parametrize("compact_bytes", [None, 20_000])
async def test_whatever_was_acknowledged_survives_kill_9_again_and_again(tmp_path, compact_bytes):
    chance = random.Random(3)
    writers = [Writer(number) for number in range(WRITERS)]
    options = () if compact_bytes is None else ("--compact-bytes", str(compact_bytes))
    for _ in range(ROUNDS):
        server = EmbeddedFirestore(data_dir=tmp_path, options=options)
        await server.start()
        stores = [connect(writer.database, server.address) for writer in writers]
        if writers[0].times:
            for writer, store in zip(writers, stores, strict=True):
                latest = await writer.check(store)
                later = await store.commit([Write(f"later/{writer.number}", {})], timeout=5)
                assert later.commit_time > latest
        writing = [
            asyncio.create_task(writer.write(store))
            for writer, store in zip(writers, stores, strict=True)
        ]
        await asyncio.sleep(chance.uniform(0.2, 0.5))
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.gather(*writing)
        for store in stores:
            await store.close()
        await server.stop()
    async with EmbeddedFirestore(data_dir=tmp_path) as server:
        for writer in writers:
            store = connect(writer.database, server.address)
            await writer.check(store)
            await store.close()
    assert sum(len(writer.times) for writer in writers) > 100
    if compact_bytes is not None:
        assert max(tmp_path.glob("snapshot-*")).name > "snapshot-000005"
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2_000_000


async def test_damage_in_the_middle_is_said_with_file_and_offset(tmp_path):
    parts = [records.commit(DATABASES[0], time, [("tasks/1", None)]) for time in (1, 2, 3)]
    data = bytearray(records.MAGIC + b"".join(parts))
    data[60] ^= 1
    journal = tmp_path / "journal-000001"
    journal.write_bytes(data)

    with pytest.raises(EmbeddedError, match=f"{journal} is damaged at byte 20: "):
        await EmbeddedFirestore(data_dir=tmp_path).start()


# --- the genuine client ------------------------------------------------------------------------


@contextmanager
def client_of(server: EmbeddedFirestore) -> Iterator[Any]:
    before = os.environ.get("FIRESTORE_EMULATOR_HOST")
    os.environ["FIRESTORE_EMULATOR_HOST"] = server.address
    try:
        client = firestore.AsyncClient(project="violet", credentials=AnonymousCredentials())
    finally:
        if before is None:
            del os.environ["FIRESTORE_EMULATOR_HOST"]
        else:
            os.environ["FIRESTORE_EMULATOR_HOST"] = before
    yield client
    client.close()


async def test_a_full_disk_refuses_commits_until_there_is_room(tmp_path):
    async with EmbeddedFirestore(data_dir=tmp_path) as server:
        with client_of(server) as client:
            document = client.document("tasks/1")
            await document.set({"number": 1})
            process = psutil.Process(server.pid)
            size = (tmp_path / "journal-000001").stat().st_size
            _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
            process.rlimit(psutil.RLIMIT_FSIZE, (size + 50, hard))
            with pytest.raises(ResourceExhausted, match="File too large"):
                await document.set({"number": 2}, retry=None, timeout=5)
            assert (await document.get()).to_dict() == {"number": 1}
            assert (tmp_path / "journal-000001").stat().st_size == size
            process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
            await document.set({"number": 3})
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
    async with EmbeddedFirestore(data_dir=tmp_path) as server:
        with client_of(server) as client:
            assert (await client.document("tasks/1").get()).to_dict() == {"number": 3}


@pytest.fixture(scope="module")
async def faulty() -> AsyncIterator[EmbeddedFirestore]:
    options = (
        *("--latency", "60,0", "--seed", "7"),
        *("--fail", "0.2:UNAVAILABLE", "--fail", "0.1:ABORTED", "--max-documents", "5"),
    )
    async with EmbeddedFirestore(options=options) as server:
        yield server


async def test_the_client_meets_latency_and_failures_before_and_after(faulty):
    with client_of(faulty) as client:
        document = client.document("counters/1")

        async def add() -> str:
            started = time.monotonic()
            try:
                await document.set({"n": firestore.Increment(1)}, merge=True, retry=None, timeout=5)
            except (ServiceUnavailable, Aborted) as error:
                ended = error.message
            else:
                ended = "ok"
            assert time.monotonic() - started > (0.025 if ended == NOTHING else 0.055)
            return ended

        ends = await asyncio.gather(*(add() for _ in range(60)))
        assert set(ends) == {"ok", NOTHING, DONE}
        assert min(ends.count(end) for end in (NOTHING, DONE)) > 2
        snapshot = None
        for _ in range(10):
            try:
                snapshot = await document.get(retry=None, timeout=5)
                break
            except (ServiceUnavailable, Aborted):
                continue
        # What the client was told of as lost on the way back has been done.
        assert snapshot.to_dict() == {"n": 60 - ends.count(NOTHING)}


async def test_documents_over_the_limit_are_refused_and_a_reset_makes_room(faulty):
    async def reset() -> None:
        host, _, port = faulty.http.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        path = "/emulator/v1/projects/violet/databases/(default)/documents"
        writer.write(f"DELETE {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200")
        writer.close()

    async def set_all(client: Any, names: Sequence[str]) -> None:
        for _ in range(20):
            batch = client.batch()
            for name in names:
                batch.set(client.document(f"limited/{name}"), {})
            try:
                await batch.commit(retry=None, timeout=5)
            except (ServiceUnavailable, Aborted):
                continue
            return
        pytest.fail("it never worked")

    with client_of(faulty) as client:
        await reset()
        await set_all(client, "abcde")
        with pytest.raises(ResourceExhausted, match=r"6 documents .* limit .* 5"):
            await set_all(client, "f")
        await set_all(client, "abc")
        await reset()
        await set_all(client, "vwxyz")
