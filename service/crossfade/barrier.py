"""Changes of stage: each is a short list of steps, kept in the control row.

A change of authority is a barrier (docs/protocol.md): close for new writes, wait until
nothing is pending and no lease of the former stage runs, then open under the next epoch.
The row says which step comes next, so any sidecar goes on where another died. Every
step compares and sets: the row by its epoch, change and step, Firestore's control
document by its update_time. A coordinator that stalls and wakes up late changes nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import structlog

from crossfade.control import DOUBT_EVERYTHING, GROUP, Control
from crossfade.errors import (
    Aborted,
    CrossfadeError,
    DeadlineExceeded,
    EpochChanged,
    FailedPrecondition,
    InfrastructureError,
)
from crossfade.failpoints import reach
from crossfade.lease import Lease
from crossfade.pending import new_intent
from crossfade.plan import STAGES, Stage, StoreName
from crossfade.snapshot import Snapshot
from crossfade.stores.fences import ControlDocument

log = structlog.get_logger(__name__)

COORDINATOR_SECONDS = 5.0
"""A coordinator that says nothing for so long is taken for dead."""
LOOK_SECONDS = 0.5
DRAIN_SECONDS = 0.02
OPEN_SECONDS = 30.0
"""For the last step of a rollback, which may have to look at every document's version."""

STEPS: Mapping[str, tuple[str, ...]] = {
    # the first stage of all, or off -> dual_write, shadow; and back
    "begin": ("publish", "settle"),
    "leave": ("publish", "settle"),
    # Firestore -> PostgreSQL; PostgreSQL -> Firestore; live -> complete
    "take": ("fence", "drain", "lapse", "open"),
    "give": ("drain", "move", "publish", "settle"),
    "finish": ("drain", "open"),
    # a change of authority that is given up; nothing was opened by it
    "undo": ("publish", "settle"),
}
BARRIERS = frozenset({"take", "give", "finish"})
"""The kinds that hold up writes, and can be given up until they open."""

_PENDING = """select count(*) filter (where path <> '') as paths,
    count(*) filter (where path = '') as wildcards,
    count(*) filter (where dead) as dead
from crossfade.pending"""
_MINE = "grp = $1 and epoch = $2 and barrier ->> 'id' = $3 and barrier ->> 'step' = $4"
_STEP = f"""update crossfade.control set updated_at = now(), barrier = $5::jsonb
    || jsonb_build_object('lease_until', extract(epoch from clock_timestamp()) + $6::float8)
where {_MINE} and barrier ->> 'coordinator' = $7"""
_TAKE_OVER = f"""update crossfade.control set barrier = barrier || jsonb_build_object(
    'coordinator', $5::text,
    'lease_until', extract(epoch from clock_timestamp()) + $6::float8)
where {_MINE} and (barrier ->> 'coordinator' = $5 or coalesce(
    (barrier ->> 'lease_until')::float8 < extract(epoch from clock_timestamp()), true))"""
_HEARTBEAT = """update crossfade.control set barrier = barrier || jsonb_build_object(
    'lease_until', extract(epoch from clock_timestamp()) + $4::float8)
where grp = $1 and barrier ->> 'id' = $2 and barrier ->> 'coordinator' = $3"""
_SETTLE = f"""update crossfade.control set barrier = null, updated_at = now(),
    copy_after = case when $6::float8 is null then copy_after
        else clock_timestamp() + $6::float8 * interval '1 second' end
where {_MINE} and barrier ->> 'coordinator' = $5"""
_MOVE = f"""update crossfade.control
set stage = $5, authority = $6, epoch = epoch + 1, updated_at = now(),
    barrier = $7::jsonb || jsonb_build_object('lease_until', barrier -> 'lease_until')
where {_MINE} and barrier ->> 'coordinator' = $8"""
# What PostgreSQL wrote as the authority bears its times there and Firestore's own in
# Firestore, and a client's precondition has to name those of the authority.
_RESTAMP = """insert into crossfade.pending
    (intent, path, collection_path, collection_id, epoch, lease_until, reason)
select $1::text, path, parent, regexp_replace(parent, '^.*/', ''), $2::int8,
    clock_timestamp(), 'rollback'
from (select path, regexp_replace(path, '/[^/]*$', '') as parent from crossfade.versions
    where live and peer_time is distinct from time) as foreign_times"""

# Written by PostgreSQL and never sent on, when Firestore was put in charge by force.
_LOST = """update crossfade.pending
set dead = true, claim = null, failure = 'lost by a rollback by force' where path <> ''"""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of stage under way, as the control row holds it.

    `deadline` (PostgreSQL's clock, seconds since 1970): a barrier that is not drained by then
    is given up. `coordinator`: whose turn it is, while its lease runs. `first`: there was no
    control document before, so no sidecar has ever written to this Firestore.
    """

    id: str
    kind: str
    before: Stage
    target: Stage
    step: str
    coordinator: str = ""
    deadline: float = 0.0
    first: bool = False

    @property
    def next(self) -> str | None:
        steps = STEPS[self.kind]
        position = steps.index(self.step) + 1
        return steps[position] if position < len(steps) else None

    def stored(self) -> dict[str, Any]:
        return asdict(self)


def _change_of(row: Mapping[str, Any]) -> Change:
    barrier: Mapping[str, Any] = row["barrier"]
    return Change(
        barrier["id"],
        barrier["kind"],
        Stage(barrier["before"]),
        Stage(barrier["target"]),
        barrier["step"],
        barrier.get("coordinator", ""),
        barrier.get("deadline", 0.0),
        barrier.get("first", False),
    )


def kind_of(before: Stage, target: Stage) -> str | None:
    """How a stage is left for another. None: by nothing but a change of the row."""
    old, new = STAGES[before], STAGES[target]
    if new.authority is not old.authority:
        return "take" if new.authority is StoreName.POSTGRESQL else "give"
    if old.mirrored is new.mirrored:
        return None
    if old.authority is StoreName.POSTGRESQL:
        return "finish"
    return "begin" if new.mirrored else "leave"


class Coordinator:
    """The one way to change the stage. Every sidecar has one; the row says whose turn it is.

    `lease` None: there is no Firestore. `horizon`: seconds after which Firestore applies no
    commit any more that its sender has given up.
    """

    def __init__(
        self,
        control: Control,
        lease: Lease | None,
        *,
        horizon: float,
        timeout: float = 5.0,
    ) -> None:
        self._control = control
        self._lease = lease
        self._horizon = horizon
        self._timeout = timeout
        self._name = new_intent()
        self._moving = asyncio.Lock()
        self._cancelled = ""
        self.wake_recopy: Callable[[], None] = lambda: None
        self._do: Mapping[str, Callable[[Change, Snapshot], Awaitable[Change | None]]] = {
            "publish": self._publish,
            "settle": self._settle,
            "fence": self._fence,
            "drain": self._drain,
            "lapse": self._lapse,
            "move": self._move,
            "open": self._open,
        }

    # --- asked for ----------------------------------------------------------------------------

    async def set_stage(self, target: Stage, *, timeout: float = 10.0, force: bool = False) -> None:
        """Moves to a stage and returns when it is reached. `force`: back to Firestore though
        PostgreSQL does not answer.

        Raises FailedPrecondition when the stage cannot be reached from here (with
        the reason), DeadlineExceeded when a barrier did not close in time; then
        the former stage stands again, or will, as soon as both stores answer.
        """
        self._control.needs_rows()
        async with self._moving:
            try:
                before = await self._control.refresh()
            except InfrastructureError:
                if not force:
                    raise
                await self._force(target)
                return
            if before.stage is not target:
                kind = kind_of(before.stage, target)
                await self._check(kind, before, target)
                if kind is None:
                    await self._replace(before, target)
                else:
                    change = await self._begin(kind, before, target, timeout)
                    try:
                        await self._carry(change)
                    except asyncio.CancelledError:
                        self._cancelled = change.id
                        raise
                log.info("stage changed", before=before.stage.value, now=target.value)
            await self._control.answer_request()

    async def _force(self, target: Stage) -> None:
        """PostgreSQL is in charge and dead: Firestore is opened without it. What PostgreSQL had
        not sent on is lost, and when it is back it follows (see _reconcile)."""
        snapshot = self._control.snapshot
        if self._lease is None or STAGES[target].authority is not StoreName.FIRESTORE:
            raise FailedPrecondition(
                f"stage {target} cannot be forced: only a way to Firestore can"
            )
        found = await self._lease.fences.read(timeout=self._timeout)
        if found.open:
            raise FailedPrecondition("Firestore is in charge by its control document already")
        epoch = max(found.epoch, snapshot.epoch) + 1
        mirrored = STAGES[target].mirrored
        await self._write_document(
            lambda document: replace(document, epoch=epoch, open=True, mirrored=mirrored), epoch
        )
        await self._control.adopt()
        log.error("Firestore was put in charge by force", epoch=epoch)

    async def _check(self, kind: str | None, before: Snapshot, target: Stage) -> None:
        """Raises FailedPrecondition where the change would lose something, or cannot end."""
        if before.stage is Stage.COMPLETE:
            raise FailedPrecondition(
                "stage complete mirrors nothing, so Firestore lacks every write since: "
                "there is no way back that loses nothing"
            )
        if kind not in {None, "finish"} and self._lease is None:
            raise FailedPrecondition(f"stage {target} needs Firestore, which is not configured")
        if kind not in BARRIERS:
            return
        if not before.rules.mirrored:
            raise FailedPrecondition(
                f"stage {before.stage} does not write the mirror, so it does not hold everything; "
                f"set stage dual_write and run the copy, then change the stage"
            )
        counts = await self._counts()
        if counts["wildcards"]:
            raise FailedPrecondition(
                "the first copy has not ended, so the mirror does not hold everything; "
                "run the copy, then change the stage"
            )
        if counts["dead"]:
            raise _dead_letters(counts["dead"])

    async def _replace(self, before: Snapshot, target: Stage) -> None:
        changed = await self._control.change(
            """update crossfade.control set stage = $2, updated_at = now()
            where grp = $1 and epoch = $3 and barrier is null and stage = $4""",
            GROUP,
            target.value,
            before.epoch,
            before.stage.value,
        )
        await self._control.refresh()
        if changed != "UPDATE 1":
            raise EpochChanged("another change of stage is under way")

    async def _begin(self, kind: str, before: Snapshot, target: Stage, timeout: float) -> Change:
        """The first step of all: the row says what is under way, and the rest is carried on
        by whoever lives."""
        change = Change(new_intent(), kind, before.stage, target, STEPS[kind][0], self._name)
        mirroring = kind in {"begin", "leave"}
        async with self._control.transaction() as connection:
            begun = await connection.execute(
                """update crossfade.control set
                    stage = case when $5 then $4 else stage end,
                    generation = generation + $5::int,
                    copy_after = case when $5 then 'infinity' else copy_after end,
                    authority = case when $5 then authority else 'none' end,
                    barrier = $3::jsonb || jsonb_build_object(
                        'lease_until', extract(epoch from clock_timestamp()) + $6::float8,
                        'deadline', extract(epoch from clock_timestamp()) + $7::float8),
                    updated_at = now()
                where grp = $1 and epoch = $2 and barrier is null and stage = $8""",
                GROUP,
                before.epoch,
                change.stored(),
                target.value,
                mirroring,
                COORDINATOR_SECONDS,
                timeout,
                before.stage.value,
            )
            if begun != "UPDATE 1":
                raise EpochChanged("another change of stage is under way")
            if mirroring:
                # Pending rows are taken from whoever holds them, so that nothing read before
                # is put after; and kept, because a worker still has to revoke their intents.
                await connection.execute(
                    """update crossfade.pending set claim = null,
                        lease_until = case when reason = 'unfenced' and claim is null
                            then lease_until else clock_timestamp() end
                    where path <> ''"""
                )
                await connection.execute(DOUBT_EVERYTHING)
        reach("barrier.closed")
        await self._control.refresh()
        row = await self._control.row()
        return replace(change, deadline=row["barrier"]["deadline"]) if row["barrier"] else change

    # --- carried on ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs for ever: goes on with what another sidecar left half done, and keeps Firestore's
        control document in step with the row."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if not self._moving.locked():
                    async with self._moving:
                        await self.look()
            except EpochChanged:
                log.info("another sidecar goes on with the change of stage")
            except InfrastructureError as error:
                log.warning("a change of stage waits for a store", error=error.code)
            except CrossfadeError as error:
                log.warning("a change of stage was given up", reason=str(error))

    async def look(self) -> None:
        """Takes over an abandoned change of stage; else mends the control document."""
        row = await self._control.row()
        if row is None:
            return
        if row["barrier"] is None:
            await self._reconcile(row)
        elif row["abandoned"] or row["barrier"].get("coordinator") == self._name:
            change = _change_of(row)
            if change.coordinator not in {"", self._name}:
                log.warning(
                    "an abandoned change of stage is taken over",
                    stage=change.target.value,
                    step=change.step,
                )
            taken = await self._control.change(
                _TAKE_OVER,
                GROUP,
                row["epoch"],
                change.id,
                change.step,
                self._name,
                COORDINATOR_SECONDS,
            )
            if taken == "UPDATE 1":
                await self._control.refresh()
                over = bool(row["late"]) or change.id == self._cancelled
                await self._carry(replace(change, coordinator=self._name), over=over)

    async def _carry(self, change: Change, *, over: bool = False) -> None:
        """Step by step to the end. A barrier that is late (`over`: known to be) is given up, and
        the reason raised."""
        beats = asyncio.create_task(self._heartbeat(change))
        try:
            if over and _can_be_given_up(change):
                await self._walk(await self._give_up(change))
                return
            await self._walk(change)
        except _TooLate as error:
            await self._walk(await self._give_up(error.change))
            raise error.reason from None
        finally:
            beats.cancel()
            with suppress(CrossfadeError):
                await self._control.refresh()

    async def _walk(self, change: Change | None) -> None:
        following = change
        while following is not None:
            current = following
            try:
                following = await self._do[current.step](current, self._control.snapshot)
            except (DeadlineExceeded, FailedPrecondition) as reason:
                if _can_be_given_up(current):
                    raise _TooLate(current, reason) from reason
                raise

    async def _heartbeat(self, change: Change) -> None:
        """Tells the others that the coordinator lives."""
        while True:
            await asyncio.sleep(COORDINATOR_SECONDS / 5)
            with suppress(CrossfadeError):
                await self._control.change(
                    _HEARTBEAT, GROUP, change.id, self._name, COORDINATOR_SECONDS
                )

    async def _advance(self, change: Change, snapshot: Snapshot, *, first: bool = False) -> Change:
        """The next step, if nobody else has gone on meanwhile."""
        step = change.next
        assert step is not None  # noqa: S101 - the last step of a kind does not call this
        after = replace(change, step=step, first=first or change.first)
        done = await self._control.change(
            _STEP,
            GROUP,
            snapshot.epoch,
            change.id,
            change.step,
            after.stored(),
            COORDINATOR_SECONDS,
            self._name,
        )
        if done != "UPDATE 1":
            raise EpochChanged("another sidecar goes on with the change of stage")
        return after

    # --- the steps ----------------------------------------------------------------------------

    async def _publish(self, change: Change, snapshot: Snapshot) -> Change:
        """Firestore's control document says what the row says."""
        found = await self._write_document(
            lambda found: replace(
                found, epoch=snapshot.epoch, open=True, mirrored=snapshot.rules.mirrored
            ),
            snapshot.epoch,
        )
        reach("barrier.opened")
        return await self._advance(change, snapshot, first=not found.update_time)

    async def _settle(self, change: Change, snapshot: Snapshot) -> None:
        """The end of what opened Firestore. A copy has to wait until no sidecar writes without
        mirroring any more, and until nothing is in flight that one of them sent."""
        wait: float | None = None
        if change.kind == "begin" and change.first:
            wait = 0.0
        elif change.kind == "begin" and self._lease is not None:
            await self._control.older_writes_end(time.monotonic() + self._horizon)
            wait = self._lease.over_after + self._horizon
        done = await self._control.change(
            _SETTLE, GROUP, snapshot.epoch, change.id, change.step, self._name, wait
        )
        if done != "UPDATE 1":
            raise EpochChanged("another sidecar goes on with the change of stage")

    async def _fence(self, change: Change, snapshot: Snapshot) -> Change:
        """From here on no lease begins, and no outbox commit is accepted."""
        await self._write_document(
            lambda found: replace(
                found, epoch=snapshot.epoch + 1, open=False, mirrored=snapshot.rules.mirrored
            ),
            snapshot.epoch + 1,
        )
        reach("barrier.fenced")
        return await self._advance(change, snapshot)

    async def _drain(self, change: Change, snapshot: Snapshot) -> Change:
        """Waits until the mirror has everything, with the recopy workers at work."""
        while True:
            counts, entries = await self._counts(), 0
            if not counts["paths"] and change.kind == "take" and self._lease is not None:
                entries = len(await self._lease.fences.entries(timeout=self._timeout))
            if not entries and not counts["paths"]:
                break
            if counts["paths"] and counts["paths"] == counts["dead"]:
                raise _dead_letters(counts["dead"])
            if await self._late():
                raise DeadlineExceeded(
                    f"{counts['paths'] + entries} documents are still pending; "
                    f"the former stage stands"
                )
            self.wake_recopy()
            await asyncio.sleep(DRAIN_SECONDS)
        reach("barrier.drained")
        return await self._advance(change, snapshot)

    async def _lapse(self, change: Change, snapshot: Snapshot) -> Change:
        """Every lease that began before the fence is over. The fence was up when this step was
        entered, so a takeover waits the whole time again."""
        assert self._lease is not None  # noqa: S101 - _check() has looked
        began = time.monotonic()
        await self._lease.renew()
        await asyncio.sleep(self._lease.over_after + time.monotonic() - began)
        return await self._advance(change, snapshot)

    async def _move(self, change: Change, snapshot: Snapshot) -> Change:
        """PostgreSQL is closed for good, Firestore's document not open yet: at no time both."""
        after = replace(change, step="publish")
        async with self._control.transaction(OPEN_SECONDS) as connection:
            await self._moved(connection, change, snapshot, change.target, after)
            if STAGES[change.target].mirrored:
                await connection.execute(_RESTAMP, f"rollback-{snapshot.epoch}", snapshot.epoch + 1)
        reach("barrier.moved")
        await self._control.refresh()
        return after

    async def _open(self, change: Change, snapshot: Snapshot) -> None:
        async with self._control.transaction(OPEN_SECONDS) as connection:
            await self._moved(connection, change, snapshot, change.target, None)
        reach("barrier.opened")

    async def _give_up(self, change: Change) -> Change | None:
        """The former authority opens again, under the next epoch, so that nothing of the
        attempt counts any more."""
        snapshot = self._control.snapshot
        authority = STAGES[change.before].authority
        after = (
            replace(change, kind="undo", step="publish")
            if authority is StoreName.FIRESTORE
            else None
        )
        log.warning("a change of stage is given up", stage=change.target.value, step=change.step)
        async with self._control.transaction(OPEN_SECONDS) as connection:
            await self._moved(connection, change, snapshot, change.before, after)
        await self._control.refresh()
        return after

    async def _moved(
        self,
        connection: Any,
        change: Change,
        snapshot: Snapshot,
        stage: Stage,
        after: Change | None,
    ) -> None:
        moved = await connection.execute(
            _MOVE,
            GROUP,
            snapshot.epoch,
            change.id,
            change.step,
            stage.value,
            STAGES[stage].authority.value,
            None if after is None else after.stored(),
            self._name,
        )
        if moved != "UPDATE 1":
            raise EpochChanged("another sidecar goes on with the change of stage")

    # --- both sides ---------------------------------------------------------------------------

    async def _write_document(
        self, wanted: Callable[[ControlDocument], ControlDocument], epoch: int
    ) -> ControlDocument:
        """Compare and set, until the document is as wanted; returns what it was. Raises
        EpochChanged when it is of a later epoch: then somebody else has gone on."""
        assert self._lease is not None  # noqa: S101 - _check() has looked
        fences = self._lease.fences
        while True:
            began = time.monotonic()
            found = await fences.read(timeout=self._timeout)
            if found.epoch > epoch:
                raise EpochChanged("Firestore's control document is of a later epoch")
            after = wanted(found)
            if found.update_time and after == found:
                self._lease.learn(found, began)
                return found
            with suppress(Aborted):
                changed = await fences.change(found, after, timeout=self._timeout)
                self._lease.learn(changed, began)
                return found

    async def _reconcile(self, row: Mapping[str, Any]) -> None:
        """Nothing is under way, so the two sides should agree. They do not where Firestore has
        lost its document (it was emptied, or restored), where PostgreSQL is older than it (a
        restored backup), or after a rollback by force."""
        rules = STAGES[Stage(row["stage"])]
        by_firestore = row["authority"] == StoreName.FIRESTORE.value
        if self._lease is None:
            return
        if by_firestore and not self._lease.covers(self._control.snapshot):
            await self._lease.renew()
        elif not self._lease.valid:
            return
        document = self._lease.document
        if document.epoch > row["epoch"]:
            if document.open:
                await self._follow_document(row, document)
            elif by_firestore:
                log.error(
                    "PostgreSQL's control row is older than Firestore's control document, which "
                    "says that PostgreSQL is in charge: was a backup restored? Nothing is served",
                    row=row["epoch"],
                    document=document.epoch,
                )
        elif by_firestore and (
            not document.update_time
            or document.epoch < row["epoch"]
            or not document.open
            or document.mirrored != rules.mirrored
        ):
            await self._write_document(
                lambda found: replace(
                    found, epoch=row["epoch"], open=True, mirrored=rules.mirrored
                ),
                row["epoch"],
            )
            log.info("Firestore's control document was written anew", epoch=row["epoch"])

    async def _follow_document(self, row: Mapping[str, Any], document: ControlDocument) -> None:
        """Firestore went on without PostgreSQL: nothing that PostgreSQL holds is vouched for."""
        stage = Stage.DUAL_WRITE if document.mirrored else Stage.OFF
        async with self._control.transaction() as connection:
            changed = await connection.execute(
                """update crossfade.control set stage = $3, authority = 'firestore', epoch = $4,
                    generation = generation + 1, updated_at = now()
                where grp = $1 and epoch = $2 and barrier is null""",
                GROUP,
                row["epoch"],
                stage.value,
                document.epoch,
            )
            if changed == "UPDATE 1":
                await connection.execute(DOUBT_EVERYTHING)
                if row["authority"] == StoreName.POSTGRESQL.value:
                    # A recopy would put Firestore's documents over them without a word.
                    await connection.execute(_LOST)
        log.error(
            "PostgreSQL's control row was older than Firestore's control document, and follows "
            "it now; everything has to be copied again",
            epoch=document.epoch,
            stage=stage.value,
        )
        await self._control.refresh()

    # --- helpers ------------------------------------------------------------------------------

    async def _counts(self) -> Mapping[str, int]:
        counts: Mapping[str, int] = await self._control.needs_rows().fetchrow(
            _PENDING, timeout=self._timeout
        )
        return counts

    async def _late(self) -> bool:
        row = await self._control.row()
        return row is not None and bool(row["late"])


class _TooLate(Exception):
    """A barrier that could not be drained, and the reason for the caller."""

    def __init__(self, change: Change, reason: CrossfadeError) -> None:
        super().__init__(str(reason))
        self.change = change
        self.reason = reason


def _can_be_given_up(change: Change) -> bool:
    """Until the other authority is opened."""
    return change.kind in BARRIERS and change.step not in {"publish", "settle"}


def _dead_letters(count: int) -> FailedPrecondition:
    return FailedPrecondition(
        f"{count} documents are dead letters: they could not be copied and have to be looked at "
        f"first (crossfade dead-letters); the former stage stands"
    )
