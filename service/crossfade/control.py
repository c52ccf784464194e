"""Who is in charge, as this sidecar knows it: the control row, and the stage lease.

The row `crossfade.control` is the truth. Requests never read it: they use the
`Snapshot`, and every statement in PostgreSQL checks the snapshot's epoch, so a
sidecar that missed a change is told `EpochChanged` and decides again. Firestore's
calls carry no check; for them the stage lease stands (lease.py). barrier.py changes the row.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

import structlog

from crossfade.errors import (
    Aborted,
    CrossfadeError,
    DeadlineExceeded,
    FailedPrecondition,
    Unavailable,
)
from crossfade.groups import Group
from crossfade.lease import Lease
from crossfade.plan import STAGES, Stage, StoreName
from crossfade.snapshot import Snapshot, Traffic, snapshot_of
from crossfade.stores.fences import other_groups
from crossfade.stores.postgres.membership import wildcards

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
AGREE_SECONDS = 0.05
COPY_POLL_SECONDS = 0.1
READY_SECONDS = 2.0


class Rows(Protocol):
    """The part of the lanes that the control row needs."""

    async def fetchrow(self, query: str, *args: Any, timeout: float) -> Any: ...

    async def execute(self, query: str, *args: Any, timeout: float) -> str: ...

    def locked(
        self, table: str, timeout: float, first: Callable[[Any], Awaitable[None]] | None = None
    ) -> Any: ...


READ = """select stage, authority, epoch, generation, barrier, traffic, requested, groups,
    coalesce((barrier ->> 'lease_until')::float8 < extract(epoch from clock_timestamp()), true)
        as abandoned,
    coalesce((barrier ->> 'deadline')::float8 < extract(epoch from clock_timestamp()), true)
        as late,
    copy_after is null or copy_after <= clock_timestamp() as copyable
from crossfade.control where grp = $1"""

DOUBT_EVERYTHING = """insert into crossfade.pending
    (intent, path, collection_path, collection_id, epoch, lease_until, reason)
select 'wildcard', name, name, name, 0, 'infinity', 'not copied' from unnest($1::text[]) name
on conflict do nothing"""


class Control:
    """The sidecar's view of who is in charge of a group. `lease` is None without Firestore,
    `rows` without PostgreSQL."""

    def __init__(
        self,
        rows: Rows | None,
        lease: Lease | None,
        configured_traffic: Mapping[str, Traffic],
        timeout: float = 5.0,
        group: Group | None = None,
    ) -> None:
        self.group = group or Group()
        self._rows = rows
        self.lease = lease
        self._configured = dict(configured_traffic)
        self._timeout = timeout
        self._changed = asyncio.Condition()
        self._in_flight: Counter[int] = Counter()
        self._serial = 0
        self._reading = asyncio.Lock()
        self._readings = 0
        self._unread: CrossfadeError | None = None
        self._row: Mapping[str, Any] | None = None
        """The row as it was read last."""
        self.request: Stage | None = None
        """The stage that the settings ask for, until it is reached or an operator sets another."""
        self.snapshot = Snapshot(Stage.OFF, 0, 0, traffic=self._configured)
        self.outdated = False
        """The groups have been changed: this sidecar was forgotten, and has nothing to do."""

    # --- following the row ------------------------------------------------------------------

    async def check(self, requested: Stage) -> None:
        """Raises FailedPrecondition where the control state cannot begin, or go on, so."""
        if self._rows is None:
            if requested is not Stage.OFF:
                raise FailedPrecondition(f"stage {requested} needs PostgreSQL; set DATABASE_URL")
            return
        rules = STAGES[requested]
        held = rules.authority is StoreName.POSTGRESQL and rules.mirrored
        if await self.row() is None and held:
            raise FailedPrecondition(
                f"stage {requested} cannot be the first: PostgreSQL holds nothing yet. Start "
                f"with MIGRATION_READ_PRIMARY=firestore, copy the documents, then change it"
            )

    async def open(self, requested: Stage, *, explicit: bool) -> Stage | None:
        """Seeds an empty control state with the requested stage, else follows the row.

        Returns the stage to move to when the settings ask for another one than
        they did last (`explicit`: they ask for one at all). The same request again
        is none: what an operator set meanwhile stands.
        """
        await self.check(requested)
        if self._rows is None:
            return None
        row = await self.row()
        if row is None:
            await self._seed(requested)
            row = await self.row()
        await self.refresh()
        if not explicit or row is None or row["requested"] == requested:
            return None
        self.request = requested
        return requested

    async def _seed(self, stage: Stage) -> None:
        """Where the first stage mirrors, the change to it is left for the coordinator to end:
        Firestore's side has to be told."""
        rules = STAGES[stage]
        begun = {"id": "seed", "kind": "begin", "before": "off", "target": stage, "step": "publish"}
        async with self.transaction() as connection:
            seeded = await connection.execute(
                """insert into crossfade.control
                    (grp, stage, authority, epoch, generation, requested, barrier, groups)
                values ($1, $2, $3, 1, 1, $2, $4::jsonb, $5) on conflict (grp) do nothing""",
                self.group.name,
                stage.value,
                rules.authority.value,
                None if rules.authority is StoreName.POSTGRESQL else begun,
                self.group.layout,
            )
            if rules.mirrored and seeded == "INSERT 0 1":
                await self.doubt_everything(connection)

    async def doubt_everything(self, connection: Any) -> None:
        """Until a copy has ended, the mirror answers nothing of the group."""
        await connection.execute(DOUBT_EVERYTHING, wildcards(self.group))

    async def answer_request(self) -> None:
        """What the settings ask for counts as done once a stage was reached: that one, or
        what an operator chose over it. Not before: the sidecar may end, or be refused, and
        the next start has to try again."""
        if self.request is not None:
            await self.change(
                "update crossfade.control set requested = $2 where grp = $1",
                self.group.name,
                self.request.value,
            )
            self.request = None

    async def row(self) -> Any:
        """The control row as it is now; None: there is none. Raises FailedPrecondition where
        it is of other groups than the settings."""
        return await self._fetch(self.needs_rows())

    async def _fetch(self, rows: Rows) -> Any:
        row = await rows.fetchrow(READ, self.group.name, timeout=self._timeout)
        self.outdated = row is not None and row["groups"] != self.group.layout
        if self.outdated:
            raise FailedPrecondition(other_groups(self.group.layout, row["groups"]))
        return row

    async def refresh(self) -> Snapshot:
        """Reads the row and publishes a new snapshot if it says something new.

        One at a time, because of two readings under way the older might be published
        last. Whoever waits shares the next one.
        """
        if self._rows is None:
            await self.adopt()
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
        traffic: Mapping[str, Traffic] = self._configured
        if self._row is not None:
            traffic = snapshot_of(self._row, self._configured).traffic
        await self._publish(replace(self.snapshot, traffic=traffic, _plans={}))

    async def _read(self, rows: Rows) -> None:
        self._readings += 1
        self._unread = None
        try:
            row = await self._fetch(rows)
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
        """Runs for ever: keeps the snapshot current."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if self._went_on_without_postgresql():
                    await self.adopt()
                await self.refresh()
            except CrossfadeError as error:
                log.warning("the control row cannot be read", error=error.code)
                with suppress(CrossfadeError):
                    await self.adopt()

    def _went_on_without_postgresql(self) -> bool:
        """After a rollback by force: the document is ahead of a row that nobody could write."""
        return (
            self.lease is not None
            and self.lease.valid
            and self.lease.document.open
            and self.lease.document.epoch > self.snapshot.epoch
        )

    # --- Firestore's side -------------------------------------------------------------------

    def admitted(self, snapshot: Snapshot) -> bool:
        """Whether the snapshot's authority may be asked now. PostgreSQL checks the epoch in
        each statement; Firestore needs a lease that agrees with the snapshot."""
        return (
            snapshot.authority is StoreName.POSTGRESQL
            or self.lease is None
            or self.lease.covers(snapshot)
        )

    def mirror_vouches(self, snapshot: Snapshot) -> bool:
        """Whether PostgreSQL as the mirror may answer at all: a lease, and the gate open."""
        return (
            self.lease is not None and self.lease.covers(snapshot) and self.lease.document.gate_open
        )

    def mirror_is_complete(self) -> bool:
        """Whether PostgreSQL knows of every commit that was acknowledged so far: its own, or
        by a pending row, none having gone past it."""
        return (
            self.snapshot.authority is StoreName.POSTGRESQL
            or self.lease is None
            or (self.lease.valid and self.lease.document.gate_open)
        )

    async def admit(self, left: Callable[[], float]) -> Snapshot:
        """A snapshot whose authority may be asked, as soon as there is one.

        Raises Unavailable when the lease cannot be renewed, or the authority is changing
        for longer than the caller's deadline.
        """
        while not self.admitted(snapshot := self.snapshot):
            lease = self.lease
            assert lease is not None  # noqa: S101 - admitted() says so
            await lease.renew(left())
            if self.admitted(snapshot):
                break
            try:
                await self.refresh()
            except CrossfadeError:
                await self.adopt()
            if self.admitted(self.snapshot):
                continue
            try:
                async with asyncio.timeout(min(AGREE_SECONDS, left())), self._changed:
                    await self._changed.wait()
            except TimeoutError:
                continue
            except DeadlineExceeded as error:
                raise Unavailable(
                    "the authority is changing, for longer than the deadline"
                ) from error
        return self.snapshot

    async def check_ready(self) -> None:
        """Raises InfrastructureError where the store in charge cannot be asked now. The other one
        may be away: this stage is served without it."""
        if self.snapshot.authority is StoreName.POSTGRESQL:
            await self.refresh()
            return
        ends = time.monotonic() + READY_SECONDS

        def left() -> float:
            if (seconds := ends - time.monotonic()) <= 0:
                raise DeadlineExceeded("the authority is changing")
            return seconds

        await self.admit(left)

    async def catch_up(self, left: Callable[[], float]) -> None:
        """After EpochChanged: what stands now, by the row, or else by Firestore's document."""
        try:
            await self.refresh()
        except CrossfadeError:
            if self.lease is None:
                raise
            await self.lease.renew(left())
            await self.adopt()

    async def adopt(self) -> None:
        """What Firestore's document says, while PostgreSQL cannot be asked: enough to go on
        with Firestore, and for nothing that the mirror would have to vouch for."""
        if self.lease is None:
            return
        document = self.lease.document
        if self._rows is None and not document.update_time:
            began = time.monotonic()
            fences = self.lease.fences
            with suppress(Aborted):
                made = await fences.change(document, document, timeout=self._timeout)
                self.lease.learn(made, began)
            return
        if not document.open:
            raise Unavailable(
                "Firestore is not in charge, by its control document, and PostgreSQL, which "
                "would say more, cannot be asked"
            )
        if document.mirrored and self._rows is None:
            raise Unavailable(
                "commits have to be mirrored by now, and this sidecar runs without PostgreSQL; "
                "set DATABASE_URL"
            )
        known = self.snapshot
        same = document.epoch == known.epoch and document.mirrored == known.rules.mirrored
        if document.epoch >= known.epoch and not same:
            stage = Stage.DUAL_WRITE if document.mirrored else Stage.OFF
            await self._publish(Snapshot(stage, document.epoch, -1, traffic=self._configured))

    async def epoch_over(self, epoch: int) -> None:
        """Returns when another epoch than this has begun, as far as this sidecar knows."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.snapshot.epoch != epoch)

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
        """Waits until no commit of this sidecar is in flight that was begun under an older
        snapshot. `deadline`: `time.monotonic()` seconds."""
        while any(count for serial, count in self._in_flight.items() if serial < self._serial):
            if time.monotonic() > deadline:
                raise DeadlineExceeded("commits of the former stage are still in flight")
            await asyncio.sleep(0.01)
        self._in_flight = Counter({s: n for s, n in self._in_flight.items() if n})

    async def copy_may_begin(self, deadline: float) -> None:
        """Waits until every sidecar mirrors, and what was begun in stage off is in Firestore:
        no row stands for it, so a page that was read before would miss it."""
        await self.older_writes_end(deadline)
        while not (row := await self.row()) or not row["copyable"]:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    "commits of stage off may still be in flight; a copy would miss them"
                )
            await asyncio.sleep(COPY_POLL_SECONDS)

    # --- the row ----------------------------------------------------------------------------

    async def set_traffic(self, collection: str, traffic: Traffic, *, reset: bool = False) -> None:
        """Sets what is not None, and forgets with `reset` what was set before. Takes effect at
        once here, within a poll elsewhere."""
        await self.change(
            """update crossfade.control
            set traffic = traffic || jsonb_build_object($2::text,
                case when $4 then '{}' else coalesce(traffic -> $2::text, '{}') end
                || jsonb_strip_nulls($3::jsonb)),
                updated_at = now()
            where grp = $1""",
            self.group.name,
            collection,
            {"read_percent": traffic.read_percent, "shadow_rate": traffic.shadow_rate},
            reset,
        )
        await self.refresh()

    def needs_rows(self) -> Rows:
        if self._rows is None:
            raise FailedPrecondition("this sidecar runs without PostgreSQL; set DATABASE_URL")
        return self._rows

    @asynccontextmanager
    async def transaction(
        self, timeout: float | None = None, first: Callable[[Any], Awaitable[None]] | None = None
    ) -> AsyncIterator[Any]:
        """For changes of the control row. The lock of the table makes new share locks of the
        row wait in line: an update alone would starve under commits that overlap without a gap.
        `first`: what the transaction does before it waits for the lock."""
        seconds = self._timeout if timeout is None else timeout
        async with self.needs_rows().locked("crossfade.control", seconds, first) as connection:
            yield connection

    async def change(self, query: str, *args: Any) -> str:
        """One change of the control row; the command's tag."""
        async with self.transaction() as connection:
            tag: str = await connection.execute(query, *args)
        return tag
