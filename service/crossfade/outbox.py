"""The outbox: commits while PostgreSQL cannot take their pending rows.

The mirror's outage is not the application's [law]. The commit's intent document then stands
for its pending rows, in the same Firestore commit. Other sidecars may still reach
PostgreSQL and would answer reads from it, not knowing of such a commit: so the gate in the
control document is closed first, and every lease that began with an open gate runs out,
once for each closing. When PostgreSQL is back the entries become pending rows, and the gate
opens again.

A mirror that is only slow (pace.py) is gone around, too, but nobody waits for the gate then:
commits go on with their rows while it is being closed. The entries are drained meanwhile.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from crossfade.control import Control
from crossfade.errors import (
    Aborted,
    CrossfadeError,
    EpochChanged,
    InfrastructureError,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from crossfade.failpoints import reach
from crossfade.lease import Lease
from crossfade.pace import Pace
from crossfade.pending import Pending
from crossfade.plan import StoreName
from crossfade.snapshot import Snapshot
from crossfade.store import CommitOutcome, Intent
from crossfade.stores.fences import ControlDocument, Entry, Fences
from crossfade.stores.firestore import FirestoreStore
from crossfade.telemetry import OUTBOX, Telemetry
from crossfade.write import Write

log = structlog.get_logger(__name__)

TRIES = 5
BACK_SECONDS = 0.5
"""How often it is looked whether PostgreSQL takes pending rows again."""
DRAINED_AT_ONCE = 8
"""Entries whose rows are made side by side: a mirror that is slow drains as fast as it fills."""
QUIET_LEASES = 2
"""So many leases long nobody may have used the outbox before the gate opens again. Another
sidecar may be cut off that this one knows nothing of: having closed the gate it waits for one
lease, and a gate that opened before that would keep it from writing for ever."""
TIMEOUT = 5.0


MOST_SPARES = 16
SPARE_SECONDS = 1.0
"""A spare transaction holds the control document against whoever wants to change it."""


class NotSent(Unavailable):
    """The commit was not even sent: it is known not to have been applied."""


class _Spares:
    """Transactions that have read the control document, begun ahead: with one at hand, an outbox
    commit takes one round trip, as any other. What one has read is checked by its commit, so its
    age does no harm. Each that is taken is followed by another, while commits come."""

    def __init__(self, fences: Fences) -> None:
        self._fences = fences
        self._ready: deque[tuple[bytes, ControlDocument, float]] = deque()
        self._coming: set[asyncio.Task[None]] = set()

    async def take(self, timeout: float) -> tuple[bytes, ControlDocument]:
        """Raises the errors of `Fences.begin`."""
        if len(self._ready) + len(self._coming) < MOST_SPARES:
            task = asyncio.create_task(self._add())
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)
        while self._ready:
            transaction, found, begun = self._ready.pop()
            if time.monotonic() - begun < SPARE_SECONDS:
                return transaction, found
            await self._fences.give_up(transaction, timeout=TIMEOUT)
        return await self._fences.begin(timeout=timeout)

    async def _add(self) -> None:
        begun = time.monotonic()
        with suppress(CrossfadeError):
            self._ready.append((*await self._fences.begin(timeout=TIMEOUT), begun))

    async def give_up(self, older_than: float = 0.0) -> None:
        """Lets those go that nobody took."""
        before = time.monotonic() - older_than
        while self._ready and self._ready[0][2] <= before:
            await self._fences.give_up(self._ready.popleft()[0], timeout=TIMEOUT)


class Outbox:
    """The way around PostgreSQL, and the way back. One per sidecar and group."""

    def __init__(
        self,
        control: Control,
        lease: Lease,
        firestore: FirestoreStore,
        pending: Pending,
        telemetry: Telemetry,
        patience: float,
        pace: Pace | None = None,
    ) -> None:
        self._control = control
        self.group = control.group.name
        self._lease = lease
        self.fences = lease.fences
        self._firestore = firestore
        self._pending = pending
        self._telemetry = telemetry
        self.patience = patience
        """Seconds that PostgreSQL has to take the pending rows of a commit, before it counts as
        away."""
        self.pace = pace
        """Says when it is slow; None: its slowness is waited for, up to the patience."""
        self._wanted = False
        """A commit would have gone around a slow mirror, had the gate been closed."""
        self._spares = _Spares(lease.fences)
        self._closing = asyncio.Lock()
        self._waited = -1
        """The closing of the gate whose leases this sidecar has seen run out."""
        self._used = (-1, 0.0)
        """The gate's generation, and when it was first seen or an entry last found (monotonic)."""
        self.mirror_is_out = False
        """PostgreSQL did not take pending rows lately: commits do not ask it first."""

    # --- sending ------------------------------------------------------------------------------

    def goes_around(self, snapshot: Snapshot) -> bool:
        """Whether commits do without rows: PostgreSQL is away, or slow and the gate closed for
        long enough."""
        if self.mirror_is_out:
            return True
        if self.pace is None or not self.pace.slow:
            return False
        closed = self._is_closed(snapshot)
        self._wanted = not closed
        return closed

    def opened(self, seconds: float) -> None:
        """PostgreSQL took a commit's rows; how long that took."""
        if self.pace is not None and not self.pace.slow:
            self.pace.opened(seconds, time.monotonic())
            if self.pace.slow:
                self._telemetry.count(OUTBOX, "slow")
                self._tell_pace("PostgreSQL is slow: commits go around it")

    def committed(self, seconds: float) -> None:
        """Firestore answered a commit; how long that took."""
        if self.pace is not None:
            self.pace.committed(seconds)

    def _tell_pace(self, what: str) -> None:
        assert self.pace is not None  # noqa: S101 - the callers have asked it
        usual, lately = round(self.pace.usual, 4), round(self.pace.lately, 4)
        log.warning(what, usual_seconds=usual, seconds=lately)

    async def commit(
        self,
        writes: Sequence[Write],
        intent: Intent,
        entries: "Sequence[Entries]",
        left: Callable[[], float],
        own: bytes | None = None,
    ) -> CommitOutcome:
        """The commit with its entries (the first is this outbox's), in a transaction that has
        seen all their gates closed: the caller's `own`, if it has one, whose commit is not
        tried twice.

        Raises NotSent or EpochChanged when nothing was sent, else as the Firestore store's
        commit does.
        """
        for _ in range(TRIES):
            gates = [await each.outbox.closed_gate(each.snapshot, left) for each in entries]
            try:
                if own is None:
                    transaction, found = await self._spares.take(left())
                else:
                    transaction, found = own, await self.fences.read_in(own, timeout=left())
                others = [
                    await each.outbox.fences.read_in(transaction, timeout=left())
                    for each in entries[1:]
                ]
            except (Aborted, InvalidArgument):
                raise
            except CrossfadeError as error:
                raise NotSent(f"Firestore began no transaction: {error}") from error
            checked = list(zip(entries, gates, [found, *others], strict=True))
            if not all(each.holds(gate, document) for each, gate, document in checked):
                if own is not None:
                    raise Aborted("the transaction began before PostgreSQL's outage was seen")
                await self.fences.give_up(transaction, timeout=TIMEOUT)
                await self._spares.give_up()
                for each, _, document in checked:
                    each.outbox.learn_of(document)
                continue
            try:
                outcome = await self._firestore.commit(
                    writes,
                    timeout=left(),
                    intent=replace(intent, outbox={each.name: each.paths for each in entries}),
                    transaction=transaction,
                )
            except Aborted:
                if own is not None:
                    raise
                await self._spares.give_up()
                continue  # the control document, or a document of the commit, was in use
            reach("outbox.committed")
            self._telemetry.count(OUTBOX, "written")
            return outcome
        raise Aborted("the commit met others again and again; it was not applied")

    def learn_of(self, document: ControlDocument) -> None:
        """It was so some time ago: that begins no lease."""
        self._lease.learn(document, time.monotonic() - self._lease.seconds)

    async def closed_gate(self, snapshot: Snapshot, left: Callable[[], float]) -> int:
        """The generation of the closed gate, once no lease with an open one runs anywhere."""
        if self._is_closed(snapshot):
            return self._waited
        try:
            async with asyncio.timeout(left()), self._closing:
                began = time.monotonic()
                document = await self._lease.renew(left())
                if document.gate_open and document.open and document.epoch == snapshot.epoch:
                    document = await self._close(document)
                if document.gate != self._waited and not document.gate_open:
                    trip = time.monotonic() - began
                    await asyncio.sleep(self._lease.over_after + trip)
                    self._waited = document.gate
        except (CrossfadeError, TimeoutError) as error:
            raise NotSent(
                "PostgreSQL takes no pending rows, and the gate for going on without it could "
                "not be closed before the deadline; the commit was not sent"
            ) from error
        if not document.open or document.epoch != snapshot.epoch:
            raise EpochChanged("Firestore's control document is of another epoch")
        return document.gate

    async def _close_unhurried(self, snapshot: Snapshot) -> None:
        """Closes the gate while commits go on with their rows."""
        self._wanted = False
        ends = time.monotonic() + TIMEOUT + self._lease.over_after
        await self.closed_gate(snapshot, lambda: max(0.0, ends - time.monotonic()))

    def _is_closed(self, snapshot: Snapshot) -> bool:
        """Whether it is known to be closed, for so long that no lease with an open one runs."""
        return self._lease.covers(snapshot) and self._lease.document.gate == self._waited

    async def _close(self, document: ControlDocument) -> ControlDocument:
        began = time.monotonic()
        try:
            closed = await self.fences.change(
                document, replace(document, gate=document.gate + 1), timeout=TIMEOUT
            )
        except Aborted:
            return await self._lease.renew()  # another was faster
        self._lease.learn(closed, began)
        reach("outbox.closed")
        log.warning("PostgreSQL takes no pending rows: commits go to the outbox", gate=closed.gate)
        return closed

    async def close(self) -> None:
        """Lets the spare transactions go, which hold the control document."""
        await self._spares.give_up()

    # --- draining -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs for ever: as long as the gate is closed, entries become pending rows."""
        while True:
            await asyncio.sleep(BACK_SECONDS)
            await self._spares.give_up(older_than=SPARE_SECONDS)
            snapshot = self._control.snapshot
            forward = snapshot.authority is StoreName.FIRESTORE and snapshot.rules.mirrored
            slow = self.pace is not None and self.pace.slow
            if not forward or (
                self._lease.document.gate_open and not self.mirror_is_out and not slow
            ):
                continue
            try:
                if slow and self._wanted:
                    await self._close_unhurried(snapshot)
                while await self.drain(snapshot):  # noqa: ASYNC110 - a turn for others
                    await asyncio.sleep(0)
            except InfrastructureError as error:
                log.info("draining the outbox waits for a store", error=error.code)
            except EpochChanged:
                continue
            except CrossfadeError as error:
                log.warning("the outbox cannot be drained", reason=str(error))

    async def drain(self, snapshot: Snapshot) -> bool:
        """Entries become pending rows, then they are cleared; with none left the gate opens.
        False: there is nothing more to do now. Any number of sidecars may do it at once:
        a row that is made again is only recopied again."""
        began = time.monotonic()
        takes = await self._pending.mirror.takes_rows(snapshot.epoch, timeout=TIMEOUT)
        seconds = time.monotonic() - began
        if not takes:
            return False
        if seconds <= self.patience / 2:  # slower, it would count as away again at once
            self.mirror_is_out = False
        entries = await self.fences.entries(timeout=TIMEOUT)
        self._probed(max(seconds, await self._queue(entries, snapshot)))
        reach("drain.inserted")
        if entries:
            try:
                await self.fences.clear(entries, timeout=TIMEOUT)
            except NotFound:
                log.info("entries of the outbox were cleared by another")
            reach("drain.cleared")
            self._quiet(used=True)
            self._telemetry.count(OUTBOX, "drained", by=len(entries))
            self._pending.woken.set()
            return True
        avoided = self.mirror_is_out or (self.pace is not None and self.pace.slow)
        if self._lease.document.gate_open or not self._quiet(used=avoided):
            return False
        began = time.monotonic()
        opened = await self.fences.reopen(timeout=TIMEOUT)
        if opened is None:
            return True
        reach("drain.opened")
        self._lease.learn(opened, began)
        log.info("the outbox is empty and the gate open", gate=opened.gate)
        return False

    async def _queue(self, entries: Sequence[Entry], snapshot: Snapshot) -> float:
        """Makes the pending rows of all, some side by side; the seconds that the quickest took,
        which waited for no other. 0: there were none."""
        took: list[float] = []

        async def queue(entry: Entry) -> None:
            began = time.monotonic()
            await self._pending.mirror.queue(
                entry.id.partition("~")[0],
                entry.paths,
                epoch=snapshot.epoch,
                reason="outbox",
                timeout=TIMEOUT,
            )
            took.append(time.monotonic() - began)

        for first in range(0, len(entries), DRAINED_AT_ONCE):
            await asyncio.gather(*map(queue, entries[first : first + DRAINED_AT_ONCE]))
        return min(took, default=0.0)

    def _probed(self, seconds: float) -> None:
        if self.pace is not None and self.pace.slow:
            self.pace.probed(seconds, time.monotonic())
            if not self.pace.slow:
                self._tell_pace("PostgreSQL is as quick as usual: commits wait for it again")

    def _quiet(self, *, used: bool) -> bool:
        """Whether the gate has been closed, and the outbox empty, for long enough."""
        now, gate = time.monotonic(), self._lease.document.gate
        if used or gate != self._used[0]:
            self._used = (gate, now)
        return now - self._used[1] > QUIET_LEASES * self._lease.over_after


@dataclass(frozen=True, slots=True)
class Entries:
    """What a commit leaves in the outbox of one of its groups: the paths that it writes there,
    under a snapshot of the group."""

    outbox: Outbox
    snapshot: Snapshot
    paths: Sequence[str]

    @property
    def name(self) -> str:
        return self.outbox.group

    def holds(self, gate: int, document: ControlDocument) -> bool:
        """Whether the control document is as it was when the leases had run out."""
        return document.gate == gate and document.open and document.epoch == self.snapshot.epoch
