"""The recopy worker: takes over pending rows nobody works on, and settles them.

Forward (Firestore is the authority): claim, revoke what is in doubt, *then* read
and put. Reverse (PostgreSQL is the authority): claim, read the rows, commit them to
Firestore under the precondition of what Firestore is known to hold, remember what
it answered. A document that Firestore holds and nobody here wrote is never
overwritten: it becomes a dead letter.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from crossfade.control import Control
from crossfade.document import Database, Document, collection_id, identical
from crossfade.errors import (
    Aborted,
    AlreadyExists,
    CrossfadeError,
    EpochChanged,
    FailedPrecondition,
    InfrastructureError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from crossfade.pending import Pending, new_intent
from crossfade.plan import StoreName
from crossfade.snapshot import Snapshot
from crossfade.store import Intent, Stored
from crossfade.stores.firestore import FirestoreStore, IntentExists
from crossfade.stores.postgres.mirror import Peer, PendingRow, Request
from crossfade.telemetry import MIRROR_PUTS, RECOPIES, REVOKED, Telemetry
from crossfade.wire import parse_document
from crossfade.write import Write

log = structlog.get_logger(__name__)

CONCURRENT_REVOKES = 16
PRUNE_SECONDS = 60.0
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
    ) -> None:
        self._control = control
        self._pending = pending
        self._mirror = pending.mirror
        self._firestore = firestore
        self._telemetry = telemetry
        self._database = database
        self._interval = interval
        self._batch = batch
        self._lease = lease
        self._attempts = attempts
        self._timeout = timeout
        self._request_window = request_window
        self._pruned = 0.0
        self._working = asyncio.Lock()
        self._sent: dict[str, Sequence[Peer]] = {}
        """Commits to Firestore whose outcome is not remembered yet, by intent."""

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
        if not snapshot.rules.mirrored:
            return 0
        claim = new_intent()
        rows = await self._mirror.claim(
            claim, limit=self._batch, lease=self._lease, timeout=self._timeout
        )
        if not rows:
            return 0
        try:
            await self._settle(claim, claim, rows, snapshot)
        except OUTAGES as error:
            await self._give_back(claim, None, error)
            raise
        except Exception as error:  # noqa: BLE001 - it is met again, path by path
            log.info("a batch is settled one by one", error=type(error).__name__)
            await self._one_by_one(claim, rows, snapshot)
        self._telemetry.count(RECOPIES, "settled", by=len(rows))
        return len(rows)

    async def _settle(
        self, claim: str, intent: str, rows: Sequence[PendingRow], snapshot: Snapshot
    ) -> None:
        if snapshot.authority is StoreName.FIRESTORE:
            await self._forward(claim, rows, snapshot)
        else:
            await self._reverse(claim, intent, rows, snapshot)

    async def _one_by_one(self, claim: str, rows: Sequence[PendingRow], snapshot: Snapshot) -> None:
        """After a batch was refused: what one document cannot pass is not the others' fault."""
        for number, path in enumerate(sorted({row.path for row in rows})):
            mine = [row for row in rows if row.path == path]
            try:
                await self._settle(claim, f"{claim}-{number}", mine, snapshot)
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
        """Request rows that no repeated request asks for any more."""
        if time.monotonic() - self._pruned > PRUNE_SECONDS:
            self._pruned = time.monotonic()
            await self._mirror.prune_requests(self._request_window, timeout=self._timeout)

    # --- forward ----------------------------------------------------------------------------

    async def _forward(self, claim: str, rows: Sequence[PendingRow], snapshot: Snapshot) -> None:
        """An expired lease is not a finished commit: the intents are revoked before the
        read, so that none of them can be applied after it."""
        in_doubt = sorted({row.intent for row in rows if row.reason == "commit"})
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
        paths = sorted({row.path for row in rows})
        await self._pending.recopy(paths, snapshot.epoch, claim=claim, requests=done)

    # --- reverse ----------------------------------------------------------------------------

    async def _reverse(
        self, claim: str, intent: str, rows: Sequence[PendingRow], snapshot: Snapshot
    ) -> None:
        """All paths in one Firestore commit. A refused precondition is looked into where
        there is one path; of several, the caller goes on one by one."""
        paths = sorted({row.path for row in rows})
        await self._recall(snapshot)
        peers = await self._mirror.peers(paths, timeout=self._timeout)
        try:
            await self._put_reverse(claim, intent, peers, snapshot)
        except (FailedPrecondition, AlreadyExists, NotFound):
            if len(peers) > 1:
                raise
            await self._reverse_one(claim, f"{intent}-again", peers[0], snapshot)

    async def _put_reverse(
        self, claim: str, intent: str, peers: Sequence[Peer], snapshot: Snapshot
    ) -> None:
        """Commits the rows to Firestore and remembers what it answered for each."""
        writes = [write for peer in peers if (write := self._write(peer)) is not None]
        times: dict[str, int] = {}
        if writes:
            self._sent[intent] = peers
            started, failure = time.perf_counter(), None
            try:
                outcome = await self._firestore.commit(
                    writes,
                    timeout=self._timeout,
                    intent=Intent(intent, snapshot.epoch, mirrored=True),
                )
            except CrossfadeError as error:
                failure = error.code
                if not isinstance(error, InfrastructureError | IntentExists):
                    del self._sent[intent]
                raise
            finally:
                seconds = time.perf_counter() - started
                collection = collection_id(writes[0].path)
                self._telemetry.record_store(
                    collection, "put", "firestore", "mirror", seconds, failure
                )
            times = {
                write.path: result.update_time or 0
                for write, result in zip(writes, outcome.writes, strict=True)
            }
        settled = [(peer, times.get(peer.path, peer.peer_time or 0)) for peer in peers]
        await self._mirror.settle(claim, settled, epoch=snapshot.epoch, timeout=self._timeout)
        self._sent.pop(intent, None)

    async def _recall(self, snapshot: Snapshot) -> None:
        """Before anything is put: a commit whose outcome was not remembered is revoked, or
        what it did is remembered now. Else it could be applied later, over what is put next,
        or be taken for a foreign writer's."""
        for intent, peers in list(self._sent.items()):
            if not await self._firestore.revoke(intent, timeout=self._timeout):
                paths = [peer.path for peer in peers]
                reading = await self._firestore.get(paths, timeout=self._timeout, exact_times=True)
                settled = [
                    (peer, _held(found))
                    for peer, found in zip(peers, reading.documents, strict=True)
                    if self._ours(peer, found)
                ]
                await self._mirror.settle("", settled, epoch=snapshot.epoch, timeout=self._timeout)
            del self._sent[intent]

    def _write(self, peer: Peer) -> Write | None:
        """The write that makes Firestore hold the row, under what it is known to hold now.
        A path that no put and no copy ever met is one that Firestore did not hold."""
        exists = None if peer.peer_time else False
        update_time = peer.peer_time or None
        if peer.data is not None:
            fields = parse_document(peer.data, self._database).fields
            return Write(peer.path, fields, exists=exists, update_time=update_time)
        if not peer.peer_time:
            return None
        return Write(peer.path, None, update_time=update_time)

    async def _reverse_one(self, claim: str, intent: str, peer: Peer, snapshot: Snapshot) -> None:
        """A refused precondition: Firestore holds something else than was remembered.
        Our own content (a crash before it was remembered) is adopted; a foreign one stays."""
        reading = await self._firestore.get([peer.path], timeout=self._timeout, exact_times=True)
        found = reading.documents[0]
        actual = _held(found)
        if actual != (peer.peer_time or 0) and not self._ours(peer, found):
            log.error("a writer goes around the sidecar", path=peer.path)
            await self._mirror.bury(
                claim, peer.path, failure="foreign document in Firestore", timeout=self._timeout
            )
            self._telemetry.count(MIRROR_PUTS, "foreign")
            return
        adopted = Peer(peer.path, peer.data, peer.version, actual)
        await self._put_reverse(claim, intent, [adopted], snapshot)

    def _ours(self, peer: Peer, found: Stored) -> bool:
        if found.data is None or peer.data is None:
            return found.data is None
        theirs, ours = self._parsed(found.data), self._parsed(peer.data)
        return identical(theirs.fields, ours.fields)

    def _parsed(self, data: bytes) -> Document:
        return parse_document(data, self._database)


def _held(found: Stored) -> int:
    """The update_time that Firestore has at the path, 0 for no document."""
    return 0 if found.data is None or found.version is None else found.version[1]
