"""The client for callers that wait: `AsyncCrossfade` without the await.

Threads may share one.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import Self, TypeVar, Unpack

import grpc

from crossfade_client import _operations, watching
from crossfade_client._collected import Collected
from crossfade_client._connection import CommitOptions, Connection, Metadata
from crossfade_client._operations import Operation
from crossfade_client._requests import RequestId, retry_after
from crossfade_client.aggregates import Aggregates, Aggregation
from crossfade_client.errors import NotFoundError, UnavailableError, from_status
from crossfade_client.query import Query
from crossfade_client.values import Changes, CommitResult, FieldPath, Fields, Snapshot
from crossfade_client.watching import Moment
from crossfade_client.writes import Write

__all__ = ["Batch", "Crossfade"]

_Answer = TypeVar("_Answer")


class Crossfade(Connection):
    __doc__ = Connection.__doc__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the calls under way and the connection. A later call connects anew."""
        channel = self._forget()
        if channel is not None:
            channel.close()

    # --- reads ----------------------------------------------------------------------------------

    def get(self, path: str, *, timeout: float | None = None, metadata: Metadata = ()) -> Snapshot:
        """The document at "tasks/1". Raises NotFoundError where there is none."""
        return self._run(_operations.get(path), timeout, metadata)

    def find(
        self, path: str, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> Snapshot | None:
        """As `get`, but None where there is no document (and for no other reason)."""
        try:
            return self.get(path, timeout=timeout, metadata=metadata)
        except NotFoundError:
            return None

    def get_all(
        self, paths: Sequence[str], *, timeout: float | None = None, metadata: Metadata = ()
    ) -> list[Snapshot | None]:
        """The documents of one moment, in the order of the paths; None for a missing one."""
        if not paths:
            return []
        return self._run(_operations.get_all(paths), timeout, metadata)

    def query(
        self, query: Query | str, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> Generator[Snapshot, None, None]:
        """The documents of a query, or of a whole collection; see `AsyncCrossfade.query`."""
        operation = _operations.find_by_query(query)
        attempts = self._attempts(timeout)
        pairs = self._pairs(metadata)
        begun = False
        while True:
            call = self._method(operation.method, grpc)(
                operation.request, timeout=attempts.remaining(), metadata=pairs
            )
            try:
                for reply in call:
                    begun = True
                    yield from operation.read(reply)
            except grpc.RpcError as error:
                pause = None if begun else attempts.pause(error.code(), retry_after(error))
                if pause is None:
                    raise operation.error(error.code(), error.details()) from error
            else:
                return
            finally:
                call.cancel()  # where the caller stopped early; nothing once it has ended
            time.sleep(pause)

    def aggregate(
        self,
        query: Query | str,
        aggregations: Mapping[str, Aggregation],
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> Aggregates:
        """Up to five of `Count`, `Sum` and `Average` over one moment, by their names."""
        operation = _operations.aggregate(query, aggregations)
        return self._run(operation, timeout, metadata)

    def count(
        self,
        query: Query | str,
        *,
        up_to: int | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> int:
        """How many documents the query finds, at most `up_to`."""
        return self._run(_operations.count(query, up_to), timeout, metadata)

    def sum(
        self,
        query: Query | str,
        field: FieldPath,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> int | float:
        """The sum of the numbers in the field; 0 where there is none."""
        return self._run(_operations.sum_(query, field), timeout, metadata)

    def average(
        self,
        query: Query | str,
        field: FieldPath,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> float | None:
        """The average of the numbers in the field; None where there is none."""
        return self._run(_operations.average(query, field), timeout, metadata)

    def watch(
        self,
        target: Query | str | Sequence[str],
        *,
        patience: float = 60.0,
        metadata: Metadata = (),
    ) -> Generator[Moment, None, None]:
        """The documents, and then what changes of them; see `AsyncCrossfade.watch`."""
        message = watching.request(target)
        told = watching.Watching(patience)
        while True:
            pairs = self._pairs(metadata)  # anew: a token may have been rotated meanwhile
            call = self._method("Watch", grpc)(message, metadata=pairs)
            channel = self._channel
            try:
                for reply in call:
                    if (moment := told.told(reply)) is not None:
                        yield moment
                pause = told.broken(grpc.StatusCode.UNAVAILABLE)
                if pause is None:
                    raise UnavailableError("the stream ended")
            except grpc.RpcError as error:
                pause = told.broken(error.code(), retry_after(error))
                if pause is None or self._channel is not channel:  # closed: the caller's own doing
                    raise from_status(error.code(), error.details() or "") from error
            finally:
                call.cancel()
            time.sleep(pause)

    # --- writes ---------------------------------------------------------------------------------

    def set(
        self,
        path: str,
        fields: Fields,
        *,
        update_time: datetime | None = None,
        **options: Unpack[CommitOptions],
    ) -> CommitResult:
        """See `Write.set`. `options`: the keywords of `commit`, as for all that follow."""
        return self.commit([Write.set(path, fields, update_time=update_time)], **options)

    def create(self, path: str, fields: Fields, **options: Unpack[CommitOptions]) -> CommitResult:
        """See `Write.create`."""
        return self.commit([Write.create(path, fields)], **options)

    def merge(
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
        return self.commit([write], **options)

    def update(
        self,
        path: str,
        fields: Changes,
        *,
        update_time: datetime | None = None,
        **options: Unpack[CommitOptions],
    ) -> CommitResult:
        """See `Write.update`."""
        return self.commit([Write.update(path, fields, update_time=update_time)], **options)

    def delete(
        self,
        path: str,
        *,
        exists: bool | None = None,
        update_time: datetime | None = None,
        **options: Unpack[CommitOptions],
    ) -> CommitResult:
        """See `Write.delete`."""
        write = Write.delete(path, exists=exists, update_time=update_time)
        return self.commit([write], **options)

    def batch(self) -> "Batch":
        """Writes collected one by one and committed together."""
        return Batch(self)

    def commit(
        self,
        writes: Sequence[Write],
        *,
        request_id: str | RequestId | None = RequestId.GENERATE,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> CommitResult:
        """All writes or none, with one time; see `AsyncCrossfade.commit`."""
        return self._run(_operations.commit(writes, request_id), timeout, metadata)

    # --- calls ----------------------------------------------------------------------------------

    def _run(
        self, operation: Operation[_Answer], timeout: float | None, metadata: Metadata
    ) -> _Answer:
        attempts = self._attempts(timeout, safe=operation.safe)
        pairs = self._pairs(metadata)
        while True:
            try:
                reply = self._method(operation.method, grpc)(
                    operation.request, timeout=attempts.remaining(), metadata=pairs
                )
                return operation.read(list(reply) if operation.stream else reply)
            except grpc.RpcError as error:
                pause = attempts.pause(error.code(), retry_after(error))
                if pause is None:
                    raise operation.error(error.code(), error.details()) from error
            time.sleep(pause)


class Batch(Collected):
    """Collects writes; `commit` sends them as one. Also a context manager that
    commits at its end, unless an exception leaves it."""

    def __init__(self, client: Crossfade) -> None:
        super().__init__()
        self._client = client

    def commit(self, **options: Unpack[CommitOptions]) -> CommitResult:
        """See `Crossfade.commit`."""
        return self._client.commit(self._writes, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._writes:
            self.commit()
