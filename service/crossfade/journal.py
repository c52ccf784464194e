"""The embedded Firestore's documents on disk: a journal of commits, and snapshots of it.

`journal-N` holds commits, one record each, in the order in which they took effect.
`snapshot-N` holds what all journals before N came to. A start reads the newest snapshot
and the journals from its number on, folds them to the last state of each document, and
goes on writing the last journal. docs/adr/0006-append-only-journal.md says why.

A commit is handed to the operating system before it takes effect: killing the process
loses none. A loss of power may, unless every record is forced to the disk (`fsync`).
"""

import asyncio
import errno
import math
import mmap
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeAlias

import structlog

from crossfade import records, wire
from crossfade.document import Database, Document
from crossfade.errors import CrossfadeError, ResourceExhausted, Unavailable
from crossfade_api.v1 import document_pb2

log = structlog.get_logger(__name__)

COMPACT_BYTES = 64 * 1_048_576
"""A journal longer than this, and than the snapshot, is replaced by a new snapshot."""
QUIET_BYTES = 1_048_576
"""The same at the start and at a clean stop, where nobody waits for it."""
BATCH = 64
"""Documents in a record of a snapshot."""
BREATH = 0.000_5
"""Seconds between two batches, in which the calls under way have the interpreter."""

_FILE = re.compile(r"(journal|snapshot)-(\d{6,})")
_PART = ".part"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Capture: TypeAlias = Callable[[], Mapping[Database, Sequence[Document]]]
"""Every document of every database as it is now, in a sequence that will not change."""


class JournalError(Exception):
    """The directory cannot be used as it is; the message says why and what to do."""


@dataclass(slots=True)
class Held:
    """What the files hold of a database: the time of its last commit in microseconds, and
    serialised documents by path."""

    time: int = 0
    documents: dict[str, bytes] = field(default_factory=dict)

    def drain(self) -> Iterator[Document]:
        """Every document, by path, decoded when it is asked for; its bytes are let go."""
        for path in sorted(self.documents):
            message = document_pb2.Document.FromString(self.documents.pop(path))
            yield Document(
                path,
                wire.decode_fields(message.fields),
                wire.decode_time(message.create_time),
                wire.decode_time(message.update_time),
            )


class Journal:
    """The files of one directory, which nobody else may use at the time.

    First `open`, then `append` for every commit; `run` beside it keeps the files short,
    until `finish`.
    """

    def __init__(
        self, directory: Path, *, compact_bytes: int = COMPACT_BYTES, fsync: bool = False
    ) -> None:
        self._directory = directory
        self._compact_bytes = compact_bytes
        self._fsync = fsync
        self._fd = -1
        self._generation = 0
        self._length = 0  # in bytes: of this journal, ...
        self._since = 0  # ... of all journals since the snapshot, ...
        self._snapshot_length = 0
        self._due: float = 0  # ... and when those are too long
        self._times: dict[Database, int] = {}
        self._refusing: str | None = None
        self._broken = False
        self._grown = asyncio.Event()
        self._finishing = threading.Event()

    # --- the start -----------------------------------------------------------------------------

    def open(self) -> dict[Database, Held]:
        """What the files hold; ready to append. Raises JournalError."""
        try:
            return self._open()
        except OSError as error:
            raise JournalError(
                f"--data-dir {self._directory} cannot be used: {error.strerror}"
            ) from error

    def _open(self) -> dict[Database, Held]:
        self._directory.mkdir(parents=True, exist_ok=True)
        for leftover in self._directory.glob(f"snapshot-*{_PART}"):
            leftover.unlink()
        newest = max(self._numbers("snapshot"), default=0)
        journals = sorted(number for number in self._numbers("journal") if number >= newest)
        self._check_gaps(newest, journals)
        databases: dict[Database, Held] = {}
        if newest:
            self._snapshot_length = self._replay_snapshot(newest, databases)
        for number in journals:
            self._length = self._replay(number, databases, last=number == journals[-1])
            self._since += self._length
        self._times = {database: held.time for database, held in databases.items()}
        self._generation = journals[-1] if journals else 1
        self._continue()
        self._remove_before(newest)
        self._due = self._allowance(self._compact_bytes)
        if self._since > self._allowance(QUIET_BYTES):
            self._grown.set()
        return databases

    def _numbers(self, kind: str) -> list[int]:
        matches = map(_FILE.fullmatch, (path.name for path in self._directory.iterdir()))
        return [int(match[2]) for match in matches if match is not None and match[1] == kind]

    def _check_gaps(self, newest: int, journals: list[int]) -> None:
        """A file that is not there may hold commits. A new directory has none at all."""
        if not newest and not journals:
            return
        for expected, number in zip(count(newest or 1), journals or [-1], strict=False):
            if number != expected:
                raise JournalError(
                    f"{self._path('journal', expected)} is missing: put it back, or move "
                    f"{self._directory} away to start empty"
                )

    def _replay_snapshot(self, number: int, databases: dict[Database, Held]) -> int:
        """The length of the file in bytes."""
        file = self._path("snapshot", number)
        with _content(file) as data:
            complete = False
            try:
                for commit in records.read(data):
                    complete = commit is None
                    if commit is not None:
                        _fold(commit, databases)
            except records.Damaged as damage:
                raise self._damaged(file, damage.offset) from damage
            if not complete:
                raise self._damaged(file, len(data))
            return len(data)

    def _replay(self, number: int, databases: dict[Database, Held], *, last: bool) -> int:
        """The length of the journal's intact part in bytes."""
        file = self._path("journal", number)
        with _content(file) as data:
            try:
                for commit in records.read(data):
                    if commit is not None:
                        _fold(commit, databases)
            except records.Damaged as damage:
                if not (last and damage.cut):
                    cut = f"cut it there (truncate -s {damage.offset} {file}) and lose the rest, "
                    raise self._damaged(file, damage.offset, cut) from damage
                log.warning(
                    "a commit that was being written at the end was never acknowledged; dropped",
                    action="load",
                    file=str(file),
                    offset=damage.offset,
                    bytes=len(data) - damage.offset,
                )
                return damage.offset
            return len(data)

    def _damaged(self, file: Path, offset: int, remedy: str = "") -> JournalError:
        return JournalError(
            f"{file} is damaged at byte {offset}: put an intact copy in its place, {remedy}"
            f"or move {self._directory} away to start empty"
        )

    # --- commits -------------------------------------------------------------------------------

    def append(
        self, database: Database, time: int, changes: Sequence[tuple[str, Document | None]]
    ) -> None:
        """Writes a commit before it takes effect. `time` in microseconds.

        Raises ResourceExhausted for a disk that is full, Unavailable for another reason;
        nothing of the commit is left in the file then.
        """
        if self._broken:
            raise self._refusal(Unavailable)
        data = records.commit(database, time, changes)
        try:
            _write(self._fd, data)
            if self._fsync:
                os.fsync(self._fd)
        except OSError as error:
            self._take_back(error)
            raise self._refusal(
                ResourceExhausted if error.errno in _FULL else Unavailable
            ) from error
        if self._refusing is not None:
            self._refusing = None
            log.warning("commits are stored again", action="commit")
        self._length += len(data)
        self._since += len(data)
        self._times[database] = time
        if self._since > self._due:
            self._grown.set()

    def _take_back(self, error: OSError) -> None:
        """Cuts off what was written of a record."""
        if self._refusing is None:  # or a full disk would fill the log as well
            log.error("commits cannot be stored", action="commit", reason=error.strerror)
        self._refusing = error.strerror or type(error).__name__
        try:
            os.ftruncate(self._fd, self._length)
        except OSError:
            # Whatever came after the half record could not be read back.
            self._broken = True

    def _refusal(self, kind: type[CrossfadeError]) -> CrossfadeError:
        what = "; restart the server once it is mended" if self._broken else ""
        return kind(f"commit: the journal cannot be written ({self._refusing}){what}")

    # --- compaction ----------------------------------------------------------------------------

    async def run(self, capture: Capture) -> None:
        """Compacts whenever it is due, until `finish`; then once more if that is quick and
        makes the next start quicker."""
        while True:
            await self._grown.wait()
            self._grown.clear()
            if self._finishing.is_set():
                break
            await self.compact(capture)
        quick = self._since + self._snapshot_length <= self._compact_bytes
        if quick and self._since > self._allowance(QUIET_BYTES):
            await self.compact(capture, last=True)

    def finish(self) -> None:
        """Ends `run`. A compaction under way is given up: the journals hold everything."""
        self._finishing.set()
        self._grown.set()

    async def compact(self, capture: Capture, *, last: bool = False) -> None:
        """Replaces the files by a new snapshot and an empty journal. Commits go on meanwhile.

        What goes wrong is logged: the journals of before are still there. `last`: `finish`
        was called before, and there are no calls that want the interpreter.
        """
        self._due = math.inf  # commits that come meanwhile do not ask for it again
        try:
            self._begin(self._generation + 1)
            # No await since the journal began: it follows exactly what is captured.
            number, times, documents = self._generation, dict(self._times), capture()
            parts = [(name, at, documents.get(name, ())) for name, at in times.items()]
            length = await asyncio.to_thread(self._write_snapshot, number, parts, last=last)
        except OSError as error:
            log.warning("no snapshot could be written", action="compact", reason=error.strerror)
            self._due = self._since + self._allowance(self._compact_bytes)
            return
        if length is not None:
            self._remove_before(number)
            self._snapshot_length, self._since = length, self._length
            self._due = self._allowance(self._compact_bytes)

    def _allowance(self, least: int) -> int:
        """How long the journals may be."""
        return max(min(least, self._compact_bytes), self._snapshot_length)

    def _begin(self, generation: int) -> None:
        """Goes on in a new journal. Raises OSError, and goes on in the old one."""
        if self._broken:
            raise OSError(errno.EIO, self._refusing or "")
        old, length = self._fd, self._length
        before = self._generation
        self._generation, self._length = generation, 0
        try:
            self._continue()
        except OSError:
            self._fd, self._length, self._generation = old, length, before
            self._path("journal", generation).unlink(missing_ok=True)
            raise
        os.close(old)

    def _continue(self) -> None:
        """Opens the journal of this generation behind its intact part. Raises OSError."""
        fd = os.open(
            self._path("journal", self._generation), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        try:
            os.ftruncate(fd, self._length)
            if not self._length:
                _write(fd, records.MAGIC)
                self._length = len(records.MAGIC)
            if self._fsync:
                os.fsync(fd)
                self._sync_directory()
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def _write_snapshot(
        self, number: int, parts: Iterable[tuple[Database, int, Sequence[Document]]], *, last: bool
    ) -> int | None:
        """In a thread. The length of the file; None if it was given up."""
        part = self._path("snapshot", number).with_suffix(_PART)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(records.MAGIC)
                for database, at, documents in parts:
                    for start in range(0, len(documents) or 1, BATCH):
                        if self._finishing.is_set() and not last:
                            return None
                        changes = [(d.path, d) for d in documents[start : start + BATCH]]
                        file.write(records.commit(database, at, changes))
                        if not last:
                            time.sleep(BREATH)
                file.write(records.end())
                file.flush()
                os.fsync(file.fileno())
                length = file.tell()
            part.rename(self._path("snapshot", number))
            self._sync_directory()
        finally:
            part.unlink(missing_ok=True)
        return length

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _remove_before(self, generation: int) -> None:
        """Files that no start would read."""
        for kind in ("journal", "snapshot"):
            for number in self._numbers(kind):
                if number < generation:
                    with suppress(OSError):
                        self._path(kind, number).unlink()

    def _path(self, kind: str, number: int) -> Path:
        return self._directory / f"{kind}-{number:06}"

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def _content(file: Path) -> Iterator[bytes | mmap.mmap]:
    with file.open("rb") as opened:
        if not os.fstat(opened.fileno()).st_size:  # which cannot be mapped
            yield b""
            return
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _fold(commit: records.Commit, databases: dict[Database, Held]) -> None:
    held = databases.get(commit.database)
    if held is None:
        held = databases[commit.database] = Held()
    held.time = max(held.time, commit.time)
    for path, data in commit.changes:
        if data:
            held.documents[path] = data
        else:
            held.documents.pop(path, None)


def _write(fd: int, data: bytes) -> None:
    """All of it. Raises OSError when only a part was written, too."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])
