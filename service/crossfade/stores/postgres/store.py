"""PostgreSQL as a document store."""

from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from crossfade.document import Database
from crossfade.mapping import Mappings
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.store import CommitOutcome, Intent, Page, Reading
from crossfade.stores.postgres.commit import Committer
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.reader import Reader
from crossfade.stores.postgres.rows import DocumentTables
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
        self._committer = Committer(lanes, tables, self._reader, group, enforce=enforce)

    def get(self, paths: Sequence[str], *, timeout: float) -> Coroutine[Any, Any, Reading]:
        return self._reader.get(paths, timeout)

    def query(self, query: Query, *, timeout: float) -> AsyncIterator[Page]:
        return self._reader.query(query, timeout)

    async def commit(
        self, writes: Sequence[Write], *, timeout: float, intent: Intent | None = None
    ) -> CommitOutcome:
        return await self._committer.commit(writes, timeout, intent)

    async def close(self) -> None:
        """Nothing is held open here."""
