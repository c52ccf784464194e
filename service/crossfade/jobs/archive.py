"""An archive: all documents of a store as compressed lines of JSON, with digests.

A directory of files of documents in the order in which they were read, a manifest, and
SHA256SUMS, which `sha256sum -c` checks without Crossfade. A file is there whole or not at
all, and so is what says that it is: an archive that was broken off goes on behind the last
file that was finished. It is no snapshot: a page is of one moment, the whole is not, unless
nothing is written meanwhile.
"""

import asyncio
import gzip
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from crossfade.archived import from_line, to_line
from crossfade.content import Content, fields_bytes
from crossfade.document import Database, Document, collection_id, is_own
from crossfade.errors import FailedPrecondition
from crossfade.jobs.brake import REFUSALS, Brake
from crossfade.jobs.compare import PAST_OWN
from crossfade.jobs.partitions import NameRange
from crossfade.jobs.planning import within
from crossfade.jobs.tally import Tally
from crossfade.plan import StoreName
from crossfade.store import DocumentStore
from crossfade.stores.postgres.ranges import Ranges
from crossfade.wire import decode_document, encode_fields
from crossfade_api.v1 import crossfade_pb2
from crossfade_api.v1 import document_pb2 as pb

FORMAT = "crossfade-archive/1"
MANIFEST, SUMS, PROGRESS = "manifest.json", "SHA256SUMS", "progress.json"
PAGE = 500
FILE_BYTES = 64 * 1_048_576
"""Of lines in a file, before they are compressed."""
LEVEL = 6


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """`position`: behind what the next file begins. `bytes`: compressed."""

    name: str
    documents: int
    bytes: int
    sha256: str
    position: str


@dataclass(frozen=True, slots=True)
class Source:
    """What an archive is of. `stages` by group; none: there is no migration."""

    store: StoreName
    database: str
    stages: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Done:
    """What is in finished files."""

    begun_at: str
    files: list[ArchiveFile]
    tally: Tally


Pages = AsyncIterator[tuple[list[Document], str]]
"""Documents, and the position behind them."""
PagesFrom = Callable[[str | None], Pages]
"""From a position on; None: from the beginning."""


# --- reading a store ---------------------------------------------------------------------------


async def pages_of_firestore(
    store: DocumentStore,
    database: Database,
    after: str | None,
    *,
    timeout: float,
    brake: Brake | None = None,
) -> Pages:
    """In name order; positions are names."""
    brake = brake or Brake()
    everything = NameRange("", None, None)
    while True:
        limit = await brake.allow(PAGE)
        query = within(everything, after=after, limit=limit)
        found: list[Document] = []
        async for page in store.query(query, timeout=timeout):
            frames = crossfade_pb2.QueryReply.FromString(page.frames)
            found += [decode_document(message, database) for message in frames.documents]
        brake.spend(len(found), max(1, len(found)))
        if not found:
            return
        after = found[-1].path
        yield [document for document in found if not is_own(document.path)], after
        if len(found) < limit:
            return
        if is_own(after):
            after = PAST_OWN


async def pages_of_postgresql(
    ranges: Ranges, after: str | None, *, timeout: float, brake: Brake | None = None
) -> Pages:
    """Table by table along their keys. Firestore bills nothing for it."""
    brake = brake or Brake()
    chunk = await brake.allow(PAGE)
    async for documents, position in ranges.everything(after, timeout=timeout, chunk=chunk):
        brake.spend(len(documents), 0)
        yield documents, position
        await brake.allow(chunk)


def patient(pages: PagesFrom, brake: Brake) -> PagesFrom:
    """The same pages. Where the store refuses one, or does not answer, it is asked again, later;
    how long for, the brake says."""

    async def again(after: str | None) -> Pages:
        while True:
            try:
                async for documents, position in pages(after):
                    yield documents, position
                    after = position
            except REFUSALS as error:
                brake.refused(error)
            else:
                return

    return again


# --- writing -----------------------------------------------------------------------------------


async def archive(
    directory: Path, source: Source, pages: PagesFrom, *, file_bytes: int = FILE_BYTES
) -> AsyncIterator[int]:
    """Writes the archive, or what is left of it; yields after every page how many documents are
    in it so far. Raises FailedPrecondition where the directory holds something else."""
    done = await asyncio.to_thread(_resumed, directory, source)
    if done is None:
        return
    after = done.files[-1].position if done.files else None
    count = sum(each.documents for each in done.files)
    tally, lines, size, held, position = Tally(), [], 0, 0, after
    async for documents, position in pages(after):
        for document in documents:
            line = to_line(document)
            lines.append(line)
            size += len(line) + 1
            _tally(tally, source.store, document)
        held += len(documents)
        yield count + held
        if size >= file_bytes:
            await asyncio.to_thread(_finish_file, directory, source, done, tally, lines, position)
            count, tally, lines, size, held = count + held, Tally(), [], 0, 0
    if lines and position is not None:
        await asyncio.to_thread(_finish_file, directory, source, done, tally, lines, position)
    await asyncio.to_thread(_finish, directory, source, done)


def _tally(tally: Tally, store: StoreName, document: Document) -> None:
    """The digests are those of a validation's report."""
    message = pb.Document()
    encode_fields(document.fields, message.fields)
    content = Content(document.path, document.update_time, fields_bytes(message))
    tally.held(collection_id(document.path), store, content.lanes())


def _resumed(directory: Path, source: Source) -> _Done | None:
    """What an earlier start has finished; None: all of it."""
    directory.mkdir(parents=True, exist_ok=True)
    others = {path.name for path in directory.iterdir()} - {PROGRESS}
    if MANIFEST in others:
        manifest = json.loads((directory / MANIFEST).read_text())
        if manifest.get("source") != source.store or manifest.get("database") != source.database:
            raise FailedPrecondition(f"{directory} holds an archive of something else")
        return None
    progress = directory / PROGRESS
    if not progress.exists():
        if others:
            raise FailedPrecondition(f"{directory} is not empty, and holds no archive")
        return _Done(_now(), [], Tally())
    held = json.loads(progress.read_text())
    if held["source"] != source.store or held["database"] != source.database:
        raise FailedPrecondition(f"{directory} holds the beginning of an archive of another store")
    files = [ArchiveFile(**each) for each in held["files"]]
    for name in others - {each.name for each in files}:
        if name.endswith((".part", ".jsonl.gz")):
            (directory / name).unlink()
    return _Done(held["begun_at"], files, Tally(held["counts"]))


def _finish_file(
    directory: Path,
    source: Source,
    done: _Done,
    tally: Tally,
    lines: list[bytes],
    position: str,
) -> None:
    name = f"documents-{len(done.files) + 1:05}.jsonl.gz"
    data = gzip.compress(b"\n".join(lines) + b"\n", compresslevel=LEVEL, mtime=0)
    _write(directory / name, data)
    done.files.append(ArchiveFile(name, len(lines), len(data), sha256(data).hexdigest(), position))
    done.tally.add(tally)
    held = {
        "format": FORMAT,
        "source": source.store.value,
        "database": source.database,
        "begun_at": done.begun_at,
        "files": [asdict(each) for each in done.files],
        "counts": done.tally.counts,
    }
    _write(directory / PROGRESS, json.dumps(held).encode())


def _finish(directory: Path, source: Source, done: _Done) -> None:
    manifest = {
        "format": FORMAT,
        "source": source.store.value,
        "database": source.database,
        "stages": dict(source.stages),
        "begun_at": done.begun_at,
        "ended_at": _now(),
        "documents": sum(each.documents for each in done.files),
        "collections": {
            name: {
                "documents": words.get(source.store.value, 0),
                "digest": done.tally.digest(name, source.store),
            }
            for name, words in sorted(done.tally.counts.items())
        },
        "files": [
            {key: value for key, value in asdict(each).items() if key != "position"}
            for each in done.files
        ],
    }
    text = json.dumps(manifest, indent=2).encode() + b"\n"
    sums = [f"{each.sha256}  {each.name}" for each in done.files]
    sums.append(f"{sha256(text).hexdigest()}  {MANIFEST}")
    _write(directory / SUMS, ("\n".join(sums) + "\n").encode())
    _write(directory / MANIFEST, text)
    (directory / PROGRESS).unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, also after a loss of power."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- reading an archive ------------------------------------------------------------------------


def verified(directory: Path) -> dict[str, Any]:
    """The manifest, when all that it names is there as it was written. Raises
    FailedPrecondition."""
    try:
        text = (directory / MANIFEST).read_bytes()
        lines = (directory / SUMS).read_text().splitlines()
    except FileNotFoundError:
        raise FailedPrecondition(f"{directory} holds no whole archive") from None
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    manifest: dict[str, Any] = json.loads(text)
    if manifest.get("format") != FORMAT:
        raise FailedPrecondition(f"{directory}: an archive of another format")
    if sums.get(MANIFEST) != sha256(text).hexdigest():
        raise FailedPrecondition(f"{directory / MANIFEST}: its digest is another")
    for each in manifest["files"]:
        path = directory / each["name"]
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise FailedPrecondition(f"{path} is missing") from None
        if sha256(data).hexdigest() != each["sha256"] or sums.get(each["name"]) != each["sha256"]:
            raise FailedPrecondition(f"{path}: its digest is another")
    return manifest


def documents_of(directory: Path, manifest: dict[str, Any]) -> Iterator[Document]:
    """The documents of a verified archive. Raises FailedPrecondition where a file holds another
    number of them, InvalidArgument for a line that is none."""
    for each in manifest["files"]:
        count = 0
        with gzip.open(directory / each["name"]) as lines:
            for line in lines:
                count += 1
                yield from_line(line.rstrip(b"\n"))
        if count != each["documents"]:
            raise FailedPrecondition(f"{each['name']} holds {count} documents")
