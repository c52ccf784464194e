"""Follows Firestore's change stream, for the days when some writers do not use a sidecar yet.

What they write is pending for nobody, so the mirror would answer without it. The follower
compares every change that it is told of with what the mirror knows, and queues a recopy
where the mirror is behind. It can only be late: between such a write and its recopy the
mirror answers with the former document, for as long as the lag says.

Each change is compared a little later than it comes, so that a sidecar's own put is there.
The stream is resumed from the last token before which everything was compared.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

import structlog

from crossfade import wire
from crossfade.control import Control
from crossfade.document import Database, collection_id, is_own
from crossfade.errors import CrossfadeError, Unavailable
from crossfade.pending import Pending
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.snapshot import Snapshot
from crossfade.stores.firestore import INTENTS, FirestoreStore
from crossfade.stores.postgres.mirror import Change
from crossfade.telemetry import FOLLOWED, Telemetry

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.5
RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0
SILENCE_SECONDS = 120.0
"""A stream that says nothing for so long, not even that there is nothing, has ended unseen."""
MAX_HEARD = 5_000
"""With so many changes that wait they are compared at once, and meanwhile the stream waits."""

_NO_CHANGE, _REMOVE = 0, 2


@dataclass(frozen=True, slots=True)
class _Event:
    """What one frame says: the change of a document, or a token that stands for all targets."""

    change: Change | None = None
    token: bytes | None = None
    refused: bool = False


class Follower:
    """One stream with a target for each of the collections, wherever they lie."""

    def __init__(
        self,
        control: Control,
        pending: Pending,
        firestore: FirestoreStore,
        telemetry: Telemetry,
        database: Database,
        collections: Sequence[str],
        *,
        settle: float = 1.0,
        timeout: float = 5.0,
    ) -> None:
        self._control = control
        self._pending = pending
        self._firestore = firestore
        self._telemetry = telemetry
        self._database = database
        self._collections = collections
        self._settle = settle
        self._timeout = timeout
        self._heard: deque[tuple[float, _Event]] = deque()
        """What is to be compared, in the order of the stream, with when it came."""
        self._token: bytes | None = None
        self._since = 0
        self._current: float | None = None
        self._open = False

    @property
    def lag(self) -> float | None:
        """Seconds by which the comparing is behind Firestore; None while nothing is followed."""
        if self._current is None:
            return None
        now = time.monotonic()
        since = next((heard for heard, event in self._heard if event.change is not None), None)
        if since is not None:
            return now - since
        return 0.0 if self._open else now - self._current

    async def run(self) -> None:
        """Runs for ever, and follows while Firestore is the authority of a mirrored stage."""
        pause = RETRY_SECONDS
        while True:
            snapshot = self._control.snapshot
            if not _followed(snapshot):
                # What foreign writers do meanwhile is the way back's to find.
                self._token, self._since, self._current = None, 0, None
            if not _followed(snapshot) or not snapshot.writable:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            began = time.monotonic()
            try:
                await self._follow()
            except CrossfadeError as error:
                log.warning("Firestore's changes are not followed", error=error.code)
                pause = RETRY_SECONDS if time.monotonic() - began > MAX_RETRY_SECONDS else pause
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_RETRY_SECONDS)

    async def _follow(self) -> None:
        """One stream, until the stage ends or something fails."""
        self._heard.clear()
        if self._token is None and not self._since:
            # From here on; what was before is the copy's. Firestore's own clock says when.
            reading = await self._firestore.get(
                [f"{INTENTS}/probe"], timeout=self._timeout, exact_times=True
            )
            self._since = reading.read_time
        if self._current is None:
            self._current = time.monotonic()
        frames = self._firestore.listen(self._requests())
        async with aclosing(frames):
            reading_on: asyncio.Future[bytes] | None = None
            try:
                heard = time.monotonic()
                while _followed(self._control.snapshot) and self._control.snapshot.writable:
                    if reading_on is None:
                        reading_on = asyncio.ensure_future(anext(frames))
                    await asyncio.wait([reading_on], timeout=self._due_in())
                    if reading_on.done():
                        self._hear(_parsed(reading_on.result(), self._database))
                        reading_on, heard = None, time.monotonic()
                    elif time.monotonic() - heard > SILENCE_SECONDS:
                        raise Unavailable("Firestore's stream of changes went silent")
                    if self._due_in() <= 0:
                        await self._compare()
            except StopAsyncIteration:
                raise Unavailable("Firestore's stream of changes ended") from None
            finally:
                self._open = False
                if reading_on is not None:
                    reading_on.cancel()
                    with suppress(asyncio.CancelledError, CrossfadeError, StopAsyncIteration):
                        await reading_on

    async def _requests(self) -> AsyncIterator[bytes]:
        """A target for each collection; then the stream stays open."""
        for number, name in enumerate(self._collections, start=1):
            query = wire.encode_query(Query(collection=name, all_descendants=True), self._database)
            target = wire.field_bytes(
                2,
                wire.field_bytes(1, self._database.full("").encode()) + wire.field_bytes(2, query),
            )
            if self._token is not None:
                target += wire.field_bytes(4, self._token)
            else:
                target += wire.field_bytes(11, wire.time_bytes(self._since))
            target += b"\x28" + wire.varint(number)
            yield wire.field_bytes(1, self._database.name.encode()) + wire.field_bytes(2, target)
        await asyncio.Event().wait()

    def _hear(self, event: _Event) -> None:
        if event.refused:
            raise Unavailable("Firestore refused to follow a collection")
        if event.token is not None:
            self._open = True
        elif event.change is None or is_own(event.change.path):
            return
        self._heard.append((time.monotonic(), event))

    def _due_in(self) -> float:
        """Seconds until there is something to compare."""
        if not self._heard:
            return LOOK_SECONDS
        if len(self._heard) >= MAX_HEARD:
            return 0.0
        return min(LOOK_SECONDS, max(0.0, self._heard[0][0] + self._settle - time.monotonic()))

    async def _compare(self) -> None:
        """Queues what the mirror is behind with. Only then may the stream be resumed from a
        token that came after it."""
        began = time.monotonic()
        ripe = began if len(self._heard) >= MAX_HEARD else began - self._settle
        taken = [event for heard, event in self._heard if heard <= ripe]
        changes = {event.change.path: event.change for event in taken if event.change is not None}
        if changes:
            await self._queue_behind(list(changes.values()))
        for event in taken:
            self._heard.popleft()
            self._token = event.token or self._token
        self._current = began

    async def _queue_behind(self, changes: Sequence[Change]) -> None:
        epoch = self._control.snapshot.epoch
        behind = await self._pending.mirror.behind(changes, epoch=epoch, timeout=self._timeout)
        if behind:
            await self._pending.mark(behind, epoch, "follower", StoreName.FIRESTORE)
            for collection, count in Counter(map(collection_id, behind)).items():
                self._telemetry.count(FOLLOWED, collection, by=count)


def _followed(snapshot: Snapshot) -> bool:
    return snapshot.authority is StoreName.FIRESTORE and snapshot.rules.mirrored


def _parsed(frame: bytes, database: Database) -> _Event:
    """A ListenResponse, as far as it matters here. Existence filters are not: what was
    deleted while nobody followed, a copy finds."""
    for number, value in wire.scan(frame):
        if not isinstance(value, bytes):
            continue
        fields = list(wire.scan(value))
        if number == 2:
            return _target_change(fields)
        if number == 3:
            for name, data in fields:
                if name == 1 and isinstance(data, bytes):
                    document = wire.parse_document(data, database)
                    return _Event(Change(document.path, document.update_time, there=True))
        if number in {4, 6}:
            return _Event(_gone(fields, database))
    return _Event()


def _target_change(fields: Sequence[tuple[int, bytes | int]]) -> _Event:
    kind, token, of_some = _NO_CHANGE, None, False
    for number, value in fields:
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2:
            of_some = True
        elif number == 4 and isinstance(value, bytes):
            token = value
    # A token without targets says that the stream is consistent for all of them up to it.
    resumable = token is not None and kind == _NO_CHANGE and not of_some
    return _Event(token=token if resumable else None, refused=kind == _REMOVE)


def _gone(fields: Sequence[tuple[int, bytes | int]], database: Database) -> Change | None:
    path, read_time = None, 0
    for number, value in fields:
        if number == 1 and isinstance(value, bytes):
            path = database.relative(value.decode())
        elif number == 4 and isinstance(value, bytes):
            read_time = wire.parse_time(value)
    return None if path is None else Change(path, read_time, there=False)
