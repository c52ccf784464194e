"""The targets of a Listen stream: what the client knows of each, and what it has to be told.

All that is kept of a target is the update_time of every document that the client knows
in it: so much memory as its result has documents, however many commits there are and
however slowly the client reads. What it has to be told is found by reading again, as
of one moment, and comparing.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from google.cloud.firestore_v1 import types

from crossfade import query as queries
from crossfade import wire
from crossfade.document import Database, collection_id
from crossfade.errors import CrossfadeError, FailedPrecondition
from crossfade.query import Query
from crossfade.rpc.firestore_v1.backend import Backend
from crossfade.rpc.status import code_of, details
from crossfade.store import At
from crossfade_api.v1 import document_pb2

SECONDS = 60.0
"""For one read of a target."""
MAX_TOUCHED = 1_000
"""Changed paths that a target remembers until it is read again; with more, all of it is."""
_MISSING = 0
"""The update_time of a document that is known not to be there."""

Change = types.TargetChange.TargetChangeType


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a client wants to go on. `since`: the moment whose state it knows, None if its
    token is not of this server; `expected`: how many documents it says that it knows."""

    since: int | None
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class _State:
    """A document at the moment of a read, as the target shows it. Without `data` it is not
    in the target; `exists` says whether it is stored at all."""

    path: str
    time: int = _MISSING
    data: bytes | None = None
    exists: bool = False


class Target(ABC):
    """One target. `number` is its id on the stream; `once`: it ends when it is current."""

    def __init__(
        self,
        number: int,
        database: Database,
        backend: Backend,
        resume: Resume | None,
        *,
        once: bool,
    ) -> None:
        self.number = number
        self.once = once
        self.current = False
        self._database = database
        self._backend = backend
        self._resume = resume
        self._known: dict[str, int] = {}
        # What changed since the last `take`, and what it took and is not read yet.
        self._touched: set[str] = set()
        self._touched_all = True
        self._due: set[str] = set()
        self._due_all = False
        self._ids = wire.varint(number)

    # --- what may have changed -----------------------------------------------------------------

    @property
    @abstractmethod
    def collections(self) -> Collection[str | None]:
        """The ids of the collections whose changes concern the target; None: of all."""

    @abstractmethod
    def concerned(self, paths: Sequence[str]) -> Collection[str]:
        """Which changed documents of one collection may change the target."""

    @property
    def piecemeal(self) -> bool:
        """Whether a document is in the target or not regardless of all others."""
        return True

    def touch(self, paths: Sequence[str]) -> bool:
        """Notes changed documents of one collection. Whether the target is concerned.

        It is called within the commit: nothing is read here.
        """
        here = self.concerned(paths)
        if not here:
            return False
        if not self._touched_all:
            self._touched.update(here)
            self._touched_all = not self.piecemeal or len(self._touched) > MAX_TOUCHED
        if self._touched_all:
            self._touched.clear()
        return True

    def take(self) -> bool:
        """Whether there is something to read. What is touched after this call is left for the
        next one."""
        self._due |= self._touched
        self._due_all |= self._touched_all or len(self._due) > MAX_TOUCHED
        if self._due_all:
            self._due.clear()
        self._touched, self._touched_all = set(), False
        return self.behind

    @property
    def behind(self) -> bool:
        """Whether something that was taken is not read yet."""
        return self._due_all or bool(self._due)

    # --- what the client is told ---------------------------------------------------------------

    async def frames(self, moment: int, at: At | None = None) -> Iterator[bytes]:
        """What the client has to be told to know what was taken as of `moment`, which is read by
        `at`; from now on it is taken to know that. (The frames are made as they are sent.)

        After an error nothing has changed: the next call does all of it. Raises
        FailedPrecondition for a moment that is too long ago, and the query's errors.
        """
        known, resume = self._known, self._resume
        at = at or At(read_time=moment)
        reset = False
        if resume is not None:
            earlier = await self._recall(resume, moment)
            reset, known = earlier is None, earlier or {}
        states = await self._differing(at, known)
        mistaken = resume is not None and not reset and resume.expected not in {None, _count(known)}
        for state in states:
            if state.data is None:
                known.pop(state.path, None)
            else:
                known[state.path] = state.time
        self._known, self._resume = known, None
        self._due, self._due_all = set(), False
        return chain(
            [target_change(Change.RESET, (self.number,))] if reset else [],
            (self._frame(state, moment) for state in states),
            [self._filter(_count(known))] if mistaken else [],
        )

    async def _recall(self, resume: Resume, moment: int) -> dict[str, int] | None:
        """What the client knows of the target; None if that cannot be said any more."""
        if resume.since is None or resume.since > moment:
            return None
        try:
            return {state.path: state.time async for state in self._all(At(read_time=resume.since))}
        except FailedPrecondition:
            return None

    async def _differing(self, at: At, known: dict[str, int]) -> list[_State]:
        """The documents that are not as the client knows them."""
        if not self._due_all:
            some = await self._some(sorted(self._due), at)
            return [state for state in some if known.get(state.path, _MISSING) != state.time]
        states: list[_State] = []
        seen: set[str] = set()
        async for state in self._all(at):
            seen.add(state.path)
            if known.get(state.path) != state.time:
                states.append(state)
        lost = [path for path in known if path not in seen]
        return states + (await self._lost(lost, at) if lost else [])

    @abstractmethod
    def _all(self, at: At) -> AsyncIterator[_State]:
        """What the target holds."""

    @abstractmethod
    async def _some(self, paths: Sequence[str], at: At) -> list[_State]:
        """What has become of some paths."""

    async def _lost(self, paths: Sequence[str], at: At) -> list[_State]:
        """Paths that are not in the target any more."""
        reading = await self._backend.get(paths, timeout=SECONDS, at=at)
        return [_State(found.path, exists=found.data is not None) for found in reading.documents]

    def _frame(self, state: _State, moment: int) -> bytes:
        """The frame about one document."""
        if state.data is not None:
            change = wire.field_bytes(1, state.data) + wire.field_bytes(5, self._ids)
            return wire.field_bytes(3, change)
        name = wire.field_bytes(1, self._database.full(state.path).encode())
        time = wire.field_bytes(4, wire.time_bytes(moment))
        if state.exists:
            return wire.field_bytes(6, name + wire.field_bytes(2, self._ids) + time)
        return wire.field_bytes(4, name + time + wire.field_bytes(6, self._ids))

    def _filter(self, count: int) -> bytes:
        reply = types.ListenResponse.pb()()
        reply.filter.target_id = self.number
        reply.filter.count = count
        return _bytes(reply)


class DocumentsTarget(Target):
    """Named documents, of which the client is also told that they are missing."""

    def __init__(self, paths: Sequence[str], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._paths = dict.fromkeys(paths)

    @property
    def collections(self) -> Collection[str | None]:
        return {collection_id(path) for path in self._paths}

    def concerned(self, paths: Sequence[str]) -> Collection[str]:
        return [path for path in paths if path in self._paths]

    async def _all(self, at: At) -> AsyncIterator[_State]:
        for state in await self._some(list(self._paths), at):
            yield state

    async def _some(self, paths: Sequence[str], at: At) -> list[_State]:
        if not paths:
            return []
        reading = await self._backend.get(paths, timeout=SECONDS, at=at)
        return [
            _State(found.path)
            if found.data is None
            else _State(found.path, _identify(found.data)[1], found.data, exists=True)
            for found in reading.documents
        ]


class QueryTarget(Target):
    """The documents that a query finds."""

    def __init__(self, query: Query, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._query = query

    @property
    def piecemeal(self) -> bool:
        return self._query.limit is None and not self._query.offset

    @property
    def collections(self) -> Collection[str | None]:
        return (self._query.collection,)

    def concerned(self, paths: Sequence[str]) -> Collection[str]:
        # Whether a document is in scope is a matter of its collection only.
        return paths if queries.in_scope(self._query, paths[0]) else ()

    async def _all(self, at: At) -> AsyncIterator[_State]:
        async for page in self._backend.query(self._query, timeout=SECONDS, at=at):
            for number, data in wire.scan(page.frames):
                if number == 1 and isinstance(data, bytes):
                    name, time = _identify(data)
                    yield _State(self._database.relative(name), time, data, exists=True)
            await asyncio.sleep(0)  # a large result lets others have their turn

    async def _some(self, paths: Sequence[str], at: At) -> list[_State]:
        reading = await self._backend.get(paths, timeout=SECONDS, at=at)
        stored = {
            found.path: wire.parse_document(found.data, self._database)
            for found in reading.documents
            if found.data is not None
        }
        matching = {
            document.path: document for document in queries.run(self._query, stored.values())
        }
        states: list[_State] = []
        for found in reading.documents:
            document = matching.get(found.path)
            if document is None:
                states.append(_State(found.path, exists=found.data is not None))
                continue
            data = found.data
            if self._query.select is not None:
                data = wire.document_bytes(document, self._database)
            states.append(_State(found.path, document.update_time, data, exists=True))
        return states


def _count(known: Mapping[str, int]) -> int:
    return sum(time != _MISSING for time in known.values())


def _identify(data: bytes) -> tuple[str, int]:
    """The name and the update_time of a serialised document."""
    document = document_pb2.Document.FromString(data)
    return document.name, wire.decode_time(document.update_time)


# --- frames ------------------------------------------------------------------------------------


def target_change(
    kind: int,
    numbers: Collection[int],
    *,
    moment: int | None = None,
    token: bytes = b"",
    cause: CrossfadeError | None = None,
) -> bytes:
    """A ListenResponse with a TargetChange. No numbers: it is about all targets."""
    reply = types.ListenResponse.pb()()
    change = reply.target_change
    change.target_change_type = int(kind)
    change.target_ids.extend(numbers)
    change.resume_token = token
    if moment is not None:
        wire.encode_time(moment, change.read_time)
    if cause is not None:
        change.cause.code = code_of(cause).value[0]
        change.cause.message = details(cause)
    return _bytes(reply)


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
