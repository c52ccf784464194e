"""One moment of the database, held open: what read-only transactions and listeners read.

A snapshot occupies a connection until it is closed, so there are few of them, on
connections that nothing else needs.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from crossfade.aggregate import Aggregation
from crossfade.document import Database
from crossfade.errors import Aborted, DeadlineExceeded, InvalidArgument, ResourceExhausted
from crossfade.mapping import Mappings
from crossfade.query import Query
from crossfade.store import Aggregated, Page, Reading
from crossfade.stores.postgres.lanes import Connection, Lanes
from crossfade.stores.postgres.reader import SNAPSHOT, Reader
from crossfade.stores.postgres.rows import NOW, DocumentTables

T = TypeVar("T")

IDLE_SECONDS = 75
"""Longer than a transaction may stand idle, which is ended by its owner first."""
WAIT_SECONDS = 2.0
"""How long a snapshot may wait for a connection."""
_BEGIN = f"""begin isolation level {SNAPSHOT};
set local idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'"""
_STATE = f"select {NOW}, grp, epoch from (select) one left join crossfade.control on true"


class HeldSnapshot:
    """The database as it was when this was opened. `epochs`, by group, and `read_time`
    (microseconds) are of that moment. One statement at a time; after an error it is closed."""

    def __init__(
        self,
        lanes: Lanes,
        reader: Reader,
        connection: Connection,
        epochs: Mapping[str, int],
        read_time: int,
    ) -> None:
        self._lanes = lanes
        self._reader = reader
        self._connection: Connection | None = connection
        self._turn = asyncio.Lock()
        self.epochs = epochs
        self.read_time = read_time

    async def get(self, paths: Sequence[str], timeout: float) -> Reading:
        async with self._turn:
            connection = self._held()
            return await self._kept(self._reader.get_on(connection, paths), timeout)

    async def query(self, query: Query, timeout: float) -> AsyncIterator[Page]:
        async with self._turn:
            connection = self._held()
            pages = await self._kept(self._reader.query_on(connection, query), timeout)
        for page in pages:
            yield page

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], timeout: float
    ) -> Aggregated:
        async with self._turn:
            connection = self._held()
            asked = self._reader.aggregate_on(connection, query, aggregations)
            return await self._kept(asked, timeout)

    async def fetch(self, query: str, *args: Any, timeout: float) -> list[Any]:
        """The rows of a statement."""
        async with self._turn:
            return await self._kept(self._held().fetch(query, *args), timeout)

    def _held(self) -> Connection:
        if self._connection is None:
            raise Aborted("transaction: what it reads was given up after an error; begin it anew")
        return self._connection

    async def _kept(self, asked: Awaitable[T], timeout: float) -> T:
        connection = self._held()
        try:
            async with self._lanes.translated(connection), asyncio.timeout(timeout):
                return await asked
        except InvalidArgument:
            raise  # nothing was asked yet
        except BaseException:
            # Its transaction is spoilt, or a statement may still run in it.
            connection.terminate()
            self._connection = None
            self._lanes.release(connection)
            raise

    async def close(self) -> None:
        """Lets the connection go. May be called twice."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await connection.execute("rollback")
        except Exception:  # noqa: BLE001 - a connection that cannot end it is dropped
            connection.terminate()
        finally:
            self._lanes.release(connection)


class Snapshots:
    """Opens snapshots on lanes of their own, which are the caller's."""

    def __init__(
        self, lanes: Lanes, mappings: Mappings, database: Database, group: str = "default"
    ) -> None:
        self._lanes = lanes
        self._reader = Reader(lanes, DocumentTables(mappings, database), group)

    async def open(self, timeout: float, wait: float = WAIT_SECONDS) -> HeldSnapshot:
        """Raises ResourceExhausted when all connections for snapshots are held for `wait`
        seconds."""
        try:
            connection = await self._lanes.hold(min(timeout, wait))
        except DeadlineExceeded as error:
            raise ResourceExhausted(
                "transaction: as many read-only transactions are open as PostgreSQL has "
                "connections for; end some, or try again"
            ) from error
        try:
            async with self._lanes.translated(connection), asyncio.timeout(timeout):
                await connection.execute(_BEGIN)
                rows = await connection.fetch(_STATE)
        except BaseException:
            self._lanes.release(connection)
            raise
        epochs = {row[1]: row[2] for row in rows if row[1] is not None}
        return HeldSnapshot(self._lanes, self._reader, connection, epochs, rows[0][0])
