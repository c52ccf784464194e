"""What a caller of `watch` is told, moment by moment. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import grpc

from crossfade_api.v1 import crossfade_pb2 as pb
from crossfade_client import _codec, _requests, query
from crossfade_client._requests import Attempts
from crossfade_client.errors import InvalidArgumentError
from crossfade_client.query import Query
from crossfade_client.values import Snapshot, relative

_ALWAYS = 2**31


@dataclass(frozen=True, slots=True)
class Moment:
    """What became of the watched documents from the moment told before to `read_time`.

    `changed`: new, or other than they were. `removed`: the paths of those that are deleted,
    or not found by the query any more; the first time also of the missing ones among
    documents that are watched by name.
    """

    changed: tuple[Snapshot, ...]
    removed: tuple[str, ...]
    read_time: datetime


def request(target: Query | str | Sequence[str]) -> pb.WatchRequest:
    """Raises InvalidArgumentError for what cannot be encoded."""
    if isinstance(target, str):
        target = Query(target)
    if isinstance(target, Query):
        return pb.WatchRequest(query=query.request(target))
    if not target:
        raise InvalidArgumentError("watch: no documents")
    return pb.WatchRequest(documents=pb.BatchGetDocumentsRequest(names=target))


class Watching:
    """What the caller knows, and what it is told next; when a stream that broke is opened again."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._attempts = Attempts(patience, _ALWAYS)
        self._steady = False
        self._known: dict[str, datetime] | None = None
        """When each document that the caller knows of was updated; None before the first moment."""
        self._changed: dict[str, Snapshot] = {}
        self._removed: dict[str, None] = {}
        self._anew = False
        """The stream begins again with all there is: what it does not mention is gone."""

    def told(self, reply: pb.WatchReply | None) -> Moment | None:
        """The next moment, where the reply completes one and something is other than before."""
        reply = _requests.checked(reply)
        for document in reply.changed:
            snapshot = _codec.decode_document(document)
            self._removed.pop(snapshot.path, None)
            self._changed[snapshot.path] = snapshot
        for name in reply.removed:
            self._changed.pop(relative(name), None)
            self._removed[relative(name)] = None
        if not reply.consistent:
            return None
        self._steady = True
        first, known = self._known is None, self._known or {}
        if self._anew:
            self._removed.update((path, None) for path in known if path not in self._changed)
        changed = tuple(
            snapshot
            for path, snapshot in self._changed.items()
            if known.get(path) != snapshot.update_time
        )
        removed = tuple(path for path in self._removed if first or path in known)
        for path in removed:
            known.pop(path, None)
        known.update((snapshot.path, snapshot.update_time) for snapshot in changed)
        self._known, self._anew = known, False
        self._changed, self._removed = {}, {}
        if not (first or changed or removed):
            return None
        return Moment(changed, removed, _codec.decode_time(reply.read_time))

    def broken(self, code: grpc.StatusCode, hint: float | None = None) -> float | None:
        """Seconds to wait before the stream is opened again; None: it is not."""
        if self._steady:
            self._attempts = Attempts(self._patience, _ALWAYS)
        self._steady, self._anew = False, True
        self._changed, self._removed = {}, {}
        # A server that stops may say either.
        stopped = code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        return self._attempts.pause(grpc.StatusCode.UNAVAILABLE if stopped else code, hint)
