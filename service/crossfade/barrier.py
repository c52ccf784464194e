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

from crossfade.control import Control
from crossfade.errors import (
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
from crossfade.reconcile import Reconciler
from crossfade.snapshot import Snapshot
from crossfade.stores.postgres.membership import OF_PATH, listed, of_group

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

_PENDING = f"""select count(*) filter (where position('/' in path) > 0) as paths,
    count(*) filter (where position('/' in path) = 0) as wildcards,
    count(*) filter (where dead) as dead
from crossfade.pending where {of_group("collection_id", 1)}"""
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
_TAKEN_BACK = f"""update crossfade.pending set claim = null,
    lease_until = case when reason = 'unfenced' and claim is null
        then lease_until else clock_timestamp() end
where position('/' in path) > 0 and {of_group("collection_id", 1)}"""
# What PostgreSQL wrote as the authority bears its times there and Firestore's own in
# Firestore, and a client's precondition has to name those of the authority.
_RESTAMP = f"""insert into crossfade.pending
    (intent, path, collection_path, collection_id, epoch, lease_until, reason)
select $1::text, path, parent, regexp_replace(parent, '^.*/', ''), $2::int8,
    clock_timestamp(), 'rollback'
from (select path, regexp_replace(path, '/[^/]*$', '') as parent from crossfade.versions
    where live and peer_time is distinct from time and {of_group(OF_PATH, 3)}) as foreign_times"""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of stage under way, as the control row holds it.

    `deadline` (PostgreSQL's clock, seconds since 1970): a barrier that is not drained by then
    is given up. `coordinator`: whose turn it is, while its lease runs. `first`: there was no
    control document before, so no sidecar has ever written to this Firestore. `epoch`: in which
    the coordinator took its turn, or which it began itself; in another it does nothing more.
    """

    id: str
    kind: str
    before: Stage
    target: Stage
    step: str
    coordinator: str = ""
    deadline: float = 0.0
    first: bool = False
    epoch: int = 0

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
        row["epoch"],
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
    """The one way to change the stage of a group. Every sidecar has one for each; the row says
    whose turn it is.

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
        self._group = control.group.name
        self._lease = lease
        self._sides = Reconciler(control, lease, timeout)
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
                await self._sides.force(target)
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
            self._group,
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
        change = Change(
            new_intent(),
            kind,
            before.stage,
            target,
            STEPS[kind][0],
            self._name,
            epoch=before.epoch,
        )
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
                self._group,
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
                await connection.execute(_TAKEN_BACK, *listed(self._control.group))
                await self._control.doubt_everything(connection)
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
            await self._sides.reconcile(row)
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
                self._group,
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
            current, snapshot = following, self._control.snapshot
            if snapshot.epoch != current.epoch:
                # It stood still for so long that others went on; the document, which knows no
                # change but only epochs, would be written for the epoch of today.
                raise EpochChanged("another sidecar goes on with the change of stage")
            try:
                following = await self._do[current.step](current, snapshot)
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
                    _HEARTBEAT, self._group, change.id, self._name, COORDINATOR_SECONDS
                )

    async def _advance(self, change: Change, snapshot: Snapshot, *, first: bool = False) -> Change:
        """The next step, if nobody else has gone on meanwhile."""
        step = change.next
        assert step is not None  # noqa: S101 - the last step of a kind does not call this
        after = replace(change, step=step, first=first or change.first)
        done = await self._control.change(
            _STEP,
            self._group,
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
        found = await self._sides.write_document(
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
            _SETTLE, self._group, snapshot.epoch, change.id, change.step, self._name, wait
        )
        if done != "UPDATE 1":
            raise EpochChanged("another sidecar goes on with the change of stage")

    async def _fence(self, change: Change, snapshot: Snapshot) -> Change:
        """From here on no lease begins, and no outbox commit is accepted."""
        await self._sides.write_document(
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
        after = replace(change, step="publish", epoch=snapshot.epoch + 1)

        async def restamp(connection: Any) -> None:
            if STAGES[change.target].mirrored:
                name = f"rollback-{self._group}-{snapshot.epoch}"
                members = listed(self._control.group)
                await connection.execute(_RESTAMP, name, snapshot.epoch + 1, *members)

        # It may take long, and the lock holds up the writers of all groups: so it comes first.
        # Nobody sees the rows before the epoch that they are of.
        async with self._control.transaction(OPEN_SECONDS, restamp) as connection:
            await self._moved(connection, change, snapshot, change.target, after)
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
            replace(change, kind="undo", step="publish", epoch=snapshot.epoch + 1)
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
            self._group,
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

    # --- helpers ------------------------------------------------------------------------------

    async def _counts(self) -> Mapping[str, int]:
        counts: Mapping[str, int] = await self._control.needs_rows().fetchrow(
            _PENDING, *listed(self._control.group), timeout=self._timeout
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
    what = "1 document is a dead letter" if count == 1 else f"{count} documents are dead letters"
    return FailedPrecondition(
        f"{what}: what could not be copied has to be looked at "
        f"first (crossfade dead-letters); the former stage stands"
    )
