"""Lanes: the connections to PostgreSQL, and the one place where its errors are translated.

Instead of the driver's pool: releasing one of its connections sends a reset query,
which is half of PostgreSQL's work for a read by key. A lane's session state is never
changed, so there is nothing to reset; statements stay prepared for the lane's life.
The lane used last is used next, so that few of them stay warm.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any, TypeAlias

import asyncpg
import orjson
from asyncpg.exceptions import InvalidCachedStatementError, OutdatedSchemaCacheError

from crossfade.errors import (
    Aborted,
    CommitUnanswered,
    CrossfadeError,
    DeadlineExceeded,
    InfrastructureError,
    Internal,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from crossfade.stores.postgres.deadlines import Deadlines

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class _Lane(asyncpg.Connection):
    """A connection that reads one row by the shortest way: the driver's own `fetchrow` goes
    through eight calls of Python before its protocol, a tenth of a read by key."""

    __slots__ = ("_kept",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._kept: dict[str, Any] = {}
        """Statements that the driver holds prepared."""

    async def first(self, query: str, *args: Any) -> asyncpg.Record | None:
        """`fetchrow` of a statement that changes nothing: it may be asked twice."""
        driver: Any = self
        kept = self._kept.get(query)
        if kept is None or kept.closed:
            kept = self._kept[query] = await driver._get_statement(query, None)  # noqa: SLF001
        try:
            rows = await driver._protocol.bind_execute(  # noqa: SLF001
                kept, args, portal_name="", limit=0, return_extra=False, timeout=None
            )
        except (OutdatedSchemaCacheError, InvalidCachedStatementError):
            # Somebody altered the table. The driver knows what to forget.
            del self._kept[query]
            return await self.fetchrow(query, *args)
        return rows[0] if rows else None


CLOSE_SECONDS = 2.0
STATEMENTS = 1_000
LOCK_MILLISECONDS = 200
_FETCH, _FETCHROW, _FIRST = _Lane.fetch, _Lane.fetchrow, _Lane.first
_EXECUTE = asyncpg.Connection.execute
_SETTINGS = {
    "application_name": "crossfade",
    "timezone": "UTC",
    "jit": "off",
    # A plan that was made while a table was empty reads it whole, and a lane keeps it until the
    # table is analyzed: 300,000 documents later a read by key took 25 ms for 0.13. Where there
    # is no index for it, a table is read whole all the same.
    "enable_seqscan": "off",
    # A sidecar that is stopped inside a transaction would hold the control row, and with
    # it every change of authority.
    "idle_in_transaction_session_timeout": "15s",
}


class Lanes:
    """At most `size` connections, opened when they are needed, used last in first out."""

    def __init__(self, dsn: str, size: int) -> None:
        self._dsn = dsn
        self._size = size
        self._idle: list[Connection] = []
        self._count = 0
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._deadlines = Deadlines()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(cls, dsn: str, *, size: int, timeout: float = 5.0) -> "Lanes":
        """Lanes of which one is connected. Raises Unavailable when the server is not there."""
        lanes = cls(dsn, size)
        await lanes.fetchval("select 1", timeout=timeout)
        return lanes

    @property
    def in_use(self) -> int:
        return self._count - len(self._idle)

    # --- statements -----------------------------------------------------------------------------

    async def fetch(self, query: str, *args: Any, timeout: float) -> list[asyncpg.Record]:
        """All rows of one statement, in a transaction of its own."""
        rows: list[asyncpg.Record] = await self._call(_FETCH, query, args, timeout)
        return rows

    async def fetchrow(self, query: str, *args: Any, timeout: float) -> asyncpg.Record | None:
        """The first row, if there is one."""
        row: asyncpg.Record | None = await self._call(_FETCHROW, query, args, timeout)
        return row

    def read(
        self, query: str, *args: Any, timeout: float
    ) -> Coroutine[Any, Any, asyncpg.Record | None]:
        """`fetchrow` for a statement that only reads: less to do for each."""
        return self._call(_FIRST, query, args, timeout)

    async def fetchval(self, query: str, *args: Any, timeout: float) -> Any:
        """The first value of the first row; None without a row."""
        row = await self._call(_FETCHROW, query, args, timeout)
        return None if row is None else row[0]

    async def execute(self, query: str, *args: Any, timeout: float) -> str:
        """The command's tag, such as "UPDATE 1"."""
        tag: str = await self._call(_EXECUTE, query, args, timeout)
        return tag

    async def _call(
        self, method: Callable[..., Awaitable[Any]], query: str, args: Sequence[Any], timeout: float
    ) -> Any:
        idle = self._idle
        if idle and not idle[-1].is_closed():
            connection = idle.pop()
        else:
            connection = await self._take(timeout)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        before = task.cancelling()
        self._deadlines.start(task, timeout)
        try:
            result = await method(connection, query, *args)
        except BaseException as raised:  # noqa: BLE001 - it goes on, translated
            late = self._deadlines.stop(task) and task.uncancel() <= before
            error = TimeoutError() if late else raised
            self._give_back(connection, error)
            raise _translated(error, connection) from None
        if self._deadlines.stop(task):
            task.uncancel()
        self._give(connection)
        return result

    @asynccontextmanager
    async def acquire(self, timeout: float) -> AsyncIterator[Connection]:
        """A connection for several statements, which together have `timeout` seconds.

        Errors of the block that are the driver's are translated. A block that leaves
        a transaction open loses the connection.
        """
        ends = monotonic() + timeout
        connection = await self._take(timeout)
        try:
            async with asyncio.timeout(ends - monotonic()):
                yield connection
        except BaseException as error:  # noqa: BLE001 - it goes on, translated
            self._give_back(connection, error)
            raise _translated(error, connection) from None
        if connection.is_in_transaction():
            self._drop(connection)
        else:
            self._give(connection)

    @asynccontextmanager
    async def transaction(
        self, timeout: float, mode: str = "read committed"
    ) -> AsyncIterator[Connection]:
        """One transaction: committed at the end of the block, rolled back when it raises.
        CommitUnanswered: only of this is it not known what became of it."""
        committing = False
        try:
            async with self.acquire(timeout) as connection:
                await connection.execute(f"begin isolation level {mode}")
                try:
                    yield connection
                except (CrossfadeError, asyncpg.PostgresError):
                    if not connection.is_closed():
                        await connection.execute("rollback")
                    raise
                committing = True
                await connection.execute("commit")
        except InfrastructureError as error:
            if committing:
                raise CommitUnanswered(str(error)) from error
            raise

    # --- held connections -----------------------------------------------------------------------

    async def hold(self, timeout: float) -> Connection:
        """A connection for as long as the caller likes; `release` gives it back."""
        return await self._take(timeout)

    def release(self, connection: Connection) -> None:
        """Gives back what was held. One with a transaction open is closed."""
        if connection.is_closed() or connection.is_in_transaction():
            self._drop(connection)
        else:
            self._give(connection)

    @asynccontextmanager
    async def translated(self, connection: Connection) -> AsyncIterator[None]:
        """Translates the driver's errors of a block that uses a held connection."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - it goes on, translated
            raise _translated(error, connection) from None

    @asynccontextmanager
    async def locked(
        self,
        table: str,
        timeout: float,
        first: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Connection]:
        """One transaction under the exclusive lock of a table; plain reads of it go on. `first`:
        what it does before it waits for the lock.

        Whoever wants a lock of the table meanwhile waits in line behind this one. So it is
        waited for only briefly at a time, and asked for again: a holder that stands still (its
        process was stopped) holds up nobody else.
        """
        async with self.acquire(timeout) as connection:
            await connection.execute("begin")
            try:
                if first is not None:
                    await first(connection)
                await _lock(connection, table)
                yield connection
            except (CrossfadeError, asyncpg.PostgresError):
                if not connection.is_closed():
                    await connection.execute("rollback")
                raise
            await connection.execute("commit")

    async def close(self) -> None:
        """Closes idle connections now and the others as they are given back."""
        self._closed = True
        while self._idle:
            self._drop(self._idle.pop())
        for waiter in self._waiters:
            waiter.cancel()
        await asyncio.gather(*self._closing)

    # --- taking and giving ----------------------------------------------------------------------

    async def _take(self, timeout: float) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            self._count -= 1
        if self._closed:
            raise Unavailable("the connections to PostgreSQL are closed")
        if self._count < self._size:
            return await self._connect(timeout)
        return await self._wait(timeout)

    async def _wait(self, timeout: float) -> Connection:
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        ends = monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                connection = await waiter
        except BaseException as error:
            # It may have been served in the very turn in which it was cancelled.
            if waiter.done() and not waiter.cancelled():
                served = waiter.result()
                if served is None:
                    self._wake()
                else:
                    self._give(served)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"PostgreSQL: all {self._size} connections were busy to the deadline"
                ) from None
            if self._closed:
                raise Unavailable("the connections to PostgreSQL are closed") from None
            raise
        return connection or await self._take(ends - monotonic())

    async def _connect(self, timeout: float) -> Connection:
        self._count += 1
        try:
            connection = await asyncpg.connect(
                self._dsn,
                timeout=max(timeout, 0.001),
                statement_cache_size=STATEMENTS,
                max_cached_statement_lifetime=0,
                max_cacheable_statement_size=0,
                server_settings=_SETTINGS,
                connection_class=_Lane,
            )
            try:
                await connection.set_type_codec(
                    "jsonb",
                    schema="pg_catalog",
                    encoder=_encode_jsonb,
                    decoder=_decode_jsonb,
                    format="binary",
                )
            except BaseException:
                connection.terminate()
                raise
        except BaseException as error:  # noqa: BLE001 - it goes on, translated
            self._count -= 1
            self._wake()
            raise _translated(error, None) from None
        return connection

    def _give(self, connection: Connection) -> None:
        if self._closed or connection.is_closed():
            self._drop(connection)
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)

    def _give_back(self, connection: Connection, error: BaseException) -> None:
        """After an error: a refused statement leaves the connection clean, all else may not."""
        if isinstance(error, asyncpg.PostgresError | CrossfadeError) and not (
            connection.is_closed() or connection.is_in_transaction()
        ):
            self._give(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        """Its place is free once it is closed: until then its query may still run there."""

        async def close() -> None:
            with suppress(Exception):
                # Waits for the cancellation of a running query, then for the goodbye.
                await connection.close(timeout=CLOSE_SECONDS)
            connection.terminate()
            self._count -= 1
            self._wake()

        task = asyncio.get_running_loop().create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _wake(self) -> None:
        """There is room for a connection: the next waiter opens one."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


def _encode_jsonb(value: Any) -> bytes:
    return b"\x01" + orjson.dumps(value)


def _decode_jsonb(data: bytes) -> Any:
    return orjson.loads(memoryview(data)[1:])


# --- errors ------------------------------------------------------------------------------------

_STATES: dict[str, tuple[type[CrossfadeError], str]] = {
    "57014": (DeadlineExceeded, "cancelled the statement"),
    "57": (Unavailable, "is shutting down or starting up"),
    "08": (Unavailable, "lost the connection"),
    "53": (Unavailable, "is out of a resource (disk, memory or connections)"),
    "58": (Unavailable, "had a system error"),
    "25006": (Unavailable, "is read-only"),
    "25P03": (Unavailable, "ended a transaction that stood idle"),
    "3D": (Unavailable, "has no such database"),
    "28": (Unauthenticated, "refused the login"),
    "42501": (PermissionDenied, "refused a permission"),
    "40": (Aborted, "gave the transaction up because of a conflict"),
    "55P03": (Aborted, "could not take a lock"),
    "54": (InvalidArgument, "has no room for it: a document's path is too long for an index"),
}


async def _lock(connection: Connection, table: str) -> None:
    """Locks a table, waiting only briefly at a time."""
    while True:
        await connection.execute("savepoint waiting")
        try:
            await connection.execute(f"set local lock_timeout = '{LOCK_MILLISECONDS}ms'")
            await connection.execute(f"lock table {table} in exclusive mode")
        except asyncpg.LockNotAvailableError:
            await connection.execute("rollback to savepoint waiting")
            await asyncio.sleep(LOCK_MILLISECONDS / 1e3)
        else:
            await connection.execute("set local lock_timeout = 0")
            return


def _translated(error: BaseException, connection: "Connection | None") -> BaseException:
    """The project's error for one of the driver's; others unchanged.

    Only the SQLSTATE is told: messages and details of PostgreSQL hold values.
    """
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or "XX000"
        kind, what = (
            _STATES.get(state) or _STATES.get(state[:2]) or (Internal, "refused a statement")
        )
        return kind(f"PostgreSQL {what} (SQLSTATE {state})")
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("PostgreSQL did not answer before the deadline")
    if isinstance(error, OSError):
        return Unavailable(f"PostgreSQL cannot be reached ({type(error).__name__})")
    if isinstance(error, asyncpg.InterfaceError):
        if connection is None or connection.is_closed():
            return Unavailable("PostgreSQL: the connection is closed")
        return Internal(f"PostgreSQL's driver refused a call ({type(error).__name__})")
    if isinstance(error, asyncpg.InternalClientError):
        # The driver has lost the thread: a server that ends a connection in the moment in which
        # it is asked looks like this, too. Nobody knows what became of the statement.
        return Unavailable(f"PostgreSQL: the connection broke ({type(error).__name__})")
    return error
