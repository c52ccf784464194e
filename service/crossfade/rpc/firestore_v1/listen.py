"""Listen: a client's targets followed from commit to commit, over any backend that keeps versions.

One stream goes round and round: take the requests that have come; take a moment; read
the targets that commits up to it have touched, as of that moment, and say what differs
from what the client knows; say that the stream is consistent as of it (NO_CHANGE without
target ids, which is what makes a client call back). Commits only mark targets and
wake the stream, so a client that reads slowly finds the newest state when it comes
back, and no queue.

What the cloud does was taken from its documentation, its clients and logs of them:
- ADD acknowledges a target. One that is no good (a bad query, a bad name) is then
  REMOVEd with the cause, and the stream goes on.
- An id that is in use: REMOVE with ALREADY_EXISTS. As the client then knows of no target
  with that id, the older one ends, too.
- An id of 0 has the server choose, and then for all that come after it; ids that the
  server chose count up from 1.
- Removing what is not there is not answered.
- When the client has closed its half, what it asked for is still answered; then the
  stream ends.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

from google.cloud.firestore_v1 import types

from crossfade import wire
from crossfade.document import Database
from crossfade.errors import (
    AlreadyExists,
    CrossfadeError,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unimplemented,
)
from crossfade.rpc.firestore_v1.backend import Backend, Backends
from crossfade.rpc.firestore_v1.listen_targets import (
    Change,
    DocumentsTarget,
    QueryTarget,
    Resume,
    Target,
    target_change,
)
from crossfade.rpc.firestore_v1.listen_watch import Watch, touch
from crossfade.rpc.firestore_v1.requests import database_of, parent_of, parse, path_of
from crossfade.store import At

IDLE_SECONDS = 30.0
"""So often a stream without news says so: clients that hear nothing for two minutes begin
again, and the time from which they resume should not fall out of the version window."""
MAX_TARGETS = 500
"""On one stream. A browser or a telephone has all its listeners on one; a hundred of them
are what the cloud's documentation calls many."""
MAX_WAITING = 4
"""Requests, of up to the size of a message, taken off the wire while the stream is sending."""

_REFUSALS = (FailedPrecondition, InvalidArgument, PermissionDenied, Unimplemented)
"""Errors that are about one target; all others end the stream."""


@dataclass(frozen=True, slots=True)
class Moment:
    """`time`: in microseconds; `at`: how to read as of it; `again`: paths that may have changed
    after it, and that nobody will tell of again."""

    time: int
    at: At
    again: tuple[str, ...] = ()


class Moments(Protocol):
    """Where a stream takes its moments from."""

    costly: bool
    """Whether a moment should be left before its frames are sent."""

    def moment(self) -> AbstractAsyncContextManager[Moment]:
        """All commits up to it have been told of when it is entered. Raises Unavailable when
        streams have to begin anew."""
        ...


class _Present:
    """The moments of a backend that keeps versions, and tells of commits within them."""

    costly = False

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[Moment]:
        # Entering it gives no turn to a commit: `now` and what is taken after it are of one time.
        now = self._backend.now()
        yield Moment(now, At(read_time=now))


class Listen:
    """The method, of a front over `backends`. Tokens that another one made are not resumed."""

    def __init__(
        self,
        backends: Backends,
        idle: float = IDLE_SECONDS,
        moments: Moments | None = None,
        mark: bytes = b"",
    ) -> None:
        self._backends = backends
        self._idle = idle
        self._secret = os.urandom(16)
        self._watches: dict[Database, Watch] = {}
        self._moments = moments
        self._mark = mark

    async def serve(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The frames of one stream. Raises what ends it; closing it ends the subscription."""
        async for first in requests:
            database = database_of(parse(types.ListenRequest.pb(), first).database)
            backend = self._backends(database)
            watch = self._watches.setdefault(database, Watch(backend))
            tokens = _Tokens(database, self._secret, self._mark)
            moments = self._moments or _Present(backend)
            stream = _Stream(database, backend, watch, tokens, self._idle, moments)
            async with aclosing(stream.frames(first, requests)) as frames:
                async for frame in frames:
                    yield frame
            return


class _Tokens:
    """Resume tokens: the moment that the client knows, and whose moment that is."""

    def __init__(self, database: Database, secret: bytes, mark: bytes) -> None:
        owner = blake2b(database.name.encode(), key=secret, digest_size=8).digest()
        self._owner = mark + owner

    def make(self, moment: int) -> bytes:
        return self._owner + moment.to_bytes(8, "big")

    def read(self, token: bytes) -> int | None:
        """The moment; None for a token from elsewhere."""
        size = len(self._owner)
        owner, moment = token[:size], token[size:]
        return int.from_bytes(moment, "big") if owner == self._owner and len(moment) == 8 else None


class _Stream:
    def __init__(
        self,
        database: Database,
        backend: Backend,
        watch: Watch,
        tokens: _Tokens,
        idle: float,
        moments: Moments,
    ) -> None:
        self._moments = moments
        self._database = database
        self._backend = backend
        self._watch = watch
        self._tokens = tokens
        self._idle = idle
        self._targets: dict[int, Target] = {}
        self._chosen_here = False
        self._last_chosen = 0
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_WAITING)
        self._wake = asyncio.Event()
        self._ended = False
        self._consistent = True
        """Whether nothing was sent since the stream was last said to be consistent."""

    async def frames(
        self, first: bytes, requests: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        self._inbox.put_nowait(first)
        reading = asyncio.create_task(self._read(requests))
        clock = asyncio.get_running_loop().time
        said = clock()
        try:
            while True:
                self._wake.clear()
                for frame in self._requested():
                    yield frame
                # What is taken now are all changes up to the moment, at least; what is left
                # for the next round are later ones.
                async with self._moments.moment() as found:
                    moment = found.time
                    due = [target for target in self._targets.values() if target.take()]
                    frames = self._caught_up(due, moment, found.at)
                    if self._moments.costly:  # it does not last until a slow client has read
                        kept = [frame async for frame in frames]
                    else:
                        kept = []
                        async for frame in frames:
                            yield frame
                for frame in kept:
                    yield frame
                if found.again and touch(self._targets.values(), found.again):
                    self._wake.set()
                if any(target.behind for target in self._targets.values()):
                    continue
                if self._targets and (not self._consistent or clock() >= said + self._idle):
                    token = self._tokens.make(moment)
                    yield target_change(Change.NO_CHANGE, (), moment=moment, token=token)
                    said, self._consistent = clock(), True
                for number in [target.number for target in self._targets.values() if target.once]:
                    self._drop(number)
                    yield target_change(Change.REMOVE, (number,))
                if self._ended:
                    return
                await self._news(said + self._idle - clock())
        finally:
            reading.cancel()
            for number in list(self._targets):
                self._drop(number)

    async def _caught_up(self, due: Sequence[Target], moment: int, at: At) -> AsyncIterator[bytes]:
        """What brings the targets to the moment."""
        waited = False
        for target in due:
            try:
                frames = await target.frames(moment, at)
            except _REFUSALS as error:
                if waited and isinstance(error, FailedPrecondition):
                    # The client was so slow that the moment is too long ago. The target is the
                    # first of the next round: its moment will be fresh.
                    self._targets = {target.number: target} | self._targets
                    return
                self._drop(target.number)
                waited = True
                yield target_change(Change.REMOVE, (target.number,), cause=error)
                continue
            for frame in frames:
                self._consistent, waited = False, True
                yield frame
            if not target.current:
                target.current, self._consistent, waited = True, False, True
                token = self._tokens.make(moment)
                yield target_change(Change.CURRENT, (target.number,), moment=moment, token=token)

    async def _news(self, seconds: float) -> None:
        """Returns when there is a request or a change, or when the stream has to say that it
        is alive."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.0) if self._targets else None):
                await self._wake.wait()

    def _drop(self, number: int) -> bool:
        """Whether there was such a target. There is none any more."""
        target = self._targets.pop(number, None)
        if target is None:
            return False
        self._watch.remove(target)
        return True

    # --- requests ------------------------------------------------------------------------------

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        with suppress(Exception):  # however the reading ends: nothing more is asked
            async for data in requests:
                await self._inbox.put(data)
                self._wake.set()
        await self._inbox.put(None)
        self._wake.set()

    def _requested(self) -> Iterator[bytes]:
        """Does what was asked, and answers it. Raises InvalidArgument where that is nothing."""
        while not self._inbox.empty():
            data = self._inbox.get_nowait()
            if data is None:
                self._ended = True
                return
            request = parse(types.ListenRequest.pb(), data)
            if request.database not in {"", self._database.name}:
                raise InvalidArgument(
                    f'database: "{request.database[:120]}" is not the "{self._database.name}" '
                    f"of the stream's first request"
                )
            which = request.WhichOneof("target_change")
            if which == "add_target":
                yield from self._add(request.add_target)
            elif which == "remove_target":
                if self._drop(request.remove_target):
                    yield target_change(Change.REMOVE, (request.remove_target,))
            else:
                raise InvalidArgument("target_change: add_target or remove_target must be set")

    def _add(self, message: Any) -> Iterator[bytes]:
        number = message.target_id or self._choose()
        try:
            self._check(number, chosen_here=not message.target_id)
        except CrossfadeError as error:
            self._drop(number)
            yield target_change(Change.REMOVE, (number,), cause=error)
            return
        yield target_change(Change.ADD, (number,))
        try:
            target = self._target(number, message)
        except _REFUSALS as error:
            yield target_change(Change.REMOVE, (number,), cause=error)
            return
        self._targets[number] = target
        self._watch.add(target, self._wake)

    def _choose(self) -> int:
        """An id that is free, for a target that came without one."""
        self._chosen_here = True
        self._last_chosen += 1
        while self._last_chosen in self._targets:
            self._last_chosen += 1
        return self._last_chosen

    def _check(self, number: int, *, chosen_here: bool) -> None:
        """Raises the reason why a target may not have an id."""
        if number < 0:
            raise InvalidArgument(f"add_target.target_id: {number} is negative")
        if self._chosen_here and not chosen_here:
            raise InvalidArgument(
                f"add_target.target_id: {number} is given, but the server has chosen the id of an "
                f"earlier target; it chooses all that come later, too (target_id 0)"
            )
        if number in self._targets:
            raise AlreadyExists(f"Target ID already exists: {number}")
        if len(self._targets) >= MAX_TARGETS:
            raise ResourceExhausted(
                f"add_target: a stream holds at most {MAX_TARGETS} targets; remove some, or open "
                f"another stream"
            )

    def _target(self, number: int, message: Any) -> Target:
        """The target of a request. Raises InvalidArgument, Unimplemented."""
        which = message.WhichOneof("target_type")
        common = (number, self._database, self._backend, self._resume(message))
        if which == "documents":
            names = message.documents.documents
            paths = [path_of(name, self._database, "add_target.documents") for name in names]
            return DocumentsTarget(paths, *common, once=message.once)
        if which != "query" or not message.query.HasField("structured_query"):
            raise InvalidArgument(
                "add_target: documents, or a query with a structured_query, must be set"
            )
        database, parent = parent_of(message.query.parent)
        if database != self._database:
            raise InvalidArgument(
                f'add_target.query.parent: "{message.query.parent[:120]}" lies in another '
                f'database than "{self._database.name}"'
            )
        query = wire.decode_query(message.query.structured_query, parent, database)
        if query.nearest is not None:
            raise Unimplemented("query.find_nearest: what is nearest cannot be listened to")
        return QueryTarget(query, *common, once=message.once)

    def _resume(self, message: Any) -> Resume | None:
        """Where the client wants to go on; None: it begins."""
        expected = message.expected_count.value if message.HasField("expected_count") else None
        if message.HasField("read_time"):
            return Resume(wire.decode_time(message.read_time, "add_target.read_time"), expected)
        if message.resume_token:
            return Resume(self._tokens.read(message.resume_token), expected)
        return None
