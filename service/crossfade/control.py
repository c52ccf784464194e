"""Who is in charge: the control row, and the barrier that changes it.

The row `crossfade.control` is the truth. Requests never read it: they use the
`Snapshot`, and every statement in PostgreSQL checks the snapshot's epoch, so a
sidecar that missed a change is told `EpochChanged` and decides again.

A change of authority is a barrier (protocol.md): close for new writes, wait
until nothing is pending, then open under the next epoch. Reads go on all the time.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

import structlog

from crossfade.errors import (
    CrossfadeError,
    DeadlineExceeded,
    EpochChanged,
    FailedPrecondition,
    InfrastructureError,
    Unavailable,
)
from crossfade.plan import STAGES, Stage, StoreName
from crossfade.snapshot import Snapshot, Traffic, snapshot_of

log = structlog.get_logger(__name__)

GROUP = "default"
EVERYTHING = ""
"""Path of the wildcard pending row that stands for every document."""
POLL_SECONDS = 0.5
OPEN_SECONDS = 30.0
"""For the last step of a barrier, which may have to look at every document's version."""


class Rows(Protocol):
    """The part of the lanes that the control row needs."""

    async def fetchrow(self, query: str, *args: Any, timeout: float) -> Any: ...

    async def execute(self, query: str, *args: Any, timeout: float) -> str: ...

    def acquire(self, timeout: float) -> Any: ...


_READ = """select stage, authority, epoch, generation, barrier, traffic, requested
from crossfade.control where grp = $1"""
_PENDING = """select count(*) filter (where path <> '') as paths,
    count(*) filter (where path = '') as wildcards,
    count(*) filter (where dead) as dead
from crossfade.pending"""
# What PostgreSQL wrote as the authority bears its times there and Firestore's own in
# Firestore, and a client's precondition has to name those of the authority.
_RESTAMP = """insert into crossfade.pending
    (intent, path, collection_path, collection_id, epoch, lease_until, reason)
select $1::text, path, parent, regexp_replace(parent, '^.*/', ''), $2::int8,
    clock_timestamp(), 'rollback'
from (select path, regexp_replace(path, '/[^/]*$', '') as parent from crossfade.versions
    where live and peer_time is distinct from time) as foreign_times"""


class Control:
    """The sidecar's view of the control row and the one way to change it."""

    def __init__(
        self, rows: Rows | None, settled_traffic: Mapping[str, Traffic], timeout: float = 5.0
    ) -> None:
        self._rows = rows
        self._configured = dict(settled_traffic)
        self._timeout = timeout
        self._changed = asyncio.Condition()
        self._in_flight: Counter[int] = Counter()
        self._serial = 0
        self._moving = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._readings = 0
        self._unread: CrossfadeError | None = None
        self._row: Mapping[str, Any] | None = None
        """The row as it was read last."""
        self._unfinished: Snapshot | None = None
        self.request: Stage | None = None
        """The stage that the settings ask for, until it is reached or an operator sets another."""
        self.wake_recopy: Callable[[], None] = lambda: None
        self.snapshot = Snapshot(Stage.OFF, 0, 0, traffic=self._configured)

    # --- following the row ------------------------------------------------------------------

    async def open(self, requested: Stage, *, explicit: bool) -> Stage | None:
        """Seeds an empty control state with the requested stage, else follows the row.

        Returns the stage to move to when the settings ask for another one than
        they did last (`explicit`: they ask for one at all). The same request again
        is none: what an operator set meanwhile stands.
        """
        if self._rows is None:
            if requested is not Stage.OFF:
                raise FailedPrecondition(f"stage {requested} needs PostgreSQL; set DATABASE_URL")
            return None
        row = await self._rows.fetchrow(_READ, GROUP, timeout=self._timeout)
        if row is None:
            if STAGES[requested].authority is StoreName.POSTGRESQL and STAGES[requested].mirrored:
                raise FailedPrecondition(
                    f"stage {requested} cannot be the first: PostgreSQL holds nothing yet. Start "
                    f"with MIGRATION_READ_PRIMARY=firestore, copy the documents, then change it"
                )
            await self._seed(requested)
            row = await self._rows.fetchrow(_READ, GROUP, timeout=self._timeout)
        if row is not None and row["barrier"] is not None:
            await self._undo_barrier(row)
        await self.refresh()
        if not explicit or row is None or row["requested"] == requested:
            return None
        self.request = requested
        return requested

    async def _answer_request(self) -> None:
        """What the settings ask for counts as done once a stage was reached: that one, or
        what an operator chose over it. Not before: the sidecar may end, or be refused, and
        the next start has to try again."""
        if self.request is not None:
            await self._change(
                "update crossfade.control set requested = $2 where grp = $1",
                GROUP,
                self.request.value,
            )
            self.request = None

    async def _seed(self, requested: Stage) -> None:
        assert self._rows is not None  # noqa: S101 - open() has looked
        async with self._transaction() as connection:
            await connection.execute(
                """insert into crossfade.control
                    (grp, stage, authority, epoch, generation, requested)
                values ($1, $2, $3, 1, 1, $2) on conflict (grp) do nothing""",
                GROUP,
                requested.value,
                STAGES[requested].authority.value,
            )
            if STAGES[requested].mirrored:
                await _doubt_everything(connection)

    async def refresh(self) -> Snapshot:
        """Reads the row and publishes a new snapshot if it says something new.

        One at a time, because of two readings under way the older might be published
        last. Whoever waits shares the next one.
        """
        if self._rows is None:
            return self.snapshot
        wanted = self._readings + 1
        async with self._reading:
            if self._readings < wanted:
                await self._read(self._rows)
            elif self._unread is not None:
                raise Unavailable(f"the control row: {self._unread}") from self._unread
        return self.snapshot

    async def configure(self, configured: Mapping[str, Traffic]) -> None:
        """The traffic of the settings, from now on. What was set by command stands over it."""
        self._configured = dict(configured)
        if self._row is not None:
            await self._publish(snapshot_of(self._row, self._configured))
        else:
            await self._publish(replace(self.snapshot, traffic=self._configured, _plans={}))

    async def _read(self, rows: Rows) -> None:
        self._readings += 1
        self._unread = None
        try:
            row = await rows.fetchrow(_READ, GROUP, timeout=self._timeout)
            await self._publish(snapshot_of(row, self._configured))
            self._row = row
        except CrossfadeError as error:
            self._unread = error
            raise
        except BaseException:
            self._readings -= 1  # cancelled: the next one reads
            raise

    async def _publish(self, fresh: Snapshot) -> None:
        if fresh == self.snapshot:
            return
        async with self._changed:
            if fresh.epoch >= self.snapshot.epoch:
                self._serial += 1
                self.snapshot = fresh
            self._changed.notify_all()

    async def follow(self) -> None:
        """Runs for ever: keeps the snapshot current, and ends what a barrier left half done."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if not self._moving.locked():
                    await self._undo()
                await self.refresh()
            except InfrastructureError as error:
                log.warning("the control row cannot be read", error=str(error))

    # --- writers ----------------------------------------------------------------------------

    async def writable(self, left: Callable[[], float]) -> Snapshot:
        """The snapshot once writes are open. Raises Unavailable when the barrier outlasts
        the caller's deadline."""
        if self.snapshot.writable:
            return self.snapshot
        try:
            async with asyncio.timeout(left()), self._changed:
                await self._changed.wait_for(lambda: self.snapshot.writable)
        except TimeoutError as error:
            raise Unavailable(
                "a change of authority is under way and outlasts the deadline; "
                "the commit was not begun"
            ) from error
        return self.snapshot

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Marks a commit as begun under the current snapshot."""
        serial = self._serial
        self._in_flight[serial] += 1
        try:
            yield
        finally:
            self._in_flight[serial] -= 1

    async def older_writes_end(self, deadline: float) -> None:
        """Waits until no commit is in flight that was begun under an older snapshot.
        `deadline`: `time.monotonic()` seconds."""
        while any(count for serial, count in self._in_flight.items() if serial < self._serial):
            if time.monotonic() > deadline:
                raise DeadlineExceeded("commits of the former stage are still in flight")
            await asyncio.sleep(0.01)
        self._in_flight = Counter({s: n for s, n in self._in_flight.items() if n})

    # --- changes ----------------------------------------------------------------------------

    async def set_traffic(self, collection: str, traffic: Traffic, *, reset: bool = False) -> None:
        """Sets what is not None, and forgets with `reset` what was set before. Takes effect at
        once here, within a poll elsewhere."""
        await self._change(
            """update crossfade.control
            set traffic = traffic || jsonb_build_object($2::text,
                case when $4 then '{}' else coalesce(traffic -> $2::text, '{}') end
                || jsonb_strip_nulls($3::jsonb)),
                updated_at = now()
            where grp = $1""",
            GROUP,
            collection,
            {"read_percent": traffic.read_percent, "shadow_rate": traffic.shadow_rate},
            reset,
        )
        await self.refresh()

    async def set_stage(self, target: Stage, *, timeout: float = 10.0) -> None:
        """Moves to a stage and returns when it is reached.

        Raises FailedPrecondition when the stage cannot be reached from here (with
        the reason), DeadlineExceeded when a barrier did not close in time; then
        the former stage stands again.
        """
        self._needs_rows()
        async with self._moving:
            await self._undo()
            await self.refresh()
            before = self.snapshot
            if before.stage is target:
                await self._answer_request()
                return
            old, new = STAGES[before.stage], STAGES[target]
            deadline = time.monotonic() + timeout
            if before.stage is Stage.COMPLETE:
                raise FailedPrecondition(
                    "stage complete mirrors nothing, so Firestore lacks every write since: "
                    "there is no way back that loses nothing"
                )
            if new.authority is not old.authority or target is Stage.COMPLETE:
                await self._barrier(target, deadline)
            elif new.mirrored and not old.mirrored:
                await self._move(target, doubt=True)
                await self.older_writes_end(deadline)
            elif old.mirrored and not new.mirrored:
                await self._move(target, doubt=True)
            else:
                changed = await self._change(
                    """update crossfade.control set stage = $2, updated_at = now()
                    where grp = $1 and epoch = $3 and barrier is null""",
                    GROUP,
                    target.value,
                    before.epoch,
                )
                await self.refresh()
                if changed != "UPDATE 1":
                    raise EpochChanged("another change of stage is under way")
            log.info("stage changed", before=before.stage.value, now=self.snapshot.stage.value)
            await self._answer_request()

    async def _move(self, target: Stage, *, doubt: bool) -> None:
        """Off <-> dual_write: what the mirror holds is doubtful from here until a copy ends.

        Pending rows are taken from whoever holds them, so that nothing read before is put
        after; and kept, because a worker still has to revoke their intents.
        """
        async with self._transaction() as connection:
            await connection.execute(
                """update crossfade.control set stage = $2, generation = generation + 1,
                    updated_at = now() where grp = $1""",
                GROUP,
                target.value,
            )
            if doubt:
                await connection.execute(
                    """update crossfade.pending
                    set claim = null, lease_until = clock_timestamp() where path <> ''"""
                )
                await _doubt_everything(connection)
        await self.refresh()

    async def _barrier(self, target: Stage, deadline: float) -> None:
        """Changes the authority (or leaves it alone, for live -> complete) with nothing pending."""
        rows = self._needs_rows()
        before = self.snapshot
        if not before.rules.mirrored:
            raise FailedPrecondition(
                f"stage {before.stage} does not write the mirror, so it does not hold everything; "
                f"set stage dual_write and run the copy, then change the stage"
            )
        counts = await rows.fetchrow(_PENDING, timeout=self._timeout)
        if counts is not None and counts["wildcards"]:
            raise FailedPrecondition(
                "the first copy has not ended, so the mirror does not hold everything; "
                "run the copy, then change the stage"
            )
        try:
            await self._close(target, before)
            await self.older_writes_end(deadline)
            await self._drain(deadline)
            await self._open_again(target, before)
        except BaseException:
            with suppress(CrossfadeError):
                await asyncio.shield(self._undo())
            raise
        self._unfinished = None

    async def _undo(self) -> None:
        """Opens the former stage again, under the next epoch, so that nothing of the attempt
        counts any more. Where that fails too (PostgreSQL is away), follow() goes on with it."""
        before = self._unfinished
        if before is not None:
            await self._open_again(before.stage, before)
            if self._unfinished is before:
                self._unfinished = None

    async def _close(self, target: Stage, before: Snapshot) -> None:
        self._unfinished = before
        changed = await self._change(
            """update crossfade.control
            set authority = 'none', barrier = $3::jsonb, updated_at = now()
            where grp = $1 and epoch = $2 and barrier is null""",
            GROUP,
            before.epoch,
            {"from": before.stage.value, "to": target.value},
        )
        if changed != "UPDATE 1":
            self._unfinished = None  # it is somebody else's
            await self.refresh()
            raise EpochChanged("another change of stage is under way")
        await self.refresh()

    async def _open_again(self, stage: Stage, before: Snapshot) -> None:
        authority = STAGES[stage].authority
        async with self._transaction(OPEN_SECONDS) as connection:
            opened = await connection.execute(
                """update crossfade.control set stage = $2, authority = $3, epoch = epoch + 1,
                    barrier = null, updated_at = now()
                where grp = $1 and epoch = $4""",
                GROUP,
                stage.value,
                authority.value,
                before.epoch,
            )
            back = authority is StoreName.FIRESTORE and before.authority is StoreName.POSTGRESQL
            if opened == "UPDATE 1" and back and STAGES[stage].mirrored:
                await connection.execute(_RESTAMP, f"rollback-{before.epoch}", before.epoch + 1)
        await self.refresh()

    async def _drain(self, deadline: float) -> None:
        """Waits until nothing is pending, with the recopy worker at work."""
        while True:
            counts = await self._needs_rows().fetchrow(_PENDING, timeout=self._timeout)
            left, dead = (counts["paths"], counts["dead"]) if counts is not None else (0, 0)
            if not left:
                return
            if left == dead:
                raise FailedPrecondition(
                    f"{dead} documents are dead letters: they could not be copied and have to be "
                    f"looked at first (crossfade.pending, failure); the former stage stands"
                )
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{left} documents are still pending; the former stage stands"
                )
            self.wake_recopy()
            await asyncio.sleep(0.02)

    async def _undo_barrier(self, row: Mapping[str, Any]) -> None:
        """A barrier whose coordinator died before it opened is undone."""
        stage = Stage(row["barrier"]["from"])
        log.warning("an unfinished change of stage is undone", stage=stage.value)
        await self._open_again(stage, snapshot_of(row, self._configured))

    # --- helpers ----------------------------------------------------------------------------

    def _needs_rows(self) -> Rows:
        if self._rows is None:
            raise FailedPrecondition("this sidecar runs without PostgreSQL; set DATABASE_URL")
        return self._rows

    @asynccontextmanager
    async def _transaction(self, timeout: float | None = None) -> AsyncIterator[Any]:
        """For changes of the control row. The lock of the table lets plain reads pass, and
        makes new share locks of the row wait in line: an update alone would starve under
        commits that overlap without a gap."""
        acquired = self._needs_rows().acquire(self._timeout if timeout is None else timeout)
        async with acquired as connection, connection.transaction():
            await connection.execute("lock table crossfade.control in exclusive mode")
            yield connection

    async def _change(self, query: str, *args: Any) -> str:
        """One change of the control row; the command's tag."""
        async with self._transaction() as connection:
            tag: str = await connection.execute(query, *args)
        return tag


async def _doubt_everything(connection: Any) -> None:
    """The wildcard row: until a copy has ended, the mirror answers nothing."""
    await connection.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        values ('wildcard', $1, '', '', 0, 'infinity', 'not copied')
        on conflict do nothing""",
        EVERYTHING,
    )
