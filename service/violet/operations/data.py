"""The proxy server's data at the heart: reads by whoever may answer, units of work at the
authority. What the methods have in common."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

from crossfade import wire
from crossfade.aggregate import Aggregation, AggregationKind
from crossfade.call import Call
from crossfade.document import Database, Document, check_id
from crossfade.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from crossfade.migrator import Documents
from crossfade.query import CompositeFilter, FieldFilter, Filter, Op, Query
from crossfade.transactions import Transaction, Transactions
from crossfade.write import Write, check
from crossfade_api.v1 import crossfade_pb2
from violet.operations import loads, pages
from violet.operations.decision import Decision
from violet.operations.fields import INIT

T = TypeVar("T")

MAX_REQUEST_ID_BYTES = 96
"""Below that of a commit: a sweep names the commits of its parts by it."""
MAX_SECONDS = 100 * 366 * 86_400.0
AT_ONCE = 8
"""Parts of a sweep that run beside each other."""
COUNT = (Aggregation(AggregationKind.COUNT, "count"),)


class Data:
    def __init__(self, migrator: Documents, transactions: Transactions, database: Database) -> None:
        self._migrator = migrator
        self._transactions = transactions
        self.database = database

    # --- reads ----------------------------------------------------------------------------------

    async def stored(self, path: str, call: Call) -> bytes:
        """The document's bytes. Raises NotFound."""
        reading = await self._migrator.read((path,), call)
        data = reading.documents[0].data
        if data is None:
            raise NotFound(f"document {path} does not exist")
        return data

    async def find(self, path: str, call: Call) -> Document | None:
        reading = await self._migrator.read((path,), call)
        data = reading.documents[0].data
        return None if data is None else wire.parse_document(data, self.database)

    async def messages(self, query: Query, call: Call) -> list[Any]:
        """The documents of a query, as messages."""
        frames = bytearray()
        async for part in self._migrator.query(query, call):
            frames += part.frames
        return [*crossfade_pb2.QueryReply.FromString(bytes(frames)).documents]

    async def page(
        self,
        query: Query,
        size: int,
        token: str,
        call: Call,
        keep: Callable[[Document], bool] | None = None,
    ) -> tuple[list[Any], str]:
        """Messages of a page, and the token of the next one, "" where there is none.

        `keep`: those that belong to the answer; the others are of the page, and left out.
        """
        found = await self.messages(pages.page(query, size, token), call)
        last = self.database.relative(found[-1].name) if len(found) == size else ""
        kept = [message for message in found if not message.name.endswith(f"/{INIT}")]
        if keep is not None:
            kept = [m for m in kept if keep(wire.decode_document(m, self.database))]
        return kept, pages.token_after(query, last) if last else ""

    async def documents(
        self, query: Query, size: int, token: str, call: Call
    ) -> tuple[list[Document], str]:
        """As `page`, of documents."""
        found, following = await self.page(query, size, token, call)
        return [wire.decode_document(message, self.database) for message in found], following

    async def scan(self, query: Query, call: Call) -> AsyncIterator[Document]:
        """Every document of a query, page by page."""
        token = ""
        while True:
            found, token = await self.documents(query, pages.MAX_SIZE, token, call)
            for document in found:
                yield document
            if not token:
                return

    async def count(self, query: Query, call: Call) -> int:
        """How many documents a query finds."""
        found = await self._migrator.aggregate(query, COUNT, call)
        return int(found.values["count"])  # type: ignore[arg-type]

    async def counts(self, queries: Sequence[Query], call: Call) -> list[int]:
        """How many documents each of the queries finds, all at one moment."""
        transaction = await self._transactions.begin(call, read_only=True)
        try:
            found = []
            for query in queries:
                values, _ = await self._transactions.aggregate(transaction, query, COUNT, call)
                found.append(int(values["count"]))  # type: ignore[arg-type]
            return found
        finally:
            await self._transactions.rollback(transaction, call)

    # --- units of work --------------------------------------------------------------------------

    async def run(
        self, work: Callable[[Transaction], Awaitable[T]], call: Call, request_id: str
    ) -> T:
        """The work in a transaction, again as long as others get in its way."""
        return await self._run(work, call, checked(request_id))

    async def _run(
        self, work: Callable[[Transaction], Awaitable[T]], call: Call, request_id: str | None
    ) -> T:
        """A request that finds nothing to do, or is refused, is looked at once more: the same
        request, sent twice at once, may have been done since this one asked whether it was,
        and then what stands in its way is its own work."""
        nothing = False

        async def watched(transaction: Transaction) -> T:
            nonlocal nothing
            result = await work(transaction)
            nothing = not transaction.writes and not transaction.replayed
            return result

        try:
            try:
                result = await self._transactions.run(watched, call, request_id=request_id)
            except (AlreadyExists, NotFound, FailedPrecondition):
                if request_id is None:
                    raise
            else:
                if request_id is None or not nothing:
                    return result
            return await self._transactions.run(work, call, request_id=request_id)
        except Aborted:
            # Its own text names a document, whose id may be a key or an email.
            raise Aborted("others were in the way until the deadline was over") from None

    async def side_by_side(
        self,
        works: Sequence[tuple[Callable[[Transaction], Awaitable[T]], str]],
        call: Call,
        request_id: str,
    ) -> list[T]:
        """Units of work, each with the name of its part; a few of them at a time. The first
        error ends those under way."""
        limit = asyncio.Semaphore(AT_ONCE)
        known = checked(request_id)

        async def one(work: Callable[[Transaction], Awaitable[T]], part: str) -> T:
            async with limit:
                return await self._run(work, call, None if known is None else part)

        parts = [asyncio.ensure_future(one(work, part)) for work, part in works]
        try:
            return await asyncio.gather(*parts)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def sweep(
        self,
        documents: Iterable[Document],
        work: Callable[[Transaction, str], Awaitable[bool]],
        call: Call,
        request_id: str,
    ) -> list[str]:
        """The work for each document, in a transaction of its own; the paths of those for
        which it said that it did something."""
        paths = [document.path for document in documents]

        def bound(path: str) -> Callable[[Transaction], Awaitable[bool]]:
            return lambda transaction: work(transaction, path)

        works = [(bound(path), part_of(request_id, path)) for path in paths]
        done = await self.side_by_side(works, call, request_id)
        return [path for path, acted in zip(paths, done, strict=True) if acted]

    async def delete_where(
        self,
        documents: Iterable[Document],
        holds: Callable[[Document, int], bool],
        call: Call,
        request_id: str,
    ) -> list[str]:
        """Deletes those of the documents of which it still holds then; their paths."""

        async def work(transaction: Transaction, path: str) -> bool:
            document = await transaction.get(path)
            gone = document is not None and holds(document, transaction.now)
            if gone:
                transaction.write(Write(path, None))
            return gone or transaction.replayed

        return await self.sweep(documents, work, call, request_id)


def part_of(request_id: str, name: str) -> str:
    """The request id of one part of an operation."""
    return f"{request_id}/{blake2b(name.encode(), digest_size=12).hexdigest()}"


def checked(request_id: str) -> str | None:
    size = len(request_id.encode())
    if size > MAX_REQUEST_ID_BYTES:
        raise InvalidArgument(
            f"request_id: {size} bytes are over the limit of {MAX_REQUEST_ID_BYTES} bytes"
        )
    return request_id or None


def carry_out(transaction: Transaction, decision: Decision[T]) -> T:
    """What was decided is written; the answer. Raises InvalidArgument for an illegal write."""
    for write in decision.writes:
        check(write)
    transaction.write(*decision.writes)
    return decision.answer


async def statuses(transaction: Transaction, miners: Sequence[int]) -> loads.Statuses:
    """The status documents of miners, by uid."""
    found = await transaction.get_all([loads.status_path(uid) for uid in miners])
    return dict(zip(miners, found, strict=True))


# --- what is asked for --------------------------------------------------------------------------


def path_in(collection: str, identity: str, field: str) -> str:
    """Raises InvalidArgument for what cannot be an id."""
    check_id(identity, field)
    return f"{collection}/{identity}"


def secret_path_in(collection: str, identity: str, field: str) -> str:
    """As `path_in`, of an id that no error may quote: a key, or an email."""
    try:
        check_id(identity, field)
    except InvalidArgument:
        raise InvalidArgument(f"{field}: it cannot be the id of a document") from None
    return f"{collection}/{identity}"


def uid_of(uid: int, field: str = "uid") -> int:
    if uid < 0:
        raise InvalidArgument(f"{field}: it is negative")
    return uid


def limit_of(limit: int) -> int:
    """Of a sweep."""
    return pages.size_of(limit, most=500)


def seconds(request: Any, field: str, default: float) -> float:
    """A duration's seconds. Raises InvalidArgument for a negative one, and one of a life."""
    if not request.HasField(field):
        return default
    duration = getattr(request, field)
    found = float(duration.seconds + duration.nanos / 1e9)
    if not 0 <= found <= MAX_SECONDS:
        raise InvalidArgument(f"{field}: it is not between 0 and {MAX_SECONDS:.0f} seconds")
    return found


def now() -> int:
    """Microseconds, for reads; a unit of work has its transaction's own."""
    return time.time_ns() // 1_000


def matching(collection: str, *filters: Filter | None) -> Query:
    """The documents that pass all of the filters."""
    given = tuple(each for each in filters if each is not None)
    if not given:
        return Query(collection=collection)
    where = given[0] if len(given) == 1 else CompositeFilter(False, given)
    return Query(collection=collection, where=where)


def equals(name: str, value: Any) -> Filter:
    return FieldFilter((name,), Op.EQUAL, value)


def given(name: str, value: str) -> Filter | None:
    """Nothing where nothing is asked for."""
    return equals(name, value) if value else None


def among(name: str, values: Iterable[str]) -> Filter | None:
    """One of the values; nothing where there is none."""
    found: list[Any] = list(dict.fromkeys(values))
    if not found:
        return None
    return equals(name, found[0]) if len(found) == 1 else FieldFilter((name,), Op.IN, found)


def contains(name: str, value: Any) -> Filter:
    return FieldFilter((name,), Op.ARRAY_CONTAINS, value)
