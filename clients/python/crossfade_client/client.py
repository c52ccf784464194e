"""The async client."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Self, TypeAlias, TypeVar

import grpc

from crossfade_api.v1 import crossfade_pb2_grpc as rpc
from crossfade_client import _requests, query
from crossfade_client._requests import Attempts, RequestId
from crossfade_client.errors import NotFoundError, from_status
from crossfade_client.values import Changes, CommitResult, Fields, Snapshot
from crossfade_client.writes import Write

Metadata: TypeAlias = (
    "Sequence[tuple[str, str | bytes]] | Callable[[], Sequence[tuple[str, str | bytes]]]"
)
"""Pairs sent with a call, or what makes them anew for each call (a `traceparent`, say)."""

_Answer = TypeVar("_Answer")


class AsyncCrossfade:
    """A sidecar at `target` ("127.0.0.1:7600", "unix:/run/crossfade.sock").

    `timeout`: seconds that each operation may take, all its attempts together; every
    method takes its own as well. `retries`: how often UNAVAILABLE is tried again,
    where that is safe: reads, and commits with a request_id. `metadata` goes with every
    call, e.g. `traceparent`. `credentials` for TLS.

    All methods raise the errors of `crossfade_client.errors`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 5.0,
        retries: int = 4,
        metadata: Metadata = (),
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._target = target
        self._timeout = timeout
        self._retries = retries
        self._metadata = metadata
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._cached_stub: rpc.CrossfadeAsyncStub | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the calls under way and the connection. A later call connects anew."""
        channel, self._channel, self._cached_stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    # --- reads ----------------------------------------------------------------------------------

    async def get(
        self, path: str, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> Snapshot:
        """The document at "tasks/1". Raises NotFoundError where there is none."""
        request = _requests.get_request(path)
        attempts = self._attempts(timeout)
        pairs = self._pairs(metadata)
        return await self._retried(
            attempts,
            lambda: self._stub.GetDocument(request, timeout=attempts.remaining(), metadata=pairs),
            _requests.get_result,
        )

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
        request = _requests.batch_get_request(paths)
        attempts = self._attempts(timeout)
        pairs = self._pairs(metadata)

        async def replies() -> list[Any]:
            call = self._stub.BatchGetDocuments(
                request, timeout=attempts.remaining(), metadata=pairs
            )
            return [_requests.checked(reply) async for reply in call]

        return await self._retried(
            attempts, replies, lambda found: _requests.batch_get_result(found, paths)
        )

    async def query(
        self, query_: query.Query | str, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[Snapshot, None]:
        """The documents of a query, or of a whole collection given by its path.

        `timeout` is for the whole result. Tried again only until the first message has
        come: an error after that leaves the caller with part of the result, and is raised.
        """
        query_ = query.Query(query_) if isinstance(query_, str) else query_
        request = query.request(query_)
        attempts = self._attempts(timeout)
        pairs = self._pairs(metadata)
        begun = False
        while True:
            call = self._stub.Query(request, timeout=attempts.remaining(), metadata=pairs)
            try:
                async for reply in call:
                    begun = True
                    for snapshot in _requests.query_result(reply):
                        yield snapshot
            except grpc.aio.AioRpcError as error:
                pause = None if begun else attempts.pause(error.code())
                if pause is None:
                    raise from_status(error.code(), error.details() or "") from error
            else:
                return
            finally:
                call.cancel()  # where the caller stopped early; nothing once it has ended
            await asyncio.sleep(pause)

    # --- writes ---------------------------------------------------------------------------------

    async def set(
        self, path: str, fields: Fields, *, update_time: datetime | None = None, **call: Any
    ) -> CommitResult:
        """See `Write.set`. `call`: the keywords of `commit`, as for all that follow."""
        return await self.commit([Write.set(path, fields, update_time=update_time)], **call)

    async def create(self, path: str, fields: Fields, **call: Any) -> CommitResult:
        """See `Write.create`."""
        return await self.commit([Write.create(path, fields)], **call)

    async def merge(
        self,
        path: str,
        fields: Fields,
        *,
        exists: bool | None = None,
        update_time: datetime | None = None,
        **call: Any,
    ) -> CommitResult:
        """See `Write.merge`."""
        write = Write.merge(path, fields, exists=exists, update_time=update_time)
        return await self.commit([write], **call)

    async def update(
        self,
        path: str,
        fields: Changes,
        *,
        update_time: datetime | None = None,
        **call: Any,
    ) -> CommitResult:
        """See `Write.update`."""
        return await self.commit([Write.update(path, fields, update_time=update_time)], **call)

    async def delete(
        self,
        path: str,
        *,
        exists: bool | None = None,
        update_time: datetime | None = None,
        **call: Any,
    ) -> CommitResult:
        """See `Write.delete`."""
        return await self.commit(
            [Write.delete(path, exists=exists, update_time=update_time)], **call
        )

    def batch(self) -> "Batch":
        """Writes collected one by one and committed together."""
        return Batch(self)

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
        request = _requests.commit_request(writes, request_id)
        attempts = self._attempts(timeout, safe=bool(request.request_id))
        pairs = self._pairs(metadata)
        return await self._retried(
            attempts,
            lambda: self._stub.Commit(request, timeout=attempts.remaining(), metadata=pairs),
            lambda reply: _requests.commit_result(reply, request),
            commit=True,
            request_id=request.request_id or None,
        )

    # --- calls ----------------------------------------------------------------------------------

    @property
    def _stub(self) -> "rpc.CrossfadeAsyncStub":
        """Made at the first call, so that it belongs to the loop that calls."""
        if self._cached_stub is None:
            options = list(_requests.CHANNEL_OPTIONS)
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self._target, options)
            else:
                self._channel = grpc.aio.secure_channel(self._target, self._credentials, options)
            self._cached_stub = rpc.CrossfadeStub(self._channel)
        return self._cached_stub

    def _attempts(self, timeout: float | None, *, safe: bool = True) -> Attempts:
        return Attempts(self._timeout if timeout is None else timeout, self._retries, safe=safe)

    def _pairs(self, more: Metadata) -> tuple[tuple[str, str | bytes], ...]:
        mine = self._metadata() if callable(self._metadata) else self._metadata
        return (*mine, *(more() if callable(more) else more))

    async def _retried(
        self,
        attempts: Attempts,
        call: Callable[[], Awaitable[Any]],
        read: Callable[[Any], _Answer],
        *,
        commit: bool = False,
        request_id: str | None = None,
    ) -> _Answer:
        while True:
            try:
                return read(await call())
            except grpc.aio.AioRpcError as error:
                pause = attempts.pause(error.code())
                if pause is None:
                    raise from_status(
                        error.code(), error.details() or "", commit=commit, request_id=request_id
                    ) from error
            await asyncio.sleep(pause)


class Batch:
    """Collects writes; `commit` sends them as one. Also an async context manager that
    commits at its end, unless an exception leaves it."""

    def __init__(self, client: AsyncCrossfade) -> None:
        self._client = client
        self._writes: list[Write] = []

    def __len__(self) -> int:
        return len(self._writes)

    def set(self, path: str, fields: Fields, **options: Any) -> Self:
        return self.add(Write.set(path, fields, **options))

    def create(self, path: str, fields: Fields) -> Self:
        return self.add(Write.create(path, fields))

    def merge(self, path: str, fields: Fields, **options: Any) -> Self:
        return self.add(Write.merge(path, fields, **options))

    def update(self, path: str, fields: Changes, **options: Any) -> Self:
        return self.add(Write.update(path, fields, **options))

    def delete(self, path: str, **options: Any) -> Self:
        return self.add(Write.delete(path, **options))

    def add(self, write: Write) -> Self:
        self._writes.append(write)
        return self

    async def commit(self, **call: Any) -> CommitResult:
        """See `AsyncCrossfade.commit`."""
        return await self._client.commit(self._writes, **call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._writes:
            await self.commit()
