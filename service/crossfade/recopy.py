"""The recopy worker: takes over pending rows nobody works on, and settles them.

Forward (Firestore is the authority): claim, revoke what is in doubt, *then* read
and put. Reverse (PostgreSQL is the authority): claim, and put as reverse.py says.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from crossfade.control import Control
from crossfade.document import Database
from crossfade.errors import (
    Aborted,
    CrossfadeError,
    EpochChanged,
    InfrastructureError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from crossfade.failpoints import reach
from crossfade.pending import COMMIT, Pending, new_intent
from crossfade.plan import StoreName
from crossfade.reverse import Reverse
from crossfade.snapshot import Snapshot
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.mirror import PendingRow
from crossfade.stores.postgres.way_back import Request
from crossfade.telemetry import PRUNED, RECOPIES, REVOKED, Telemetry

log = structlog.get_logger(__name__)

CONCURRENT_REVOKES = 16
TOMBSTONES = 500
"""How many are looked at in one transaction."""
OUTAGES = (InfrastructureError, EpochChanged, Unauthenticated, PermissionDenied)
"""What is no document's fault, but that of a store or of the moment."""


class Recopy:
    """One per sidecar; any number of them share the work by claims."""

    def __init__(
        self,
        control: Control,
        pending: Pending,
        firestore: FirestoreStore,
        telemetry: Telemetry,
        database: Database,
        *,
        interval: float = 0.2,
        batch: int = 100,
        lease: float = 10.0,
        attempts: int = 10,
        timeout: float = 5.0,
        request_window: float = 86_400.0,
        prune_interval: float = 60.0,
    ) -> None:
        self._control = control
        self._pending = pending
        self._mirror = pending.mirror
        self._firestore = firestore
        self._telemetry = telemetry
        self._interval = interval
        self._batch = batch
        self._lease = lease
        self._attempts = attempts
        self._timeout = timeout
        self._request_window = request_window
        self._prune_interval = prune_interval
        self._prune_at = 0.0
        self._pruned_to = ""
        self._working = asyncio.Lock()
        self._reverse = Reverse(
            pending,
            firestore,
            telemetry,
            database,
            timeout=timeout,
            request_window=request_window,
        )

    async def run(self) -> None:
        """Runs for ever: at once when woken, else every `interval` seconds."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._pending.woken.wait()
            self._pending.woken.clear()
            try:
                async with self._working:
                    while await self.step():  # noqa: ASYNC110 - a turn for others, no waiting
                        await asyncio.sleep(0)
                    await self._prune()
            except InfrastructureError as error:
                log.warning("recopying waits for a store", error=error.code)
                await asyncio.sleep(1.0)
            except EpochChanged:
                with suppress(CrossfadeError):
                    await self._control.refresh()

    async def drain(self, timeout: float) -> None:
        """Waits for the batches under way. A claim that is broken off stands to the end of its
        lease, and holds up the next change of authority as long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._working:
                pass

    async def step(self) -> int:
        """Settles one batch; the number of rows claimed."""
        snapshot = self._control.snapshot
        if not snapshot.rules.mirrored or self._control.outdated:
            return 0
        claim = new_intent()
        rows = await self._mirror.claim(
            claim, limit=self._batch, lease=self._lease, timeout=self._timeout
        )
        if not rows:
            return 0
        claimed = time.monotonic()
        reach("recopy.claimed" if self._forwards(snapshot) else "reverse.claimed")
        try:
            await self._settle(claim, rows, snapshot)
        except OUTAGES as error:
            await self._give_back(claim, None, error)
            raise
        except Exception as error:  # noqa: BLE001 - it is met again, path by path
            log.info("a batch is settled one by one", error=type(error).__name__)
            await self._one_by_one(claim, rows, snapshot)
        self._telemetry.count(RECOPIES, "settled", by=len(rows))
        for row in rows:
            self._telemetry.record_lag("recopy", row.age + time.monotonic() - claimed)
        return len(rows)

    async def _settle(self, claim: str, rows: Sequence[PendingRow], snapshot: Snapshot) -> None:
        if self._forwards(snapshot):
            await self._forward(claim, rows, snapshot)
        else:
            await self._reverse.put(claim, sorted({row.path for row in rows}), snapshot)

    def _forwards(self, snapshot: Snapshot) -> bool:
        return snapshot.authority is StoreName.FIRESTORE

    async def _one_by_one(self, claim: str, rows: Sequence[PendingRow], snapshot: Snapshot) -> None:
        """After a batch was refused: what one document cannot pass is not the others' fault."""
        for path in sorted({row.path for row in rows}):
            mine = [row for row in rows if row.path == path]
            try:
                await self._settle(claim, mine, snapshot)
            except OUTAGES as error:
                await self._give_back(claim, None, error)
                raise
            except Exception as error:  # noqa: BLE001 - a defect, too, stops at its document
                log.warning("a document cannot be copied", path=path, error=type(error).__name__)
                await self._give_back(claim, path, error)

    async def _give_back(self, claim: str, path: str | None, error: Exception) -> None:
        """Only what may never succeed counts towards a dead letter."""
        passing = isinstance(error, (*OUTAGES, Aborted, ResourceExhausted))
        await self._mirror.release(
            claim,
            path,
            failure=error.code if isinstance(error, CrossfadeError) else type(error).__name__,
            attempts=None if passing else self._attempts,
            timeout=self._timeout,
        )

    async def _prune(self) -> None:
        """What nobody needs any more, now and then. Tombstones a few at a time: the next turn
        goes on where this one stopped, so that pending rows do not wait for all of them."""
        if time.monotonic() < self._prune_at:
            return
        if not self._pruned_to:
            await self._mirror.pruning.requests(self._request_window, timeout=self._timeout)
            await self._mirror.pruning.attempts(self._request_window, timeout=self._timeout)
        gone, after = await self._mirror.pruning.tombstones(
            self._pruned_to, limit=TOMBSTONES, timeout=self._timeout
        )
        self._telemetry.count(PRUNED, by=gone)
        self._pruned_to = after or ""
        if after is None:
            self._prune_at = time.monotonic() + self._prune_interval

    # --- forward ----------------------------------------------------------------------------

    async def _forward(self, claim: str, rows: Sequence[PendingRow], snapshot: Snapshot) -> None:
        """An expired lease is not a finished commit: the intents are revoked before the
        read, so that none of them can be applied after it."""
        in_doubt = sorted({row.intent for row in rows if row.reason == COMMIT})
        gate = asyncio.Semaphore(CONCURRENT_REVOKES)
        done: list[Request] = []

        async def revoke(intent: str) -> None:
            async with gate:
                if await self._firestore.revoke(intent, timeout=self._timeout):
                    self._telemetry.count(REVOKED)
                    return
                # Perhaps a request_id names it: then PostgreSQL has to know that it was done.
                outcome = await self._firestore.intent_outcome(intent, 0, timeout=self._timeout)
                if outcome is not None:
                    done.append(Request(intent, outcome.commit_time, ()))

        await asyncio.gather(*map(revoke, in_doubt))
        reach("recopy.revoked")
        paths = sorted({row.path for row in rows})
        await self._pending.recopy(paths, snapshot.epoch, claim=claim, requests=done)
