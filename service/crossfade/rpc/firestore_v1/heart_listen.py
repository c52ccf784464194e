"""Listen over the heart: a stream is served by the authority, and ends with it.

Firestore's own streams are passed on as they are. PostgreSQL's are made here, from snapshots
and from what its commits tell. At a change of authority a stream ends with UNAVAILABLE;
clients listen again, and as one store's resume tokens mean nothing to the other, they are
told to forget what they know (RESET) and are sent all of it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from google.cloud.firestore_v1 import types

from crossfade import wire
from crossfade.control import Control
from crossfade.document import Database, is_own
from crossfade.errors import CrossfadeError, FailedPrecondition, InvalidArgument, Unavailable
from crossfade.groups import DEFAULT, Groups
from crossfade.migrator import spans
from crossfade.plan import StoreName
from crossfade.rpc.firestore_v1.backend import Backends
from crossfade.rpc.firestore_v1.listen import IDLE_SECONDS, Listen, Moment
from crossfade.rpc.firestore_v1.listen_targets import Change, target_change
from crossfade.rpc.firestore_v1.requests import database_of, parse
from crossfade.snapshot import Snapshot
from crossfade.store import NOW, At
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.changes import Changes
from crossfade.stores.postgres.snapshots import Snapshots
from crossfade.transactions import Transactions

TOKEN = b"crossfade:"
"""What our resume tokens begin with: Firestore is never sent one."""
ADMIT_SECONDS = 5.0
SNAPSHOT_SECONDS = 30.0


class _Moments:
    """Snapshots of PostgreSQL, each with all that was told of up to it."""

    costly = True

    def __init__(self, changes: Changes, snapshots: Snapshots, transactions: Transactions) -> None:
        self._changes = changes
        self._snapshots = snapshots
        self._transactions = transactions
        self._last = 0

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[Moment]:
        if not self._changes.watched:  # no targets: nothing to read
            yield Moment(self._last, NOW)
            return
        await self._changes.ready()
        missed: list[str] = []
        unsubscribe = self._changes.subscribe(lambda _, paths: missed.extend(paths))
        identity = b""
        try:
            snapshot = await self._snapshots.open(SNAPSHOT_SECONDS, SNAPSHOT_SECONDS)
            identity = self._transactions.adopt(snapshot)
            await self._changes.synced()
            unsubscribe()
            # What was told of meanwhile may be older or younger than the snapshot. It is looked
            # at in this round, and again in the next one.
            self._last = max(self._last, snapshot.read_time)
            yield Moment(self._last, At(transaction=identity), tuple(missed))
        finally:
            unsubscribe()
            if identity:
                await self._transactions.end(identity)


class HeartListen:
    """The method. `firestore` or `changes` and `snapshots` are None where the sidecar runs
    without that store."""

    def __init__(
        self,
        backends: Backends,
        groups: Groups,
        controls: Mapping[str, Control],
        transactions: Transactions,
        firestore: FirestoreStore | None,
        changes: Changes | None,
        snapshots: Snapshots | None,
    ) -> None:
        self._backends = backends
        self._groups = groups
        self._controls = controls
        self._firestore = firestore
        self._changes = changes
        self._ours: Listen | None = None
        if changes is not None and snapshots is not None:
            moments = _Moments(changes, snapshots, transactions)
            self._ours = Listen(backends, IDLE_SECONDS, moments, TOKEN)

    async def serve(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The frames of one stream, as long as the authority is the same."""
        watched = _Watched(self._groups, self._controls)
        requests = await watched.begin(requests)
        if watched.authority is StoreName.FIRESTORE:
            frames = self._passed_on(requests)
        elif self._ours is not None:
            frames = self._ours.serve(requests)
        else:
            raise Unavailable("this sidecar runs without PostgreSQL")
        over = asyncio.create_task(self._over(watched))
        try:
            async with aclosing(_until(frames, over, watched)) as until:
                async for frame in until:
                    await watched.check()
                    yield frame
        finally:
            over.cancel()

    async def _over(self, watched: "_Watched") -> None:
        """Returns when a stream has to end."""
        waits = [asyncio.create_task(watched.over())]
        if watched.authority is StoreName.POSTGRESQL and self._changes is not None:
            waits.append(asyncio.create_task(self._changes.lost()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    # --- Firestore's own ----------------------------------------------------------------------

    async def _passed_on(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        if self._firestore is None:
            raise Unavailable("this sidecar runs without Firestore")
        asked = _Asked(requests, self._backends)
        async with aclosing(self._firestore.listen(asked.checked())) as frames:
            async for frame in frames:
                yield frame
                for number in asked.to_reset(frame):
                    yield target_change(Change.RESET, (number,))
        if asked.error is not None:
            raise asked.error


class _Watched:
    """The groups that a stream's targets are of, and what was in charge of them when they were
    added. `error`: why the stream has to end; there are no requests after it."""

    def __init__(self, groups: Groups, controls: Mapping[str, Control]) -> None:
        self._groups = groups
        self._controls = controls
        self._snapshots: dict[str, Snapshot] = {}
        self._more = asyncio.Event()
        self.error: CrossfadeError | None = None

    @property
    def authority(self) -> StoreName:
        return next(iter(self._snapshots.values())).authority

    async def begin(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The requests; of several groups the first one says whose authority the stream is of,
        and with one nobody waits for it."""
        if len(self._controls) == 1:
            await self._add([DEFAULT])
            return requests
        first = await anext(requests, b"")
        await self._add(self._groups_of(first) or [DEFAULT])
        return self._requests(first, requests)

    async def _requests(self, first: bytes, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        if first:
            yield first
        async for data in requests:
            try:
                await self._add(self._groups_of(data))
            except CrossfadeError as error:
                self.error = error
                self._more.set()
                return
            yield data

    async def _add(self, names: Iterable[str]) -> None:
        """Raises FailedPrecondition for a group that has another authority than the stream."""
        for name in names:
            if name not in self._snapshots:
                control = self._controls[name]
                self._snapshots[name] = await control.admit(_within(ADMIT_SECONDS))
        if any(each.authority is not self.authority for each in self._snapshots.values()):
            of = [self._controls[name] for name in self._snapshots]
            raise FailedPrecondition(spans("the stream", of))
        self._more.set()

    def _groups_of(self, data: bytes) -> list[str]:
        """The groups that a request's target is of."""
        try:
            request = parse(types.ListenRequest.pb(), data)
            names = _names(request.add_target, database_of(request.database))
        except CrossfadeError:
            return []  # whoever serves it says what is wrong
        if "" in names:  # a query of all collections
            return list(self._controls)
        collections = (name.split("/")[-2] if "/" in name else name for name in names)
        return sorted({self._groups.of(collection) for collection in collections})

    async def check(self) -> None:
        """Raises Unavailable where what was in charge may not be asked any more."""
        for name, snapshot in self._snapshots.items():
            control = self._controls[name]
            if not control.admitted(snapshot):
                now = await control.admit(_within(ADMIT_SECONDS))
                if now.epoch != snapshot.epoch:
                    raise _over()

    async def over(self) -> None:
        """Returns when one of the groups has another epoch, or there is an error."""
        while self.error is None:
            self._more.clear()
            waits = [
                asyncio.create_task(self._controls[name].epoch_over(snapshot.epoch))
                for name, snapshot in self._snapshots.items()
            ]
            more = asyncio.create_task(self._more.wait())
            try:
                await asyncio.wait([more, *waits], return_when=asyncio.FIRST_COMPLETED)
                if any(wait.done() for wait in waits):
                    return
            finally:
                for wait in (more, *waits):
                    wait.cancel()


class _Asked:
    """A client's requests on their way to Firestore. `error`: what was wrong with one of them;
    there are none after it."""

    def __init__(self, requests: AsyncIterator[bytes], backends: Backends) -> None:
        self._requests = requests
        self._backends = backends
        self._reset: set[int] = set()
        self.error: Exception | None = None

    async def checked(self) -> AsyncIterator[bytes]:
        async for data in self._requests:
            try:
                yield self._check(data)
            except Exception as error:  # noqa: BLE001 - here it would only cancel the stream
                self.error = error
                return

    def _check(self, data: bytes) -> bytes:
        request = parse(types.ListenRequest.pb(), data)
        database = database_of(request.database)
        self._backends(database)
        target = request.add_target
        for name in _names(target, database):
            if is_own(name):
                raise InvalidArgument(
                    f"add_target: {name.partition('/')[0][:60]} is Crossfade's own"
                )
        if target.resume_token.startswith(TOKEN):
            target.ClearField("resume_token")
            target.ClearField("expected_count")
            self._reset.add(target.target_id)
            encoded: bytes = request.SerializeToString()
            return encoded
        return data

    def to_reset(self, frame: bytes) -> list[int]:
        """Targets that Firestore has acknowledged, and that the client knows of old."""
        if not self._reset:
            return []
        change = types.ListenResponse.pb().FromString(frame).target_change
        if change.target_change_type != Change.ADD:
            return []
        found = [number for number in change.target_ids if number in self._reset]
        self._reset.difference_update(found)
        return found


def _names(target: Any, database: Database) -> list[str]:
    """The paths and collections that a target is of."""
    names = [name.removeprefix(f"{database.root}/") for name in target.documents.documents]
    return names + [
        selector.collection_id for selector in wire.selectors(target.query.structured_query)
    ]


def _within(seconds: float) -> Callable[[], float]:
    """How many seconds are left of these."""
    ends = time.monotonic() + seconds
    return lambda: max(ends - time.monotonic(), 0.001)


async def _until(
    frames: AsyncGenerator[bytes, None], over: "asyncio.Task[None]", watched: _Watched
) -> AsyncGenerator[bytes, None]:
    """The frames until they end; raises Unavailable, or what is wrong, once `over` is done."""
    async with aclosing(frames):
        while True:
            following = asyncio.create_task(_next(frames))
            try:
                both: set[asyncio.Task[Any]] = {following, over}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.wait({following})
            if over.done() or following.cancelled():
                raise watched.error or _over()
            frame = following.result()
            if not frame:
                return
            yield frame


async def _next(frames: AsyncGenerator[bytes, None]) -> bytes:
    """The next frame; empty after the last one."""
    return await anext(frames, b"")


def _over() -> Unavailable:
    return Unavailable("the authority has changed, or its changes are not told of any more")
