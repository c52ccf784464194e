"""Documents in memory: commits, reads of now and of earlier, queries, transactions.

Everything happens between two awaits, so a commit or a query sees and leaves one
state without a lock. The core is synchronous (`read`, `run`, `apply_commit`); the
methods of the store contract stand on top of it.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TypeAlias

from crossfade import aggregate as aggregates
from crossfade import query as queries
from crossfade import wire
from crossfade import write as writing
from crossfade.aggregate import Aggregation
from crossfade.document import Database, Document, Value, from_micros
from crossfade.errors import Aborted, InvalidArgument, ResourceExhausted
from crossfade.key import after as after_key
from crossfade.key import below_key, name_key, path_of
from crossfade.plan import StoreName
from crossfade.query import FieldFilter, Op, Order, Query
from crossfade.store import (
    NOW,
    PAGE_BYTES,
    PAGE_DOCUMENTS,
    At,
    CommitOutcome,
    Intent,
    Page,
    Reading,
    Stored,
    WriteOutcome,
)
from crossfade.stores.memory.history import History
from crossfade.stores.memory.index import Found, Indexes
from crossfade.stores.memory.transactions import Transaction, Transactions
from crossfade.turns import Turns
from crossfade.write import Write

Change: TypeAlias = tuple[str, Document | None]
"""A path and what is stored there from now on."""
Journal: TypeAlias = Callable[[Database, int, Sequence[Change]], None]
"""Told of every commit with its time before it takes effect. If it raises, nothing changes."""
Watcher: TypeAlias = Callable[[int, Sequence[str]], None]
"""Told of every commit that changed something: its time, and the paths."""

MOST_DATABASES = 10_000
CACHE_BYTES = 64 * 1_048_576
"""Serialised documents that are kept, so that reading one again costs no encoding."""


def wall_clock() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1_000


class MemoryStore:
    """Documents in dicts. `clock` gives microseconds since 1970; times rise even if it does not.

    `name` is the store it stands for. It knows no versions but update times, so epochs
    of its versions are 0, and it keeps no record of intents. A commit that would leave
    more than `max_documents` is refused.
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
        self._clock = clock
        self._time = 0
        self.last_commit = 0
        self._max_documents = max_documents
        self._journal = journal
        self._documents: dict[bytes, Document] = {}
        self._cache: dict[bytes, bytes] = {}
        self._cached = 0
        self._indexes = Indexes(self._documents)
        self._history = History()
        self._transactions = Transactions(clock)
        self._watchers: list[Watcher] = []

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def used(self) -> bool:
        """Whether something happened here that has to be remembered."""
        return bool(self.last_commit or self._watchers or self._transactions)

    # --- the synchronous core: reading ---------------------------------------------------------

    def now(self) -> int:
        """The time of a read: every commit so far is at or before it, every later one after."""
        self._time = max(self._clock(), self._time)
        return self._time

    def read(self, path: str) -> Document | None:
        return self._documents.get(name_key(path))

    def run(self, query: Query, at: At = NOW) -> list[Document]:
        """The query's documents in order, projected. Raises InvalidArgument for a query or a
        moment that is illegal, FailedPrecondition for one that is too long ago."""
        return self._run(query, queries.check(query), at)[0]

    def _run(self, query: Query, orders: tuple[Order, ...], at: At) -> tuple[list[Document], int]:
        """A legal query's documents and the time of the read."""
        moment, transaction = self._moment(at)
        if transaction is not None:
            transaction.saw_query(query, orders)
        matches = queries.matcher(query, orders)
        found, ordered = self._candidates(query, orders, moment)
        matching: Iterable[Document] = filter(matches, found)
        if ordered and query.limit is not None and query.nearest is None:
            matching = islice(matching, query.offset + query.limit)
        finished = queries.finish(query, orders, list(matching), ordered=ordered)
        return finished, self._read_time(at, transaction)

    def _candidates(
        self, query: Query, orders: tuple[Order, ...], moment: int | None
    ) -> tuple[Iterable[Document], bool]:
        """Documents as they were at `moment` (None: now), among them all of the query's, and
        whether they stand in its order."""
        found: Found = self._indexes.find(query, orders)
        documents = self._documents
        changed = {} if moment is None else self._history.changed_since(moment)
        if not changed:
            return (documents[key] for key in found.keys), found.ordered
        kept = [documents[key] for key in found.keys if key not in changed]
        return kept + [before for before in changed.values() if before is not None], False

    def _moment(self, at: At) -> tuple[int | None, Transaction | None]:
        """The time to read at, None for what is stored now, and the transaction that reads.

        Raises InvalidArgument for a time that is yet to come or a transaction that is
        over, FailedPrecondition for a time before the version window.
        """
        transaction, moment = None, at.read_time
        if at.transaction is not None:
            transaction = self._transactions.use(at.transaction)
            moment = transaction.read_time
        elif moment is not None and moment > self.now():
            raise InvalidArgument("read_time: it cannot be in the future")
        if moment is None or moment >= self.last_commit:
            return None, transaction
        self._history.check(moment)
        return moment, transaction

    def _read_time(self, at: At, transaction: Transaction | None) -> int:
        """What an answer says that it was read at."""
        if transaction is not None:
            return transaction.read_time
        return self.now() if at.read_time is None else at.read_time

    def _document_bytes(self, document: Document, key: bytes) -> bytes:
        """The serialised document; one that is stored is encoded once."""
        stored = self._documents.get(key) is document
        data = self._cache.get(key) if stored else None
        if data is None:
            data = wire.document_bytes(document, self.database)
            if stored:
                self._keep(key, data)
        return data

    def _keep(self, key: bytes, data: bytes) -> None:
        self._cached += len(data)
        if self._cached > CACHE_BYTES:
            self._cache.clear()
            self._cached = len(data)
        self._cache[key] = data

    # --- the synchronous core: writing ---------------------------------------------------------

    def apply_commit(self, writes: Sequence[Write]) -> CommitOutcome:
        """All writes, evaluated in order, or none. Raises the first error met."""
        sizes = [writing.check(write) for write in writes]
        now = max(self._clock(), self._time + 1)
        after, results = writing.apply_all(writes, self.read, now, self.database)
        self._apply(now, after, sum(sizes))
        times = {
            path: None if document is None else document.update_time
            for path, document in after.items()
        }
        return CommitOutcome(
            tuple(
                WriteOutcome(times[write.path], values)
                for write, values in zip(writes, results, strict=True)
            ),
            now,
        )

    def _apply(self, now: int, after: dict[str, Document | None], size: int) -> None:
        """Makes the changes of one commit, told to the journal first and to watchers last."""
        changes = [
            (key, path, before, document)
            for path, document in after.items()
            if (before := self._documents.get(key := name_key(path))) is not document
        ]
        if self._max_documents is not None:
            self._check_room(
                sum((new is not None) - (old is not None) for _, _, old, new in changes)
            )
        if self._journal is not None and changes:
            self._journal(self.database, now, [(path, new) for _, path, _, new in changes])
        self._time = now
        if not changes:
            return
        self.last_commit = now
        for key, _, before, document in changes:
            self._history.record(now, key, before, size)
            size = 0
            self._set(key, before, document)
        paths = [path for _, path, _, _ in changes]
        for watcher in tuple(self._watchers):
            watcher(now, paths)

    def _set(self, key: bytes, before: Document | None, document: Document | None) -> None:
        self._cached -= len(self._cache.pop(key, b""))
        if document is None:
            if before is not None:
                del self._documents[key]
                self._indexes.remove(key, before)
            return
        self._documents[key] = document
        if before is None:
            self._indexes.add(key, document)
        else:
            self._indexes.change(key, before, document)

    def _check_room(self, more: int) -> None:
        most = self._max_documents
        if more > 0 and most is not None and len(self._documents) + more > most:
            raise ResourceExhausted(
                f"commit: {len(self._documents) + more} documents would be stored, the limit of "
                f"this server is {most} (--max-documents)"
            )

    # --- as a whole ----------------------------------------------------------------------------

    def dump(self) -> Iterator[Document]:
        """Every document, in the order of names."""
        return map(self._documents.__getitem__, self._indexes.names)

    def load(self, documents: Iterable[Document]) -> None:
        """Adds documents with the times they had, before there are any calls.

        What was there before them cannot be read at an earlier time.
        """
        new: dict[bytes, Document] = {}
        for document in documents:
            self._time = max(self._time, document.update_time)
            new[name_key(document.path)] = document
        for key in [key for key in new if key in self._documents]:
            self._set(key, self._documents[key], new.pop(key))
        self._documents.update(new)
        self._indexes.load(new.items())
        self.last_commit = self._time
        self._history.forget_all(self._time)

    def advance(self, moment: int) -> None:
        """Later commits get later times than `moment`: what was deleted by then stays older.

        As with `load`, nothing can be read at an earlier time.
        """
        self._time = self.last_commit = max(self._time, moment)
        self._history.forget_all(self._time)

    def reset(self) -> None:
        """Deletes every document, as one commit."""
        now = max(self._clock(), self._time + 1)
        self._apply(now, {document.path: None for document in self.dump()}, 0)

    def expire(self, collection: str, field: str) -> int:
        """What a TTL policy does: deletes the documents of a collection group whose timestamp
        in `field` is past. Returns how many."""
        where = FieldFilter((field,), Op.LESS_THAN_OR_EQUAL, from_micros(self.now()))
        past = self.run(Query(collection=collection, all_descendants=True, where=where))
        if past:
            now = max(self._clock(), self._time + 1)
            self._apply(now, {document.path: None for document in past}, 0)
        return len(past)

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Has every later commit told to `watcher`, within the commit. Returns what ends it."""
        self._watchers.append(watcher)

        def unsubscribe() -> None:
            with suppress(ValueError):
                self._watchers.remove(watcher)

        return unsubscribe

    # --- the store contract --------------------------------------------------------------------

    async def get(
        self,
        paths: Sequence[str],
        *,
        timeout: float,  # noqa: ARG002
        at: At = NOW,
        turns: Turns | None = None,  # noqa: ARG002 - nothing is decoded here
    ) -> Reading:
        moment, transaction = self._moment(at)
        read_time = self._read_time(at, transaction)
        documents: list[Stored] = []
        for path in paths:
            key = name_key(path)
            document = self._documents.get(key)
            if moment is not None:
                document = self._history.at(key, moment, document)
            if transaction is not None:
                transaction.saw(key)
            time, data = read_time, None
            if document is not None:
                time, data = document.update_time, self._document_bytes(document, key)
            documents.append(Stored(path, data, (0, time)))
        return Reading(tuple(documents), read_time)

    async def query(
        self,
        query: Query,
        *,
        timeout: float,  # noqa: ARG002
        at: At = NOW,
    ) -> AsyncIterator[Page]:
        read_time, found = self._query(query, at)
        tail = wire.field_bytes(3, wire.time_bytes(read_time))
        frames: list[bytes] = []
        size, pages = 0, 0
        # The bytes are taken now: what later commits change is not in this result.
        for data in found:
            frames.append(wire.field_bytes(1, data))
            size += len(data)
            if size >= PAGE_BYTES or len(frames) >= PAGE_DOCUMENTS:
                yield Page(b"".join([*frames, tail]))
                frames, size, pages = [], 0, pages + 1
        if frames or not pages:
            yield Page(b"".join([*frames, tail]))

    def _query(self, query: Query, at: At) -> tuple[int, list[bytes]]:
        """The time of the read and the query's documents as bytes."""
        found, read_time = self._run(query, queries.check(query), at)
        if query.whole:
            return read_time, [self._document_bytes(d, name_key(d.path)) for d in found]
        return read_time, [wire.document_bytes(document, self.database) for document in found]

    async def aggregate(
        self,
        query: Query,
        aggregations: Sequence[Aggregation],
        *,
        timeout: float,  # noqa: ARG002
        at: At = NOW,
    ) -> tuple[dict[str, Value], int]:
        """The aggregations by alias, over the documents that the query finds, and the time of
        the read."""
        orders = aggregates.check(query, aggregations)
        found, read_time = self._run(query, orders, at)
        return aggregates.evaluate(aggregations, found), read_time

    async def commit(
        self,
        writes: Sequence[Write],
        *,
        timeout: float,  # noqa: ARG002
        intent: Intent | None = None,  # noqa: ARG002
        transaction: bytes | None = None,
    ) -> CommitOutcome:
        """As the contract says. With a transaction: raises Aborted when what it read has
        changed since; it is over then, and after a success."""
        if transaction is None:
            return self.apply_commit(writes)
        ours = self._transactions.use(transaction)
        if ours.read_only and writes:
            raise InvalidArgument("transaction: a read-only transaction cannot write")
        if self._disturbed(ours):
            self._transactions.end(transaction)
            raise Aborted("Too much contention on these documents. Please try again.")
        outcome = self.apply_commit(writes)
        self._transactions.end(transaction)
        return outcome

    def _disturbed(self, transaction: Transaction) -> bool:
        """Whether something that a transaction read is no longer so."""
        moment = transaction.read_time
        if transaction.read_only or moment >= self.last_commit:
            return False
        if moment < self._history.oldest:
            return True  # what has changed since is no longer known
        return any(
            transaction.met(key, (before, self._documents.get(key)))
            for key, before in self._history.changed_since(moment).items()
        )

    async def begin(
        self, *, read_only: bool = False, read_time: int | None = None, retry: bytes | None = None
    ) -> bytes:
        """The id of a transaction. `read_time`: what a read-only one sees; `retry`: the one
        that it takes the place of. Raises InvalidArgument, FailedPrecondition,
        ResourceExhausted."""
        if read_time is not None:
            self._moment(At(read_time=read_time))
        if retry is not None:
            self._transactions.end(retry)
        return self._transactions.begin(read_time or self.now(), read_only=read_only)

    async def rollback(self, transaction: bytes) -> None:
        """Ends a transaction. One that is over already is none the worse."""
        self._transactions.end(transaction)

    async def list_collection_ids(self, parent: str, *, at: At = NOW) -> list[str]:
        """The collections right below a document, which may be missing, or the root for "",
        in order."""
        moment, transaction = self._moment(at)
        if transaction is not None:
            transaction.saw_below(below_key(parent))
        if moment is None:
            return list(self._indexes.collection_ids(parent))
        depth = parent.count("/") + 1 if parent else 0
        return list(dict.fromkeys(name.split("/")[depth] for name in self._names(parent, moment)))

    async def list_documents(
        self,
        collection: str,
        *,
        after: str | None = None,
        limit: int,
        missing: bool = False,
        at: At = NOW,
    ) -> list[str]:
        """At most `limit` paths of a collection's documents after one of them, in order.
        `missing`: also of documents that are not there and have descendants."""
        moment, transaction = self._moment(at)
        if transaction is not None:
            transaction.saw_below(below_key(collection))
        low = b"" if after is None else after_key(below_key(after))
        if moment is not None:
            return self._listed(collection, moment, low, limit, missing=missing)
        if not missing:
            keys = self._indexes.of_collection(collection).irange(low)
            return [path_of(key) for key in islice(keys, limit)]
        return list(islice(self._indexes.documents_below(collection, low), limit))

    def _listed(
        self, collection: str, moment: int, low: bytes, limit: int, *, missing: bool
    ) -> list[str]:
        """`list_documents` of an earlier moment."""
        depth = collection.count("/") + 2
        names = self._names(collection, moment)
        if not missing:
            names = (name for name in names if name.count("/") + 1 == depth)
        paths = dict.fromkeys("/".join(name.split("/")[:depth]) for name in names)
        return list(islice((path for path in paths if name_key(path) >= low), limit))

    def _names(self, path: str, moment: int) -> Iterator[str]:
        """The documents below a path at an earlier moment, in the order of names."""
        prefix, changed = below_key(path), self._history.changed_since(moment)
        keys = {key for key in self._indexes.below(prefix) if key not in changed}
        keys |= {key for key, before in changed.items() if before is not None}
        own = name_key(path) if path else b""
        return (path_of(key) for key in sorted(keys) if key.startswith(prefix) and key != own)

    async def partition(self, query: Query, count: int, *, at: At = NOW) -> list[str]:
        """At most `count` documents that cut the query's, in the order of names, into parts of
        about one size."""
        found = self.run(query, at)
        parts = min(count + 1, len(found))
        return [found[len(found) * part // parts].path for part in range(1, parts)]

    async def close(self) -> None:
        """Nothing is held open."""


class MemoryStores:
    """One store per database, made when it is first asked for; all of them with the same
    options, those of `MemoryStore`."""

    def __init__(
        self,
        clock: Callable[[], int] = wall_clock,
        *,
        max_documents: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._clock = clock
        self._max_documents = max_documents
        self.journal = journal
        self._stores: dict[Database, MemoryStore] = {}

    def __call__(self, database: Database) -> MemoryStore:
        store = self._stores.get(database)
        if store is None:
            self._make_room()
            store = self._stores[database] = MemoryStore(
                database, self._clock, max_documents=self._max_documents, journal=self._record
            )
        return store

    def __iter__(self) -> Iterator[MemoryStore]:
        return iter(self._stores.values())

    def _make_room(self) -> None:
        """A database is made by naming it. Those in which nothing ever happened are forgotten
        when there are too many. Raises ResourceExhausted."""
        if len(self._stores) < MOST_DATABASES:
            return
        self._stores = {name: store for name, store in self._stores.items() if store.used}
        if len(self._stores) >= MOST_DATABASES:
            raise ResourceExhausted(
                f"database: {MOST_DATABASES} databases hold documents, the limit of this server"
            )

    def _record(self, database: Database, time: int, changes: Sequence[Change]) -> None:
        if self.journal is not None:
            self.journal(database, time, changes)
