"""The in-memory store: the readable reference, and the data of the embedded Firestore.

Everything happens between two awaits, so a commit or a query sees and leaves one
state without a lock. The core is synchronous (`read`, `run`, `apply_commit`); the
methods of the store contract stand on top of it.
"""

import time
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, TypeAlias

from crossfade import query as queries
from crossfade import wire
from crossfade import write as writing
from crossfade.document import (
    NAME,
    Database,
    Document,
    Fields,
    Value,
    collection_id,
    collection_path,
    from_micros,
    identical,
    path_key,
)
from crossfade.errors import ResourceExhausted
from crossfade.plan import StoreName
from crossfade.query import Order, Query
from crossfade.store import (
    PAGE_BYTES,
    PAGE_DOCUMENTS,
    CommitOutcome,
    Intent,
    Page,
    Reading,
    Stored,
    WriteOutcome,
)
from crossfade.write import Write

_BY_NAME = (Order(NAME),)

Journal: TypeAlias = Callable[[Database, int, Sequence[tuple[str, Document | None]]], None]
"""Told of a commit (its time, and each changed path with what it will be) before it takes
effect. Where it raises, nothing has changed."""


def wall_clock() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1_000


class _Collection:
    """The paths of one collection, in the order of names."""

    def __init__(self) -> None:
        self._keys: list[tuple[tuple[tuple[int, int, str], ...], str]] = []

    def __iter__(self) -> Iterator[str]:
        return (path for _, path in self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, path: str) -> None:
        insort(self._keys, (path_key(path), path))

    def remove(self, path: str) -> None:
        del self._keys[bisect_left(self._keys, (path_key(path), path))]


class MemoryStore:
    """Documents in dicts. `clock` gives microseconds since 1970; times rise even if it does not.

    `name` is the store it stands for. It knows no versions but update times, so epochs
    of its versions are 0, and it keeps no record of intents. A commit that would add to more
    than `max_documents` is refused.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], int] = wall_clock,
        name: StoreName = StoreName.FIRESTORE,
        *,
        max_documents: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.database = database
        self.name = name
        self.last_commit = 0
        self._clock = clock
        self._max_documents = max_documents
        self._journal = journal
        self._time = 0
        self._documents: dict[str, Document] = {}
        self._bytes: dict[str, bytes] = {}
        self._by_path: dict[str, _Collection] = {}
        self._by_id: dict[str, _Collection] = {}

    # --- the synchronous core ------------------------------------------------------------------

    def read(self, path: str) -> Document | None:
        return self._documents.get(path)

    def read_bytes(self, path: str) -> bytes | None:
        """The serialised Document, made once per stored document."""
        data = self._bytes.get(path)
        if data is None and (document := self._documents.get(path)) is not None:
            data = self._bytes[path] = wire.document_bytes(document, self.database)
        return data

    def now(self) -> int:
        """The time of a read: every commit so far is at or before it, every later one after."""
        self._time = max(self._clock(), self._time)
        return self._time

    def run(self, query: Query) -> list[Document]:
        """The query's documents in order, projected. Raises InvalidArgument."""
        orders = queries.check(query)
        matches = queries.matcher(query, orders)
        found: Iterable[Document] = (
            document
            for path in self._candidates(query)
            if matches(document := self._documents[path])
        )
        if orders == _BY_NAME and query.limit is not None and not (query.start or query.end):
            found = islice(found, query.offset + query.limit)
        return queries.finish(query, orders, list(found))

    def apply_commit(self, writes: Sequence[Write]) -> CommitOutcome:
        """All writes, evaluated in order, or none. Raises the first error met."""
        for write in writes:
            writing.check(write)
        now = max(self._clock(), self._time + 1)
        staged: dict[str, _Staged] = {}
        results: list[tuple[Value, ...]] = []
        for write in writes:
            before = staged.get(write.path) or _staged(self._documents.get(write.path))
            outcome = writing.apply(write, before.document(write.path, now), now)
            base = None if outcome.fields is None else before.base
            staged[write.path] = _Staged(base, outcome.fields)
            results.append(outcome.results)
        made = {path: after.document(path, now) for path, after in staged.items()}
        self._apply(now, made)
        times = {
            path: None if document is None else document.update_time
            for path, document in made.items()
        }
        return CommitOutcome(
            tuple(
                WriteOutcome(times[write.path], values)
                for write, values in zip(writes, results, strict=True)
            ),
            now,
        )

    def dump(self) -> Iterator[Document]:
        """Every document, by path."""
        return iter(sorted(self._documents.values(), key=lambda document: document.path))

    def load(self, documents: Iterable[Document], time: int = 0) -> None:
        """Adds documents with the times they had. Every later commit is after `time`, too."""
        self._time = max(self._time, time)
        for document in documents:
            self._time = max(self._time, document.update_time)
            self._set(document.path, document)

    def expire(self, collection: str, field: str) -> int:
        """What a TTL policy does: deletes the documents of a collection group whose timestamp
        in `field` is past. Returns how many."""
        now = from_micros(self.now())
        past = [
            path
            for path in self._by_id.get(collection, ())
            if isinstance(when := self._documents[path].fields.get(field), datetime) and when <= now
        ]
        if past:
            self._apply(max(self._clock(), self._time + 1), dict.fromkeys(past))
        return len(past)

    def reset(self) -> None:
        """Deletes every document, as one commit."""
        self._apply(max(self._clock(), self._time + 1), dict.fromkeys(self._documents))

    def _apply(self, now: int, made: dict[str, Document | None]) -> None:
        """Makes the changes of one commit. Raises where there is no room, or no journal."""
        changes = [
            (path, document)
            for path, document in made.items()
            if self._documents.get(path) is not document
        ]
        self._check_room(changes)
        if self._journal is not None and changes:
            self._journal(self.database, now, changes)
        self._time = self.last_commit = now
        for path, document in changes:
            self._set(path, document)

    def _check_room(self, changes: Sequence[tuple[str, Document | None]]) -> None:
        limit = self._max_documents
        if limit is None:
            return
        more = sum((new is not None) - (path in self._documents) for path, new in changes)
        if more > 0 and len(self._documents) + more > limit:
            raise ResourceExhausted(
                f"commit: {len(self._documents) + more} documents would be stored, the limit of "
                f"this server is {limit} (--max-documents)"
            )

    def _set(self, path: str, document: Document | None) -> None:
        before = self._documents.get(path)
        if document is before:
            return
        self._bytes.pop(path, None)
        if document is None:
            del self._documents[path]
            self._unlist(path)
            return
        self._documents[path] = document
        if before is None:
            self._by_path.setdefault(collection_path(path), _Collection()).add(path)
            self._by_id.setdefault(collection_id(path), _Collection()).add(path)

    def _unlist(self, path: str) -> None:
        for index, key in (
            (self._by_path, collection_path(path)),
            (self._by_id, collection_id(path)),
        ):
            index[key].remove(path)
            if not len(index[key]):
                del index[key]

    def _candidates(self, query: Query) -> Iterable[str]:
        """The paths of the collections that the query may reach; in name order if it is one."""
        if query.collection is None:
            return sorted(self._documents, key=path_key)
        if query.collection_path is not None:
            return self._by_path.get(query.collection_path, ())
        return self._by_id.get(query.collection, ())

    # --- the store contract --------------------------------------------------------------------

    async def get(self, paths: Sequence[str], *, timeout: float) -> Reading:  # noqa: ARG002
        read_time = self.now()
        documents: list[Stored] = []
        for path in paths:
            document = self._documents.get(path)
            time = read_time if document is None else document.update_time
            documents.append(Stored(path, self.read_bytes(path), (0, time)))
        return Reading(tuple(documents), read_time)

    async def query(self, query: Query, *, timeout: float) -> AsyncIterator[Page]:  # noqa: ARG002
        found = self.run(query)
        tail = wire.field_bytes(3, wire.time_bytes(self.now()))
        whole = query.select is None
        frames: list[bytes] = []
        size, pages = 0, 0
        # The bytes are taken now: what later commits change is not in this result.
        ready = [
            (self.read_bytes(document.path) if whole else None)
            or wire.document_bytes(document, self.database)
            for document in found
        ]
        for data in ready:
            frames.append(wire.field_bytes(1, data))
            size += len(data)
            if size >= PAGE_BYTES or len(frames) >= PAGE_DOCUMENTS:
                yield Page(b"".join([*frames, tail]))
                frames, size, pages = [], 0, pages + 1
        if frames or not pages:
            yield Page(b"".join([*frames, tail]))

    async def commit(
        self,
        writes: Sequence[Write],
        *,
        timeout: float,  # noqa: ARG002
        intent: Intent | None = None,  # noqa: ARG002
    ) -> CommitOutcome:
        return self.apply_commit(writes)

    async def close(self) -> None:
        """Nothing is held open."""


class MemoryStores:
    """One store per database, made with `options` when it is first asked for."""

    def __init__(self, clock: Callable[[], int] = wall_clock, **options: Any) -> None:
        self._clock = clock
        self._options = options
        self._stores: dict[Database, MemoryStore] = {}

    def __call__(self, database: Database) -> MemoryStore:
        store = self._stores.get(database)
        if store is None:
            store = self._stores[database] = MemoryStore(database, self._clock, **self._options)
        return store

    def __iter__(self) -> Iterator[MemoryStore]:
        return iter(self._stores.values())


@dataclass(frozen=True, slots=True)
class _Staged:
    """A document inside a commit: what was stored when it began, unless deleted since,
    and the fields as they are now."""

    base: Document | None
    fields: Fields | None

    def document(self, path: str, now: int) -> Document | None:
        """What the commit would leave. Fields as before the commit keep the update_time."""
        if self.fields is None:
            return None
        if self.base is None:
            return Document(path, self.fields, now, now)
        if identical(self.base.fields, self.fields):
            return self.base
        return Document(path, self.fields, self.base.create_time, now)


def _staged(document: Document | None) -> _Staged:
    return _Staged(document, None if document is None else document.fields)
