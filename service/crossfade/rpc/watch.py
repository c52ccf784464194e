"""Watch of crossfade.v1: a Listen stream with one target, told from moment to moment.

A caller needs no more than what is there now and what has changed; Listen's own words for
targets, tokens and filters stay here.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.cloud.firestore_v1 import types

from crossfade import wire
from crossfade.call import Call
from crossfade.document import Database, check_document_path
from crossfade.errors import (
    CrossfadeError,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
    Unimplemented,
)
from crossfade.rpc.firestore_v1.heart_listen import HeartListen
from crossfade.rpc.server import MAX_BATCH, check_visible, parse
from crossfade_api.v1 import crossfade_pb2

TARGET = 1
MOST_BYTES = 1_048_576
"""Of the documents in one reply, about."""

_ERRORS: dict[int, type[CrossfadeError]] = {
    3: InvalidArgument,
    7: PermissionDenied,
    9: FailedPrecondition,
    12: Unimplemented,
}
_Change = types.TargetChange.TargetChangeType


class Watching:
    """The method, over `listen`."""

    def __init__(self, listen: HeartListen, database: Database) -> None:
        self._listen = listen
        self._database = database

    async def watch(self, data: bytes, call: Call) -> AsyncIterator[bytes]:  # noqa: ARG002
        """The replies, until the caller goes. Raises what ends it."""
        request = self._request(parse(crossfade_pb2.WatchRequest, data))
        going = asyncio.Event()
        try:
            async with aclosing(self._listen.serve(_asking(request, going))) as frames:
                known = _Known()
                async for frame in frames:
                    for reply in known.told(frame):
                        yield reply
            raise Unavailable("the store ended the stream; watch again")
        finally:
            going.set()

    def _request(self, asked: crossfade_pb2.WatchRequest) -> bytes:
        """The ListenRequest that adds the target."""
        request = types.ListenRequest.pb()(database=self._database.name)
        target = request.add_target
        target.target_id = TARGET
        which = asked.WhichOneof("target")
        if which == "documents":
            if not 0 < len(asked.documents.names) <= MAX_BATCH:
                raise InvalidArgument(f"documents.names: between 1 and {MAX_BATCH} of them")
            for name in asked.documents.names:
                path = self._database.relative(name, "documents.names")
                check_document_path(path, "documents.names")
                check_visible(path, "documents.names")
                target.documents.documents.append(self._database.full(path))
        elif which == "query":
            parent = self._database.relative(asked.query.parent, "query.parent")
            query = wire.decode_query(asked.query.query, parent, self._database)
            if query.collection is None:
                raise InvalidArgument("query.from.collection_id: must be set")
            check_visible(parent, "query.parent")
            check_visible(query.collection_path or query.collection, "query.from.collection_id")
            target.query.parent = self._database.full(parent)
            encoded = wire.encode_query(query, self._database)
            target.query.structured_query.MergeFromString(encoded)
        else:
            raise InvalidArgument("target: documents or a query must be set")
        data: bytes = request.SerializeToString()
        return data


async def _asking(request: bytes, going: asyncio.Event) -> AsyncIterator[bytes]:
    """The one request; the client's half stays open until the caller goes."""
    yield request
    await going.wait()


class _Known:
    """What was heard since the caller was told last."""

    def __init__(self) -> None:
        self._documents: set[str] = set()
        """Names of all that the caller knows, or will know, to be there."""
        self._changed: dict[str, bytes] = {}
        self._removed: dict[str, None] = {}
        self._size = 0
        self._current = False

    def told(self, frame: bytes) -> list[bytes]:
        """The replies that a frame makes due. Raises the cause for which the target ended."""
        heard = types.ListenResponse.pb().FromString(frame)
        which = heard.WhichOneof("response_type")
        if which == "target_change":
            return self._target(heard.target_change)
        if which == "document_change":
            self._change(heard.document_change)
        elif which in {"document_delete", "document_remove"}:
            self._remove(getattr(heard, which).document)
        return [self._reply()] if self._size > MOST_BYTES else []

    def _change(self, change: Any) -> None:
        name = change.document.name
        if TARGET in change.removed_target_ids:
            self._remove(name)
            return
        data = self._changed[name] = change.document.SerializeToString()
        self._removed.pop(name, None)
        self._documents.add(name)
        self._size += len(data)

    def _remove(self, name: str) -> None:
        self._changed.pop(name, None)
        self._removed[name] = None
        self._documents.discard(name)
        self._size += len(name)

    def _target(self, change: Any) -> list[bytes]:
        kind = change.target_change_type
        if kind == _Change.REMOVE:
            error = _ERRORS.get(change.cause.code, Unavailable)
            raise error(change.cause.message or "the store ended the target; watch again")
        if kind == _Change.RESET:
            # All of it is sent again; what is not is gone.
            for name in sorted(self._documents):
                self._remove(name)
            self._current = False
        elif kind == _Change.CURRENT:
            self._current = True
        elif kind == _Change.NO_CHANGE and not change.target_ids and self._current:
            tail = crossfade_pb2.WatchReply(consistent=True)
            if change.HasField("read_time"):
                tail.read_time.CopyFrom(change.read_time)
            return [self._reply() + tail.SerializeToString()]
        return []

    def _reply(self) -> bytes:
        """The bytes of a WatchReply with what is to be told."""
        data = b"".join(wire.field_bytes(1, document) for document in self._changed.values())
        data += b"".join(wire.field_bytes(2, name.encode()) for name in self._removed)
        self._changed, self._removed, self._size = {}, {}, 0
        return data
