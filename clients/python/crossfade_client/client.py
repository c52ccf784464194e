"""The async client. `sync.py` has the same for callers that wait."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from typing import Self, TypeVar, Unpack

import grpc

from crossfade_client import _operations, watching
from crossfade_client._collected import Collected
from crossfade_client._connection import CommitOptions, Connection, Metadata
from crossfade_client._operations import Operation
from crossfade_client._requests import RequestId, checked, retry_after
from crossfade_client.aggregates import Aggregates, Aggregation
from crossfade_client.errors import NotFoundError, UnavailableError, from_status
from crossfade_client.query import Query
from crossfade_client.values import Changes, CommitResult, FieldPath, Fields, Snapshot
from crossfade_client.watching import Moment
from crossfade_client.writes import Write

__all__ = ["AsyncBatch", "AsyncCrossfade", "Metadata"]

_Answer = TypeVar("_Answer")


class AsyncCrossfade(Connection):
    __doc__ = Connection.__doc__

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the calls under way and the connection. A later call connects anew."""
        channel = self._forget()
        if channel is not None:
            await channel.close()

    # --- reads ----------------------------------------------------------------------------------

    async def get(
        self, path: str, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> Snapshot:
        """The document at "tasks/1". Raises NotFoundError where there is none."""
        return await self._run(_operations.get(path), timeout, metadata)

    async def find(
        self, path: str, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> Snapshot | None:
        """As `get`, but None where there is no document (and for no other reason)."""
        try:
            return await self.get(path, timeout=timeout, metadata=metadata)
        except NotFoundError:
            return None

    async def get_all(
        self, paths: Sequence[str], *, timeout: float | None = None, metadata: Metadata = ()
    ) -> list[Snapshot | None]:
        """The documents of one moment, in the order of the paths; None for a missing one."""
        if not paths:
            return []
        return await self._run(_operations.get_all(paths), timeout, metadata)

    async def query(
        self, query: Query | str, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[Snapshot, None]:
        """The documents of a query, or of a whole collection given by its path.

        `timeout` is for the whole result. Tried again only until the first message has
        come: an error after that leaves the caller with part of the result, and is raised.
        """
        operation = _operations.find_by_query(query)
        attempts = self._attempts(timeout)
        pairs = self._pairs(metadata)
        begun = False
        while True:
            call = self._method(operation.method, grpc.aio)(
                operation.request, timeout=attempts.remaining(), metadata=pairs
            )
            try:
                async for reply in call:
                    begun = True
                    for snapshot in operation.read(reply):
                        yield snapshot
            except grpc.aio.AioRpcError as error:
                pause = None if begun else attempts.pause(error.code(), retry_after(error))
                if pause is None:
                    raise operation.error(error.code(), error.details()) from error
            else:
                return
            finally:
                call.cancel()  # where the caller stopped early; nothing once it has ended
            await asyncio.sleep(pause)

    async def aggregate(
        self,
        query: Query | str,
        aggregations: Mapping[str, Aggregation],
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> Aggregates:
        """Up to five of `Count`, `Sum` and `Average` over one moment, by their names."""
        operation = _operations.aggregate(query, aggregations)
        return await self._run(operation, timeout, metadata)

    async def count(
        self,
        query: Query | str,
        *,
        up_to: int | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> int:
        """How many documents the query finds, at most `up_to`."""
        return await self._run(_operations.count(query, up_to), timeout, metadata)

    async def sum(
        self,
        query: Query | str,
        field: FieldPath,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> int | float:
        """The sum of the numbers in the field; 0 where there is none."""
        return await self._run(_operations.sum_(query, field), timeout, metadata)

    async def average(
        self,
        query: Query | str,
        field: FieldPath,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> float | None:
        """The average of the numbers in the field; None where there is none."""
        return await self._run(_operations.average(query, field), timeout, metadata)

    async def watch(
        self,
        target: Query | str | Sequence[str],
        *,
        patience: float = 60.0,
        metadata: Metadata = (),
    ) -> AsyncGenerator[Moment, None]:
        """The documents of a query, of a collection (its path) or some by name (their paths),
        and from then on what changes of them. Without end: leave the loop to end it.

        A stream that breaks (the sidecar restarts, another store takes charge) is opened again
        without the caller's noticing: what changed meanwhile is told as the next moment. Raises
        UnavailableError after `patience` seconds in which that did not succeed.
        """
        message = watching.request(target)
        told = watching.Watching(patience)
        while True:
            pairs = self._pairs(metadata)  # anew: a token may have been rotated meanwhile
            call = self._method("Watch", grpc.aio)(message, metadata=pairs)
            try:
                async for reply in call:
                    if (moment := told.told(reply)) is not None:
                        yield moment
                pause = told.broken(grpc.StatusCode.UNAVAILABLE)
                if pause is None:
                    raise UnavailableError("the stream ended")
            except grpc.aio.AioRpcError as error:
                pause = told.broken(error.code(), retry_after(error))
                if pause is None:
                    raise from_status(error.code(), error.details() or "") from error
            finally:
                call.cancel()
            await asyncio.sleep(pause)

    # --- writes ---------------------------------------------------------------------------------

    async def set(
        self,
        path: str,
        fields: Fields,
        *,
        update_time: datetime | None = None,
        **options: Unpack[CommitOptions],
    ) -> CommitResult:
        """See `Write.set`. `options`: the keywords of `commit`, as for all that follow."""
        return await self.commit([Write.set(path, fields, update_time=update_time)], **options)

    async def create(
        self, path: str, fields: Fields, **options: Unpack[CommitOptions]
    ) -> CommitResult:
        """See `Write.create`."""
        return await self.commit([Write.create(path, fields)], **options)

    async def merge(
        self,
        path: str,
        fields: Fields,
        *,
        exists: bool | None = None,
        update_time: datetime | None = None,
        **options: Unpack[CommitOptions],
    ) -> CommitResult:
        """See `Write.merge`."""
        write = Write.merge(path, fields, exists=exists, update_time=update_time)
        return await self.commit([write], **options)

    async def update(
        self,
        path: str,
        fields: Changes,
        *,
        update_time: datetime | None = None,
        **options: Unpack[CommitOptions],
    ) -> CommitResult:
        """See `Write.update`."""
        return await self.commit([Write.update(path, fields, update_time=update_time)], **options)

    async def delete(
        self,
        path: str,
        *,
        exists: bool | None = None,
        update_time: datetime | None = None,
        **options: Unpack[CommitOptions],
    ) -> CommitResult:
        """See `Write.delete`."""
        write = Write.delete(path, exists=exists, update_time=update_time)
        return await self.commit([write], **options)

    def batch(self) -> "AsyncBatch":
        """Writes collected one by one and committed together."""
        return AsyncBatch(self)

    async def commit(
        self,
        writes: Sequence[Write],
        *,
        request_id: str | RequestId | None = RequestId.GENERATE,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> CommitResult:
        """All writes or none, with one time.

        `request_id`: 1..128 bytes unique to this commit, generated by default; a commit
        repeated with it is done once, so it is tried again on UNAVAILABLE. None: neither.
        Raises OutcomeUnknownError where nobody can say whether it was done; after
        UnavailableError and DeadlineExceededError it may have been as well.
        `error.request_id` is what to ask again with.
        """
        return await self._run(_operations.commit(writes, request_id), timeout, metadata)

    # --- calls ----------------------------------------------------------------------------------

    async def _run(
        self, operation: Operation[_Answer], timeout: float | None, metadata: Metadata
    ) -> _Answer:
        attempts = self._attempts(timeout, safe=operation.safe)
        pairs = self._pairs(metadata)
        while True:
            call = self._method(operation.method, grpc.aio)(
                operation.request, timeout=attempts.remaining(), metadata=pairs
            )
            try:
                if operation.stream:
                    return operation.read([checked(reply) async for reply in call])
                return operation.read(await call)
            except grpc.aio.AioRpcError as error:
                pause = attempts.pause(error.code(), retry_after(error))
                if pause is None:
                    raise operation.error(error.code(), error.details()) from error
            await asyncio.sleep(pause)


class AsyncBatch(Collected):
    """Collects writes; `commit` sends them as one. Also an async context manager that
    commits at its end, unless an exception leaves it."""

    def __init__(self, client: AsyncCrossfade) -> None:
        super().__init__()
        self._client = client

    async def commit(self, **options: Unpack[CommitOptions]) -> CommitResult:
        """See `AsyncCrossfade.commit`."""
        return await self._client.commit(self._writes, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._writes:
            await self.commit()
