"""Listen over the heart: a stream is served by the authority, and ends with it.

Firestore's own streams are passed on as they are. PostgreSQL's are made here, from snapshots
and from what its commits tell. At a change of authority a stream ends with UNAVAILABLE;
clients listen again, and as one store's resume tokens mean nothing to the other, they are
told to forget what they know (RESET) and are sent all of it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from google.cloud.firestore_v1 import types

from crossfade import wire
from crossfade.control import Control
from crossfade.document import Database, is_own
from crossfade.errors import InvalidArgument, Unavailable
from crossfade.plan import StoreName
from crossfade.rpc.firestore_v1.backend import Backends
from crossfade.rpc.firestore_v1.listen import IDLE_SECONDS, Listen, Moment
from crossfade.rpc.firestore_v1.listen_targets import Change, target_change
from crossfade.rpc.firestore_v1.requests import database_of, parse
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
        control: Control,
        transactions: Transactions,
        firestore: FirestoreStore | None,
        changes: Changes | None,
        snapshots: Snapshots | None,
    ) -> None:
        self._backends = backends
        self._control = control
        self._firestore = firestore
        self._changes = changes
        self._ours: Listen | None = None
        if changes is not None and snapshots is not None:
            moments = _Moments(changes, snapshots, transactions)
            self._ours = Listen(backends, IDLE_SECONDS, moments, TOKEN)

    async def serve(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The frames of one stream, as long as the authority is the same."""
        snapshot = await self._control.admit(_within(ADMIT_SECONDS))
        if snapshot.authority is StoreName.FIRESTORE:
            frames = self._passed_on(requests)
        elif self._ours is not None:
            frames = self._ours.serve(requests)
        else:
            raise Unavailable("this sidecar runs without PostgreSQL")
        over = asyncio.create_task(self._over(snapshot.epoch, snapshot.authority))
        try:
            async with aclosing(_until(frames, over)) as until:
                async for frame in until:
                    if not self._control.admitted(snapshot):
                        now = await self._control.admit(_within(ADMIT_SECONDS))
                        if now.epoch != snapshot.epoch:
                            raise _over()
                    yield frame
        finally:
            over.cancel()

    async def _over(self, epoch: int, authority: StoreName) -> None:
        """Returns when a stream has to end."""
        waits = [asyncio.create_task(self._control.epoch_over(epoch))]
        if authority is StoreName.POSTGRESQL and self._changes is not None:
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
    frames: AsyncGenerator[bytes, None], over: "asyncio.Task[None]"
) -> AsyncGenerator[bytes, None]:
    """The frames until they end; raises Unavailable once `over` is done."""
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
                raise _over()
            frame = following.result()
            if not frame:
                return
            yield frame


async def _next(frames: AsyncGenerator[bytes, None]) -> bytes:
    """The next frame; empty after the last one."""
    return await anext(frames, b"")


def _over() -> Unavailable:
    return Unavailable("the authority has changed, or its changes are not told of any more")
