"""Records of commits as bytes: what the files of the embedded Firestore are made of. Pure.

A file is `MAGIC` and then records; a record is a head and a payload:

    head      mark, the payload's length, its CRC-32
    commit    commit time, database, and each changed path with its serialised document
    end       the word "end": the last record of a snapshot, which is complete with it

Numbers are little-endian. The mark begins with a byte that UTF-8 does not know, so that
records are found again behind a damaged one.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from mmap import mmap
from zlib import crc32

from crossfade import wire
from crossfade.document import Database, Document

MAGIC = b"crossfade records 1\n"

_MARK = b"\xff\xf5CR"
_HEAD = struct.Struct("<4sII")
_COMMIT = struct.Struct("<qIII")
"""Commit time in microseconds, bytes of the project's and the database's name, changes."""
_CHANGE = struct.Struct("<II")
"""Bytes of the path and of the document; a document of none is deleted."""
_END = b"end"


class Damaged(Exception):
    """The record at `offset` cannot be read. `cut`: the file just ends within it, as it does
    when the writer was killed; False: something happened to the file."""

    def __init__(self, offset: int, *, cut: bool) -> None:
        super().__init__(f"damaged at byte {offset}")
        self.offset = offset
        self.cut = cut


@dataclass(frozen=True, slots=True)
class Commit:
    """`time` in microseconds. A change without bytes is a deletion."""

    database: Database
    time: int
    changes: list[tuple[str, bytes]]


def commit(database: Database, time: int, changes: Iterable[tuple[str, Document | None]]) -> bytes:
    """The record of a commit."""
    parts: list[bytes] = []
    for path, document in changes:
        name = path.encode()
        data = b"" if document is None else wire.document_bytes(document, database)
        parts += (_CHANGE.pack(len(name), len(data)), name, data)
    project, name = database.project.encode(), database.database.encode()
    head = _COMMIT.pack(time, len(project), len(name), len(parts) // 3)
    return _record(b"".join((head, project, name, *parts)))


def end() -> bytes:
    """The record that makes a snapshot complete."""
    return _record(_END)


def _record(payload: bytes) -> bytes:
    return _HEAD.pack(_MARK, len(payload), crc32(payload)) + payload


def read(data: bytes | mmap) -> Iterator[Commit | None]:
    """The commits of a file; None for the end of a snapshot. Raises Damaged."""
    if data[: len(MAGIC)] != MAGIC:
        raise Damaged(0, cut=MAGIC.startswith(data[:].rstrip(b"\0")))
    position, size = len(MAGIC), len(data)
    while position < size:
        payload = _payload(data, position)
        if payload is None:
            raise Damaged(position, cut=_cut(data, position))
        yield None if payload == _END else _parse(payload)
        position += _HEAD.size + len(payload)


def _payload(data: bytes | mmap, position: int) -> bytes | None:
    """The payload of the record at `position`, if there is an intact one."""
    start = position + _HEAD.size
    if start > len(data):
        return None
    mark, length, checksum = _HEAD.unpack_from(data, position)
    if mark != _MARK or not length or start + length > len(data):
        return None
    payload = data[start : start + length]
    return payload if crc32(payload) == checksum else None


def _cut(data: bytes | mmap, position: int) -> bool:
    """Whether the file ends within the record at `position`, and nothing else is wrong.

    After a loss of power the rest may be zeros, which were never written over.
    """
    after = data.find(_MARK, position + 1)
    while after >= 0:
        if _payload(data, after) is not None:
            return False
        after = data.find(_MARK, after + 1)
    rest = data[position:]
    if not rest.strip(b"\0"):
        return True
    if len(rest) < _HEAD.size:
        return _MARK.startswith(rest[: len(_MARK)])
    mark, length, _ = _HEAD.unpack_from(rest)
    return bool(mark == _MARK and _HEAD.size + length > len(rest))


def _parse(payload: bytes) -> Commit:
    time, project, name, count = _COMMIT.unpack_from(payload)
    middle = _COMMIT.size + project
    position = middle + name
    database = _database(payload[_COMMIT.size : middle], payload[middle:position])
    changes: list[tuple[str, bytes]] = []
    for _ in range(count):
        path, data = _CHANGE.unpack_from(payload, position)
        start = position + _CHANGE.size
        position = start + path + data
        changes.append((payload[start : start + path].decode(), payload[start + path : position]))
    return Commit(database, time, changes)


@lru_cache(maxsize=1_024)
def _database(project: bytes, name: bytes) -> Database:
    return Database(project.decode(), name.decode())
