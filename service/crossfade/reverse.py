"""The way back: documents of PostgreSQL, the authority, into Firestore, by a claim.

Read, write down what is about to be sent, send it under the precondition of what
Firestore is known to hold, remember what it answered. A former commit whose outcome
nobody remembers is revoked first, or found and adopted. A document that Firestore holds
and nobody here wrote is never overwritten: it becomes a dead letter.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from crossfade.document import Database, Fields, Value, collection_id
from crossfade.errors import (
    Aborted,
    AlreadyExists,
    CrossfadeError,
    FailedPrecondition,
    InfrastructureError,
    NotFound,
)
from crossfade.failpoints import reach
from crossfade.pending import Pending, new_intent
from crossfade.snapshot import Snapshot
from crossfade.store import CommitOutcome, Intent, Stored
from crossfade.stores.firestore import EXPIRY, INTENTS, FirestoreStore, IntentExists
from crossfade.stores.postgres.way_back import Peer, Prepared, Request, fingerprint
from crossfade.telemetry import MIRROR_PUTS, REVOKED, Telemetry
from crossfade.wire import parse_document
from crossfade.write import Write

log = structlog.get_logger(__name__)

CONCURRENT_REVOKES = 16
PREPARATIONS = 3
"""How often former attempts may turn up while a claim prepares its own."""
FOREIGN = "foreign document in Firestore"


class Reverse:
    """Puts what a claim holds into Firestore. Raises the stores' errors: the rows stand then,
    and so does what was written down about a commit that was not answered."""

    def __init__(
        self,
        pending: Pending,
        firestore: FirestoreStore,
        telemetry: Telemetry,
        database: Database,
        *,
        timeout: float,
        request_window: float,
    ) -> None:
        self._pending = pending
        self._way_back = pending.mirror.way_back
        self._firestore = firestore
        self._telemetry = telemetry
        self._database = database
        self._timeout = timeout
        self._request_window = request_window

    async def put(self, claim: str, paths: Sequence[str], snapshot: Snapshot) -> None:
        """All paths in one Firestore commit. A refused precondition is looked into where
        there is one path; of several, the caller goes on one by one."""
        try:
            await self._put(claim, paths, snapshot, look=False)
        except (FailedPrecondition, AlreadyExists, NotFound):
            if len(paths) > 1:
                raise
            await self._put(claim, paths, snapshot, look=True)

    async def _put(
        self, claim: str, paths: Sequence[str], snapshot: Snapshot, *, look: bool
    ) -> None:
        intent = new_intent()
        prepared = await self._prepare(claim, paths, intent, snapshot)
        reach("reverse.attempted")
        peers = await self._looked(claim, prepared, look=look)
        if not peers:
            await self._way_back.forget(intent, timeout=self._timeout)
            return
        times = await self._commit(intent, peers, prepared.requests, snapshot)
        reach("reverse.committed")
        settled = [(peer, times.get(peer.path, peer.peer_time or 0)) for peer in peers]
        done = await self._way_back.settle(
            claim,
            settled,
            intents=[intent, *prepared.earlier],
            epoch=snapshot.epoch,
            timeout=self._timeout,
        )
        reach("reverse.settled")
        self._pending.announce(done)

    async def _prepare(
        self, claim: str, paths: Sequence[str], intent: str, snapshot: Snapshot
    ) -> Prepared:
        """The claim's own attempt is written down once no former one can still be applied."""
        resolved: set[str] = set()
        for _ in range(PREPARATIONS):
            prepared = await self._way_back.prepare(
                claim,
                paths,
                intent=intent,
                epoch=snapshot.epoch,
                resolved=resolved,
                timeout=self._timeout,
            )
            if prepared.recorded:
                return prepared
            await self._revoke(prepared.earlier - resolved)
            reach("recopy.revoked")
            resolved |= prepared.earlier
        raise Aborted("another worker puts the same documents")

    async def _revoke(self, intents: Collection[str]) -> None:
        """What was not applied never will be. What was, the look finds in Firestore."""
        gate = asyncio.Semaphore(CONCURRENT_REVOKES)

        async def revoke(intent: str) -> None:
            async with gate:
                with self._pending.asking():
                    revoked = await self._firestore.revoke(intent, timeout=self._timeout)
                if revoked:
                    self._telemetry.count(REVOKED)

        await asyncio.gather(*map(revoke, sorted(intents)))

    async def _looked(self, claim: str, prepared: Prepared, *, look: bool) -> list[Peer]:
        """The peers as Firestore really holds them, where that is in doubt; without those
        for which it holds what nobody here wrote."""
        doubtful = [
            peer
            for peer in prepared.peers
            if look or peer.path in prepared.attempted or peer.overwrites is not None
        ]
        if not doubtful:
            return list(prepared.peers)
        with self._pending.asking():
            reading = await self._firestore.get(
                [peer.path for peer in doubtful], timeout=self._timeout, exact_times=True
            )
        known: dict[str, Peer | None] = {}
        for peer, found in zip(doubtful, reading.documents, strict=True):
            actual = _held(found)
            attempted = prepared.attempted.get(peer.path, set())
            ours = {fingerprint(peer.fields), *attempted}
            if actual == (peer.peer_time or 0) or self._fingerprint(found) in ours:
                known[peer.path] = replace(peer, peer_time=actual)
            elif actual == peer.overwrites:
                log.warning("a foreign document is overwritten, as was asked for", path=peer.path)
                known[peer.path] = replace(peer, peer_time=actual)
            else:
                known[peer.path] = None
                await self._bury(claim, peer.path, actual)
        peers = [known.get(peer.path, peer) for peer in prepared.peers]
        return [peer for peer in peers if peer is not None]

    async def _bury(self, claim: str, path: str, actual: int) -> None:
        buried = await self._way_back.bury(
            claim, path, failure=FOREIGN, foreign_time=actual, timeout=self._timeout
        )
        if buried:
            log.error("a writer goes around the sidecar", path=path)
            self._telemetry.count(MIRROR_PUTS, "foreign")

    async def _commit(
        self,
        intent: str,
        peers: Sequence[Peer],
        requests: Sequence[Request],
        snapshot: Snapshot,
    ) -> dict[str, int]:
        """Sends what makes Firestore hold the rows; the update_times by path. The results of
        requests go with them: after a change of authority a repeated one is known there."""
        writes = [write for peer in peers if (write := _write(peer)) is not None]
        proofs = [self._proof(request) for request in requests]
        if not writes and not proofs:
            return {}
        started, failure = time.perf_counter(), None
        try:
            with self._pending.asking():
                outcome = await self._firestore.commit(
                    [*writes, *proofs],
                    timeout=self._timeout,
                    intent=Intent(intent, snapshot.epoch, mirrored=True),
                )
        except IntentExists as error:
            # Whoever took the rows over has revoked it, or it arrived twice: he will find out.
            failure = error.code
            raise Aborted("the claim was taken over") from error
        except CrossfadeError as error:
            failure = error.code
            if not isinstance(error, InfrastructureError):
                await self._way_back.forget(intent, timeout=self._timeout)
            raise
        finally:
            seconds = time.perf_counter() - started
            collection = collection_id(peers[0].path)
            self._telemetry.record_store(collection, "put", "firestore", "mirror", seconds, failure)
        return _times(writes, outcome)

    def _proof(self, request: Request) -> Write:
        """The intent document of a request that PostgreSQL has done. Without a precondition:
        several claims may bring it, and one that was revoked before is done all the same."""
        times: list[Value] = list(request.update_times)
        fields: Fields = {
            "epoch": 0,
            "paths": [],
            "outbox": False,
            "state": "applied",
            "commit_time": request.commit_time,
            "update_times": times,
            EXPIRY: datetime.now(UTC) + timedelta(seconds=self._request_window),
        }
        return Write(f"{INTENTS}/{request.intent}", fields)

    def _fingerprint(self, found: Stored) -> str | None:
        if found.data is None:
            return None
        return fingerprint(parse_document(found.data, self._database).fields)


def _write(peer: Peer) -> Write | None:
    """The write that makes Firestore hold the row, under what it is known to hold now.
    A path that no put and no copy ever met is one that Firestore did not hold."""
    update_time = peer.peer_time or None
    if peer.fields is not None:
        exists = None if update_time else False
        return Write(peer.path, peer.fields, exists=exists, update_time=update_time)
    return None if update_time is None else Write(peer.path, None, update_time=update_time)


def _times(writes: Sequence[Write], outcome: CommitOutcome) -> dict[str, int]:
    results = zip(writes, outcome.writes[: len(writes)], strict=True)
    return {write.path: result.update_time or 0 for write, result in results}


def _held(found: Stored) -> int:
    """The update_time that Firestore has at the path, 0 for no document."""
    return 0 if found.data is None or found.version is None else found.version[1]
