"""The heart as a backend of google.firestore.v1: an unchanged application migrates.

Reads of now are routed as everybody's; what a transaction reads, reads of the past and what
lists names are asked of the authority. There is one database, the sidecar's own, and
Crossfade's own collections are not in it.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace

import grpc
from google.cloud.firestore_v1 import types

from crossfade import aggregate as aggregates
from crossfade import wire
from crossfade.aggregate import Aggregation
from crossfade.call import Call
from crossfade.document import NAME, Database, Reference, Value, id_key, is_own
from crossfade.errors import Aborted, InvalidArgument, NotFound, Unavailable
from crossfade.identities import reads_only
from crossfade.migrator import Documents
from crossfade.query import Cursor, Order, Query
from crossfade.rpc.firestore_v1.backend import Watcher
from crossfade.rpc.firestore_v1.front import Front
from crossfade.rpc.firestore_v1.heart_listen import HeartListen
from crossfade.rpc.firestore_v1.server import (
    SERVICE,
    Streaming,
    Unary,
    streaming_methods,
    unary_methods,
)
from crossfade.rpc.firestore_v1.write_stream import WriteStreams
from crossfade.rpc.server import Wrapper
from crossfade.store import NOW, At, CommitOutcome, Page, Reading
from crossfade.stores.firestore import FirestoreStore, at_bytes
from crossfade.stores.postgres.changes import Changes
from crossfade.telemetry import Telemetry
from crossfade.transactions import BeginAnew, Transactions
from crossfade.write import Write, check

_NAMES_IN_PAGE = 300
MOST_DOOMED = 10_000
_CALL: ContextVar[Call | None] = ContextVar("call", default=None)
"""The call that the backend's methods are part of."""


class Heart:
    """The backend of the sidecar's database."""

    def __init__(
        self,
        documents: Documents,
        transactions: Transactions,
        telemetry: Telemetry,
        database: Database,
        changes: Changes | None = None,
    ) -> None:
        self._changes = changes
        self._doomed: dict[bytes, None] = {}
        self._documents = documents
        self._transactions = transactions
        self._telemetry = telemetry
        self._database = database

    def __call__(self, database: Database) -> "Heart":
        """Itself, which is the backend of one database only."""
        if database != self._database:
            raise NotFound(
                f"The database {database.database[:100]} does not exist for project "
                f"{database.project[:100]}: this sidecar serves {self._database.name}"
            )
        return self

    def _call(self, timeout: float | None = None, at: At = NOW) -> Call:
        """`at`: what it reads. Raises InvalidArgument where a caller chose a store for a read
        that is the authority's."""
        call = _CALL.get()
        if call is None:
            return Call(self._telemetry, time.monotonic() + (timeout or 60.0))
        if at is not NOW:
            call.check_unpinned()
        return call

    # --- reads --------------------------------------------------------------------------------

    def now(self) -> int:
        return time.time_ns() // 1_000

    async def get(self, paths: Sequence[str], *, timeout: float, at: At = NOW) -> Reading:
        call = self._call(timeout, at)
        for path in paths:
            _check_visible(path)
        if not paths:
            return Reading((), self.now())
        if at.transaction is not None and at.transaction not in self._doomed:
            try:
                return await self._transactions.get(at.transaction, paths, call)
            except BeginAnew as error:
                self._doom(at.transaction, error)
        if at.read_time is not None:
            return await self._transactions.authority.get_at(at.read_time, paths, call)
        return await self._documents.read(tuple(paths), call)

    async def query(self, query: Query, *, timeout: float, at: At = NOW) -> AsyncIterator[Page]:
        call = self._call(timeout, at)
        _check_visible(query.parent)
        _check_visible(query.collection or "")
        everything = query.collection is None
        if at.transaction is not None and at.transaction not in self._doomed:
            try:
                async for page in self._transactions.query(at.transaction, query, call):
                    yield _without_own(page, self._database) if everything else page
            except BeginAnew as error:  # raised before the first page
                self._doom(at.transaction, error)
            else:
                return
        if everything or at.read_time is not None:
            moment = At(read_time=at.read_time) if at.read_time is not None else NOW
            pages = self._transactions.authority.query(query, call, moment)
        else:
            pages = self._documents.query(query, call)
        async for page in pages:
            yield _without_own(page, self._database) if everything else page

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], *, timeout: float, at: At = NOW
    ) -> tuple[dict[str, Value], int]:
        call = self._call(timeout, at)
        _check_visible(query.parent)
        _check_visible(query.collection or "")
        if at.transaction is not None and at.transaction not in self._doomed:
            try:
                return await self._transactions.aggregate(at.transaction, query, aggregations, call)
            except BeginAnew as error:
                self._doom(at.transaction, error)
        if query.collection is None:
            return await self._aggregate_all(query, aggregations, at, call)
        if at.read_time is not None:
            found = await self._transactions.authority.aggregate(query, aggregations, call, at)
        else:
            found = await self._documents.aggregate(query, aggregations, call)
        return found.values, found.read_time

    async def _aggregate_all(
        self, query: Query, aggregations: Sequence[Aggregation], at: At, call: Call
    ) -> tuple[dict[str, Value], int]:
        """Of all collections: computed here, for the store would count Crossfade's own."""
        aggregates.check(query, aggregations)
        everything = replace(query, limit=None, offset=0)
        documents = [
            wire.parse_document(data, self._database)
            async for page in self.query(everything, timeout=call.left(), at=at)
            for number, data in wire.scan(page.frames)
            if number == 1 and isinstance(data, bytes)
        ]
        return aggregates.aggregate(query, documents, aggregations), self.now()

    # --- commits and transactions ---------------------------------------------------------------

    async def commit(
        self, writes: Sequence[Write], *, timeout: float, transaction: bytes | None = None
    ) -> CommitOutcome:
        call = self._call(timeout)
        for write in writes:
            check(write)
            _check_visible(write.path)
        if transaction is not None and transaction in self._doomed:
            del self._doomed[transaction]
            raise Aborted("what the transaction read is over; begin it anew")
        if transaction is not None:
            return await self._transactions.commit(transaction, writes, call)
        if not writes:
            return CommitOutcome((), self.now())
        return await self._documents.commit(writes, call)

    async def begin(
        self, *, read_only: bool = False, read_time: int | None = None, retry: bytes | None = None
    ) -> bytes:
        return await self._transactions.begin(
            self._call(), read_only=read_only, read_time=read_time, retry=retry
        )

    async def rollback(self, transaction: bytes) -> None:
        self._doomed.pop(transaction, None)
        await self._transactions.rollback(transaction, self._call())

    def _doom(self, transaction: bytes, error: BeginAnew) -> None:
        """Called for what can only be begun anew, while it is read. Clients do that by
        themselves when the commit is ABORTED, some of them only then: so reads go on, of now,
        and the commit is refused. A read-only transaction has no commit that would tell: raises
        what the read did."""
        if reads_only(transaction):
            raise error
        if len(self._doomed) >= MOST_DOOMED:
            del self._doomed[next(iter(self._doomed))]
        self._doomed[transaction] = None

    # --- names ----------------------------------------------------------------------------------

    async def list_collection_ids(self, parent: str, *, at: At = NOW) -> list[str]:
        _check_visible(parent)
        call = self._call()
        found: set[str] = set()
        for firestore, holds in await self._transactions.authority.of_each(call, at):
            if firestore is not None:
                names = await _collection_ids(firestore, parent, at, call)
            else:
                postgres = self._transactions.authority.postgres
                names = await postgres.collection_ids(parent, timeout=call.left())
            found.update(name for name in names if holds(name) and not is_own(name))
        return sorted(found, key=id_key)

    async def list_documents(
        self,
        collection: str,
        *,
        after: str | None = None,
        limit: int,
        missing: bool = False,
        at: At = NOW,
    ) -> list[str]:
        _check_visible(collection)
        parent, _, name = collection.rpartition("/")
        call = self._call()
        if missing:
            firestore = await self._transactions.authority.of(name, call, at)
            if firestore is not None:
                return await _with_missing(firestore, parent, name, after, limit, at, call)
            ids = await self._transactions.authority.postgres.document_ids(
                collection, timeout=call.left()
            )
            paths = [f"{collection}/{identity}" for identity in ids]
            start = 0 if after is None else paths.index(after) + 1 if after in paths else None
            if start is None:  # it is gone since the page before
                start = sum(path.encode() <= (after or "").encode() for path in paths)
            return paths[start : start + limit]
        query = Query(
            parent=parent,
            collection=name,
            order_by=(Order(NAME),),
            start=None if after is None else Cursor((Reference(after),), before=False),
            limit=limit,
            select=(NAME,),
        )
        return await self._names(query, at, call)

    async def partition(self, query: Query, count: int, *, at: At = NOW) -> list[str]:
        _check_visible(query.parent)
        _check_visible(query.collection or "")
        call = self._call()
        firestore = await self._transactions.authority.of(query.collection, call, at)
        if firestore is not None:
            return await _partitions(firestore, query, count, at, call)
        names = Query(query.parent, query.collection, all_descendants=True, select=(NAME,))
        found = await self._names(names, at, call)
        parts = min(count + 1, len(found))
        return [found[len(found) * part // parts] for part in range(1, parts)]

    async def _names(self, query: Query, at: At, call: Call) -> list[str]:
        """The paths that a query finds."""
        return [
            self._database.relative(wire.identity_of(data)[0])
            async for page in self.query(query, timeout=call.left(), at=at)
            for number, data in wire.scan(page.frames)
            if number == 1 and isinstance(data, bytes)
        ]

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Of commits that PostgreSQL decides; Firestore's are not told of here."""
        if self._changes is None:
            raise Unavailable("this sidecar runs without PostgreSQL")
        return self._changes.subscribe(watcher)


def _check_visible(path: str) -> None:
    """Raises InvalidArgument for collections of Crossfade's own."""
    if is_own(path):
        raise InvalidArgument(f"{path.partition('/')[0][:60]} is Crossfade's own")


def _without_own(page: Page, database: Database) -> Page:
    """A page of a query of all collections without Crossfade's documents."""
    kept = b""
    for number, value in wire.scan(page.frames):
        if number == 1 and isinstance(value, bytes):
            if not is_own(database.relative(wire.identity_of(value)[0])):
                kept += wire.field_bytes(1, value)
        elif number == 3 and isinstance(value, bytes):
            kept += wire.field_bytes(3, value)
    return Page(kept, page.state)


# --- what Firestore is asked by its own methods --------------------------------------------------


async def _collection_ids(firestore: FirestoreStore, parent: str, at: At, call: Call) -> list[str]:
    kind = types.ListCollectionIdsRequest.pb()
    found: list[str] = []
    token = ""
    while True:
        request = kind(
            parent=firestore.database.full(parent), page_size=_NAMES_IN_PAGE, page_token=token
        )
        data = request.SerializeToString() + at_bytes(At(read_time=at.read_time), 0, 4)
        answer = await firestore.ask("ListCollectionIds", data, parent, timeout=call.left())
        reply = types.ListCollectionIdsResponse.pb().FromString(answer)
        found += reply.collection_ids
        token = reply.next_page_token
        if not token:
            return found


async def _with_missing(
    firestore: FirestoreStore,
    parent: str,
    collection: str,
    after: str | None,
    limit: int,
    at: At,
    call: Call,
) -> list[str]:
    """Firestore goes on by tokens of its own, so it is asked from the beginning."""
    kind = types.ListDocumentsRequest.pb()
    found: list[str] = []
    token = ""
    while True:
        request = kind(
            parent=firestore.database.full(parent),
            collection_id=collection,
            page_size=_NAMES_IN_PAGE,
            page_token=token,
            show_missing=True,
        )
        request.mask.field_paths.append("__name__")
        data = request.SerializeToString() + at_bytes(at, 8, 10)
        answer = await firestore.ask("ListDocuments", data, parent, timeout=call.left())
        reply = types.ListDocumentsResponse.pb().FromString(answer)
        paths = [firestore.database.relative(document.name) for document in reply.documents]
        if after is not None and after in paths:
            paths, after = paths[paths.index(after) + 1 :], None
        if after is None:
            found += paths
        token = reply.next_page_token
        if not token or len(found) >= limit:
            return found[:limit]


async def _partitions(
    firestore: FirestoreStore, query: Query, count: int, at: At, call: Call
) -> list[str]:
    request = types.PartitionQueryRequest.pb()(
        parent=firestore.database.full(query.parent), partition_count=count
    )
    request.structured_query.MergeFromString(wire.encode_query(query, firestore.database))
    found: list[str] = []
    while True:
        data = request.SerializeToString() + at_bytes(At(read_time=at.read_time), 0, 6)
        answer = await firestore.ask("PartitionQuery", data, query.parent, timeout=call.left())
        reply = types.PartitionQueryResponse.pb().FromString(answer)
        for cursor in reply.partitions:
            found += [firestore.database.relative(v.reference_value) for v in cursor.values]
        request.page_token = reply.next_page_token
        if not request.page_token:
            return sorted(found)


# --- the service ---------------------------------------------------------------------------------


def handler(heart: Heart, listen: HeartListen, wrap: Wrapper) -> grpc.GenericRpcHandler:
    """The service over the heart, for the sidecar's server."""
    front = Front(heart)
    handlers = {
        name: wrap.unary(f"{SERVICE}/{name}", _unary(method))
        for name, method in unary_methods(front).items()
    }
    handlers |= {
        name: wrap.streaming(f"{SERVICE}/{name}", _streaming(method))
        for name, method in streaming_methods(front).items()
    }
    handlers["Listen"] = wrap.both_ways(f"{SERVICE}/Listen", listen.serve)
    handlers["Write"] = wrap.both_ways(f"{SERVICE}/Write", WriteStreams(heart).serve)
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _unary(method: Unary) -> Callable[[bytes, Call], Awaitable[bytes]]:
    async def handle(data: bytes, call: Call) -> bytes:
        _CALL.set(call)
        return await method(data, call.left())

    return handle


def _streaming(method: Streaming) -> Callable[[bytes, Call], AsyncIterator[bytes]]:
    async def handle(data: bytes, call: Call) -> AsyncIterator[bytes]:
        _CALL.set(call)
        async for frame in method(data, call.left()):
            yield frame

    return handle
