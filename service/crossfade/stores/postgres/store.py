"""PostgreSQL as a document store."""

from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from crossfade.aggregate import Aggregation
from crossfade.document import Database
from crossfade.mapping import Mappings
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.store import Aggregated, CommitOutcome, Intent, Page, Reading, Seen
from crossfade.stores.postgres.commit import Committer, Read
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.ranges import Ranges
from crossfade.stores.postgres.reader import Reader
from crossfade.stores.postgres.rows import DocumentTables
from crossfade.turns import Turns
from crossfade.write import Write


class PostgresStore:
    """Mapped collections in their tables, all others in the generic one.

    The lanes are the caller's, and stay open when the store is closed. `enforce`: what a
    type or a constraint refuses is an error and not kept in the remainder, while no other
    store follows.
    """

    name = StoreName.POSTGRESQL

    def __init__(
        self,
        lanes: Lanes,
        mappings: Mappings,
        database: Database,
        group: str = "default",
        *,
        enforce: bool = False,
    ) -> None:
        tables = DocumentTables(mappings, database)
        self._reader = Reader(lanes, tables, group)
        self.ranges = Ranges(lanes, tables)
        self._committer = Committer(lanes, tables, self._reader, group, enforce=enforce)

    def get(
        self, paths: Sequence[str], *, timeout: float, turns: Turns | None = None
    ) -> Coroutine[Any, Any, Reading]:
        return self._reader.get(paths, timeout, turns)

    def query(self, query: Query, *, timeout: float) -> AsyncIterator[Page]:
        return self._reader.query(query, timeout)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], *, timeout: float
    ) -> Aggregated:
        """The aggregations by alias, over the documents that the query finds."""
        return await self._reader.aggregate(query, aggregations, timeout)

    async def commit(
        self,
        writes: Sequence[Write],
        *,
        timeout: float,
        intent: Intent | None = None,
        reads: Sequence[Read] = (),
        seen: Seen | None = None,
    ) -> CommitOutcome:
        """As the contract says; and an optimistic transaction where there are `reads`: paths
        with the `Stored.version` that `get` answered for them.

        Raises Aborted, nothing done, when a version is another one now: the document was
        written, made, deleted or moved to another epoch. What is compared and what is
        written is of one moment under the locks of all paths, so transactions that read by
        `get` alone are serializable, whenever and in however many calls they read. A document
        that changed and came back to its content has changed.

        `seen` is all that a transaction has read, `reads` included: its queries, too, are run
        again behind a lock that keeps all writers of their collections out, so that a document
        that belongs to a result by now (a phantom) is noticed.
        """
        if seen is None:
            return await self._committer.commit(writes, timeout, intent, reads)
        return await self._committer.commit(writes, timeout, intent, seen.reads, seen.queries)

    async def collection_ids(self, parent: str, *, timeout: float) -> list[str]:
        """The ids of the collections right below a document, or below the root for ""."""
        return await self._reader.collection_ids(parent, timeout)

    async def document_ids(self, collection: str, *, timeout: float) -> list[str]:
        """The ids of a collection's documents, also of those that are missing and have
        descendants."""
        return await self._reader.document_ids(collection, timeout)

    async def was_done(self, intents: Sequence[str], *, timeout: float) -> bool:
        """Whether one of a request's intents is known to have been committed."""
        return await self._reader.was_done(intents, timeout)

    async def close(self) -> None:
        """Nothing is held open here."""
