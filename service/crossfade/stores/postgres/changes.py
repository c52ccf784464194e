"""Changes: told of commits that PostgreSQL decided, in the order in which they took effect.

A commit sends a notification in its own transaction, but only if somebody listens: NOTIFY
makes commits wait for one another. Listening is a lock. Whoever listens has it, or waits for
it, for itself; a commit tries to share it, without waiting, and where it cannot it
notifies. Once the lock is had, by whomever, every commit that knew of no listener is over.

Notifications arrive after the commit can be read. Whoever reads and has to know what a
snapshot holds calls `synced` behind it: what it holds was told of when that returns.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import orjson
import structlog

from crossfade.errors import CrossfadeError, Unavailable
from crossfade.stores.postgres.lanes import Connection, Lanes

log = structlog.get_logger(__name__)

CHANNEL = "crossfade"
LISTENING = "listening"
MOST_BYTES = 7_900
"""Of a notification's text; PostgreSQL's limit is 8,000."""
START_SECONDS = 10.0
CLOSE_SECONDS = 2.0
POLL_SECONDS = 0.02

Watcher: TypeAlias = Callable[[int, Sequence[str]], None]

_KEY = f"hashtextextended('{LISTENING}', 7)"
UNHEARD = f"pg_try_advisory_xact_lock_shared({_KEY})"
"""In a commit, behind its locks: whether nobody listens."""
NOTIFY = f"select count(pg_notify('{CHANNEL}', text)) from unnest($1::text[]) t (text)"
_LOCK = f"select pg_advisory_lock({_KEY})"
_LISTENED = f"""select exists (select from pg_locks
where locktype = 'advisory' and granted and mode = 'ExclusiveLock' and objsubid = 1
    and database = (select oid from pg_database where datname = current_database())
    and (classid::int8 << 32) | objid::int8 = {_KEY})"""


def notifications(paths: Sequence[str]) -> list[str]:
    """The texts that tell of the changed paths."""
    texts: list[str] = []
    part: list[bytes] = []
    size = 2
    for path in paths:
        encoded = orjson.dumps(path)
        if part and size + len(encoded) + 1 > MOST_BYTES:
            texts.append(f"[{b','.join(part).decode()}]")
            part, size = [], 2
        part.append(encoded)
        size += len(encoded) + 1
    if part:
        texts.append(f"[{b','.join(part).decode()}]")
    return texts


class Changes:
    """Listens while anybody watches. The lanes are the caller's; two of them are held then."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._watchers: list[Watcher] = []
        self._listener: Connection | None = None
        self._running: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._marks = itertools.count(1)
        self._awaited: dict[str, asyncio.Future[None]] = {}
        self._marking = asyncio.Lock()
        self._losses: set[asyncio.Future[None]] = set()

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Has later commits told to `watcher`, once `ready` has returned. Returns what ends it."""
        self._watchers.append(watcher)
        if self._running is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run(self._ready))

        def unsubscribe() -> None:
            with suppress(ValueError):
                self._watchers.remove(watcher)
            if not self._watchers and self._running is not None:
                self._running.cancel()
                self._running = self._listener = self._ready = None

        return unsubscribe

    @property
    def watched(self) -> bool:
        return bool(self._watchers)

    async def lost(self) -> None:
        """Returns when a connection is lost after this call: watchers missed commits then."""
        loss: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._losses.add(loss)
        try:
            await loss
        finally:
            self._losses.discard(loss)

    async def ready(self) -> None:
        """Every commit from now on is told. Raises Unavailable where that is not so, or not
        any more: then whoever watches begins anew."""
        if self._ready is None:
            raise Unavailable("nobody listens to PostgreSQL")
        await asyncio.shield(self._ready)
        if self._listener is None:
            raise Unavailable("the connection that listened to PostgreSQL was lost")

    async def synced(self) -> None:
        """What was committed before this was called has been told when it returns."""
        listener, mark = self._listener, f"mark {next(self._marks)}"
        if listener is None:
            raise Unavailable("the connection that listened to PostgreSQL was lost")
        heard = self._awaited[mark] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(START_SECONDS), self._lanes.translated(listener):
                async with self._marking:
                    pid = listener.get_server_pid()
                    await listener.execute(f"notify {CHANNEL}, '{pid} {mark}'")
                await heard
        finally:
            self._awaited.pop(mark, None)

    # --- the connections ----------------------------------------------------------------------

    async def _run(self, ready: "asyncio.Future[None]") -> None:
        """One life of the two connections, ended by cancellation, or by the loss of one."""
        held: list[Connection] = []
        locking: asyncio.Task[Any] | None = None
        try:
            listener = await self._lanes.hold(START_SECONDS)
            held.append(listener)
            holder = await self._lanes.hold(START_SECONDS)
            held.append(holder)
            lost = asyncio.Event()
            for connection in held:
                connection.add_termination_listener(lambda _: lost.set())
            async with self._lanes.translated(listener):
                await listener.add_listener(CHANNEL, self._heard)
                locking = asyncio.create_task(holder.execute(_LOCK))
                await self._until_locked(listener)
            if self._running is asyncio.current_task():
                self._listener = listener
                ready.set_result(None)
            await lost.wait()
            log.warning("the connection that listens to PostgreSQL was lost")
        except CrossfadeError as error:
            if not ready.done():
                ready.set_exception(Unavailable(f"PostgreSQL cannot be listened to: {error}"))
                ready.exception()
        except asyncio.CancelledError:
            if not ready.done():
                ready.cancel()
        finally:
            if self._running is asyncio.current_task():
                self._running = self._listener = None
                for loss in self._losses:
                    if not loss.done():
                        loss.set_result(None)
                for heard in self._awaited.values():
                    if not heard.done():
                        heard.set_exception(Unavailable("the connection to PostgreSQL was lost"))
            if locking is not None:
                locking.cancel()
                await asyncio.wait({locking}, timeout=CLOSE_SECONDS)
            for connection in held:
                connection.terminate()
                self._lanes.release(connection)

    async def _until_locked(self, listener: Connection) -> None:
        """Until somebody has the lock: this, or another that has it already."""
        async with asyncio.timeout(START_SECONDS):
            while not await listener.fetchval(_LISTENED):  # noqa: ASYNC110 - another's lock
                await asyncio.sleep(POLL_SECONDS)

    def _heard(self, _connection: Any, pid: int, _channel: str, text: object) -> None:
        if not isinstance(text, str):
            return
        if not text.startswith("["):
            sender, _, mark = text.partition(" ")
            heard = self._awaited.get(mark)
            if heard is not None and sender == str(pid) and not heard.done():
                listener = self._listener
                if listener is not None and listener.get_server_pid() == pid:
                    heard.set_result(None)
            return
        paths = orjson.loads(text)
        for watcher in tuple(self._watchers):
            watcher(0, paths)
