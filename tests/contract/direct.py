"""Stores asked in the words of the protocol, without a socket between."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from crossfade.aggregate import Aggregation
from crossfade.document import Value
from crossfade.query import Query
from crossfade.rpc.firestore_v1.backend import Backends
from crossfade.rpc.firestore_v1.front import Front
from crossfade.store import NOW, At, CommitOutcome, Page, Reading
from crossfade.stores.postgres.store import PostgresStore
from crossfade.write import Write
from tests.contract.protocol import SECONDS


class Direct:
    """The methods of the front, called with the bytes of requests."""

    def __init__(self, name: str, backends: Backends) -> None:
        self.name = name
        front = Front(backends)
        self._unary = {
            "Commit": front.commit,
            "BatchWrite": front.batch_write,
            "GetDocument": front.get_document,
        }
        self._stream = {
            "BatchGetDocuments": front.batch_get_documents,
            "RunQuery": front.run_query,
            "RunAggregationQuery": front.run_aggregation_query,
        }

    async def unary(self, method: str, request: Any) -> bytes:
        return await self._unary[method](request.SerializeToString(), SECONDS)

    async def stream(self, method: str, request: Any) -> list[bytes]:
        frames = self._stream[method](request.SerializeToString(), SECONDS)
        return [frame async for frame in frames]


class Present:
    """PostgreSQL as the backend of reads of now, and of commits: what its contract has."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    async def get(self, paths: Sequence[str], *, timeout: float, at: At = NOW) -> Reading:
        assert at == NOW
        return await self._store.get(paths, timeout=timeout)

    def query(self, query: Query, *, timeout: float, at: At = NOW) -> AsyncIterator[Page]:
        assert at == NOW
        return self._store.query(query, timeout=timeout)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], *, timeout: float, at: At = NOW
    ) -> tuple[dict[str, Value], int]:
        assert at == NOW
        found = await self._store.aggregate(query, aggregations, timeout=timeout)
        return found.values, found.read_time

    async def commit(
        self, writes: Sequence[Write], *, timeout: float, transaction: bytes | None = None
    ) -> CommitOutcome:
        assert transaction is None
        return await self._store.commit(writes, timeout=timeout)


def backends(store: PostgresStore) -> Backends:
    return lambda _: cast("Any", Present(store))
