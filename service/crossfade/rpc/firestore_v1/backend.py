"""What the protocol needs of whoever holds the documents."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, TypeAlias

from crossfade.aggregate import Aggregation
from crossfade.document import Database, Value
from crossfade.query import Query
from crossfade.store import NOW, At, CommitOutcome, Page, Reading
from crossfade.write import Write

Watcher: TypeAlias = Callable[[int, Sequence[str]], None]
"""Told of a commit that changed something: its time, and the paths. It does no more than
take note, and raises nothing."""


class Backend(Protocol):
    """A store of documents with a past and with transactions.

    Paths are relative and legal, times are microseconds, timeouts seconds. Every method
    raises the errors of `crossfade.errors` only. A read takes its moment from `at`:
    InvalidArgument for a time to come or a transaction that is over,
    FailedPrecondition for a time before the version window.
    """

    def now(self) -> int:
        """The time of a read: every commit so far is at or before it, later ones after.

        "So far" are those that watchers were told of: the version at a time that was given
        out here never gains a change that is told of afterwards.
        """
        ...

    async def get(self, paths: Sequence[str], *, timeout: float, at: At = NOW) -> Reading: ...

    def query(self, query: Query, *, timeout: float, at: At = NOW) -> AsyncIterator[Page]: ...

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], *, timeout: float, at: At = NOW
    ) -> tuple[dict[str, Value], int]:
        """The results by alias, and the time of the read."""
        ...

    async def commit(
        self, writes: Sequence[Write], *, timeout: float, transaction: bytes | None = None
    ) -> CommitOutcome:
        """All writes or none. Raises Aborted when what the transaction read has changed."""
        ...

    async def begin(
        self, *, read_only: bool = False, read_time: int | None = None, retry: bytes | None = None
    ) -> bytes: ...

    async def rollback(self, transaction: bytes) -> None: ...

    async def list_collection_ids(self, parent: str, *, at: At = NOW) -> list[str]: ...

    async def list_documents(
        self,
        collection: str,
        *,
        after: str | None = None,
        limit: int,
        missing: bool = False,
        at: At = NOW,
    ) -> list[str]: ...

    async def partition(self, query: Query, count: int, *, at: At = NOW) -> list[str]: ...

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Has every later commit told to `watcher`; returns what ends it."""
        ...


Backends: TypeAlias = Callable[[Database], Backend]
"""The backend of a database."""
