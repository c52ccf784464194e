"""The Write stream: commits one after another, each with a token of its place in the stream.

The first request opens the stream and holds no writes. Each later one holds writes, which
are one commit, and a token of this stream: of the last response that the client has
seen, or of an earlier one while it does not wait for each. A request without writes is
the last. A write that fails ends the stream with its status, and the commits before it stand.

A stream is not resumed. The protocol knows it, but the cloud answers that it is not
supported, and clients begin a new stream: nothing is kept for those that do not come back.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from google.cloud.firestore_v1 import types

from crossfade import wire
from crossfade.document import Database
from crossfade.errors import InvalidArgument
from crossfade.rpc.firestore_v1.backend import Backend, Backends
from crossfade.rpc.firestore_v1.front import encode_results
from crossfade.rpc.firestore_v1.requests import check_size, database_of, parse, writes_of
from crossfade.store import CommitOutcome

SECONDS = 60.0
"""For one commit: a stream's own deadline is none of its commits'."""


class WriteStreams:
    """The method, of a front over `backends`."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def serve(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The responses of one stream, in order. Raises what ends it."""
        stream: _Stream | None = None
        async for data in requests:
            check_size(data)
            request = parse(types.WriteRequest.pb(), data)
            if stream is None:
                database = _opened(request)
                stream = _Stream(database, self._backends(database))
                yield stream.response(opening=True)
                continue
            stream.check(request)
            if not request.writes:
                yield stream.response()
                return
            yield stream.response(await stream.commit(request))


def _opened(request: Any) -> Database:
    """The database of a first request. Raises InvalidArgument for one that may not be first."""
    if request.stream_id:
        raise InvalidArgument("stream_id: resuming a stream is not supported, open a new one")
    if request.stream_token:
        raise InvalidArgument("stream_token: resuming a stream is not supported, open a new one")
    if request.writes:
        raise InvalidArgument("writes: the first request of a stream may not have any")
    return database_of(request.database)


class _Stream:
    """`_sent` responses were sent, and the client has shown that it saw `_seen` of them."""

    def __init__(self, database: Database, backend: Backend) -> None:
        self._database = database
        self._backend = backend
        self._id = os.urandom(8)
        self._sent = 0
        self._seen = 0

    def check(self, request: Any) -> None:
        """Raises InvalidArgument for a request that does not belong here. Moves `_seen`."""
        if request.stream_id:
            raise InvalidArgument("stream_id: only the first request of a stream may have one")
        if request.database and request.database != self._database.name:
            raise InvalidArgument(
                f'database: "{request.database[:120]}" is not the "{self._database.name}" of the '
                f"stream's first request"
            )
        if not request.stream_token:
            raise InvalidArgument("stream_token: missing stream token")
        owner, number = request.stream_token[:8], request.stream_token[8:]
        seen = int.from_bytes(number, "big")
        if owner != self._id or not self._seen <= seen <= self._sent:
            raise InvalidArgument(
                "stream_token: it is not of this stream, or older than one that came back already"
            )
        self._seen = seen

    async def commit(self, request: Any) -> CommitOutcome:
        writes = writes_of(request.writes, self._database)
        return await self._backend.commit(writes, timeout=SECONDS)

    def response(self, outcome: CommitOutcome | None = None, *, opening: bool = False) -> bytes:
        """The next response."""
        self._sent += 1
        reply = types.WriteResponse.pb()(stream_token=self._id + self._sent.to_bytes(8, "big"))
        if opening:
            reply.stream_id = self._id.hex()
        if outcome is not None:
            encode_results(outcome.writes, reply.write_results)
            wire.encode_time(outcome.commit_time, reply.commit_time)
        data: bytes = reply.SerializeToString()
        return data
