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
    of its versions are 0, and it keeps no record of intents.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], int] = wall_clock,
        name: StoreName = StoreName.FIRESTORE,
    ) -> None:
        self.database = database
        self.name = name
        self.last_commit = 0
        self._clock = clock
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
        self._time = self.last_commit = now
        times: dict[str, int | None] = {}
        for path, after in staged.items():
            document = after.document(path, now)
            times[path] = None if document is None else document.update_time
            self._set(path, document)
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

    def load(self, documents: Iterable[Document]) -> None:
        """Adds documents with the times they had."""
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
        for path in past:
            self._set(path, None)
        return len(past)

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
        whole = query.whole
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
    """One store per database, made when it is first asked for."""

    def __init__(self, clock: Callable[[], int] = wall_clock) -> None:
        self._clock = clock
        self._stores: dict[Database, MemoryStore] = {}

    def __call__(self, database: Database) -> MemoryStore:
        store = self._stores.get(database)
        if store is None:
            store = self._stores[database] = MemoryStore(database, self._clock)
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
