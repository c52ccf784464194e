"""Commits while Firestore is the authority: the steps of docs/protocol.md, in order.

Pending rows first, then the commit with its intent document, then the answer, then
the put into PostgreSQL. From the commit on nothing is cancelled: a caller that goes
away, or a put that fails, changes nothing about the mirror's catching up.
"""

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import structlog

from crossfade.call import Call
from crossfade.control import Control
from crossfade.document import collection_id
from crossfade.errors import (
    Aborted,
    CrossfadeError,
    EpochChanged,
    InfrastructureError,
    OutcomeUnknown,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from crossfade.failpoints import reach
from crossfade.outbox import Entries, NotSent, Outbox
from crossfade.pending import ATTEMPTS, Pending, intent_of, new_intent
from crossfade.snapshot import Snapshot
from crossfade.store import CommitOutcome, Intent, Seen
from crossfade.stores.firestore import FirestoreStore, IntentExists
from crossfade.stores.postgres.commit import replayed
from crossfade.stores.postgres.way_back import Request
from crossfade.telemetry import MIRROR_PUTS, Telemetry
from crossfade.write import Folded, Write, fold

log = structlog.get_logger(__name__)

T = TypeVar("T")
MirrorMode = Literal["async", "wait", "required"]
Fence = Literal["document", "horizon"]
Answer = asyncio.Future[CommitOutcome | None]
PROOF_SECONDS = 5.0
"""How long Firestore is asked what became of a commit that it did not answer."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What a commit writes of one group: whose steps they are, and under which snapshot."""

    forward: "Forward"
    snapshot: Snapshot
    folded: Sequence[Folded]

    @property
    def mirrored(self) -> bool:
        return self.snapshot.rules.mirrored

    @property
    def paths(self) -> list[str]:
        return [entry.path for entry in self.folded]


class Forward:
    """Commits to Firestore, with PostgreSQL following where the stage mirrors. One per group.

    A commit of several groups (`beside`: the others, each under its snapshot) is one commit of
    Firestore with one intent; its rows and its puts are each group's own, under its epoch.
    """

    def __init__(
        self,
        control: Control,
        firestore: FirestoreStore,
        pending: Pending | None,
        outbox: Outbox | None,
        telemetry: Telemetry,
        mirror: MirrorMode,
        fence: Fence,
        horizon: float,
    ) -> None:
        self.control = control
        self._firestore = firestore
        self._pending = pending
        self.outbox = outbox
        self._telemetry = telemetry
        self._mirror = mirror
        self._fence = fence
        self._horizon = horizon
        self._detached: set[asyncio.Task[Any]] = set()

    async def commit(
        self,
        writes: Sequence[Write],
        snapshot: Snapshot,
        call: Call,
        request_id: str | None,
        seen: Seen | None = None,
        beside: "Sequence[tuple[Forward, Snapshot]]" = (),
    ) -> CommitOutcome:
        """All writes or none. Raises EpochChanged when the authority moved; nothing was done.
        In a transaction (`seen`): Aborted where it has to be begun anew."""
        parts = self._parts(writes, snapshot, beside)
        mirrored = any(part.mirrored for part in parts)
        for part in parts:
            if not part.mirrored and not part.forward.control.admitted(part.snapshot):
                raise EpochChanged("the stage lease does not cover a commit that nothing mirrors")
        if not mirrored and request_id is None:
            return await self._kept(self._plain(writes, snapshot, call, seen), parts)
        for attempt in range(0 if seen is None else seen.attempt, ATTEMPTS):
            intent = new_intent() if request_id is None else intent_of(request_id, attempt)
            if mirrored:
                outcome = await self._with_mirror(writes, intent, parts, call, request_id, seen)
            else:
                outcome = await self._kept(
                    self._with_proof(writes, intent, parts, call, seen=seen), parts
                )
            if outcome is not None:
                return outcome
            if seen is not None:
                break  # what is left of a transaction after a refusal is not known
        raise Aborted("the commit was revoked again and again; it was not applied")

    def _parts(
        self,
        writes: Sequence[Write],
        snapshot: Snapshot,
        beside: "Sequence[tuple[Forward, Snapshot]]",
    ) -> list[_Part]:
        folded = fold(writes)
        if not beside:
            return [_Part(self, snapshot, folded)]
        # One of the groups may only have been read.
        parts = [
            _Part(
                forward,
                under,
                [each for each in folded if forward.control.group.holds(collection_id(each.path))],
            )
            for forward, under in ((self, snapshot), *beside)
        ]
        return [part for part in parts if part.folded]

    async def _with_mirror(
        self,
        writes: Sequence[Write],
        intent: str,
        parts: Sequence[_Part],
        call: Call,
        request_id: str | None,
        seen: Seen | None,
    ) -> CommitOutcome | None:
        """None: the intent had been revoked; try another."""
        answer: Answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_retrieved)
        carry = self._carry(writes, parts, intent, call, answer, request_id, seen)
        self._detach(carry)
        return await asyncio.shield(answer)

    async def _carry(
        self,
        writes: Sequence[Write],
        parts: Sequence[_Part],
        intent: str,
        call: Call,
        answer: Answer,
        request_id: str | None,
        seen: Seen | None,
    ) -> None:
        """From the pending rows to the put, cancelled by nobody."""
        shared = request_id is not None
        with _writing(parts):
            try:
                opened = await self._open(intent, parts, call, request_id)
            except BaseException as error:
                _fail(answer, error)
                if isinstance(error, CrossfadeError):
                    return
                raise
            if isinstance(opened, Request):
                _answer(answer, replayed(opened.commit_time, opened.update_times, len(writes)))
                return
            reach("write.opened")
            try:
                outcome = (
                    await self._plain(writes, parts[0].snapshot, call, seen)
                    if opened and not self._fenced(request_id, parts)
                    else await self._with_proof(writes, intent, parts, call, rows=opened, seen=seen)
                )
            except CrossfadeError as error:
                _fail(answer, error)
                # A transaction begins again, with the same intent and its rows, if that is
                # its request's; a worker has what is left when their lease is over.
                again = seen is not None and shared and isinstance(error, Aborted)
                if opened and not again:
                    await _refused(parts, intent, error, shared=shared)
                return
            except BaseException as error:
                _fail(answer, error)
                raise
            reach("write.committed")
            if outcome is None or self._mirror == "async" or not opened:
                _answer(answer, outcome)
            if not opened:  # its entry is in the outbox, and never put directly
                return
            if outcome is None:  # revoked before, so nobody else can apply it
                await _refused(parts, intent, Aborted("revoked"), shared=False)
                return
            try:
                for part in parts:
                    if part.mirrored:
                        await part.forward.put(part, intent, outcome, call, shared=shared)
            finally:
                _answer(answer, outcome)

    async def put(
        self, part: _Part, intent: str, outcome: CommitOutcome, call: Call, *, shared: bool
    ) -> None:
        started, failure = time.time_ns(), None
        epoch = part.snapshot.epoch
        try:
            await self.mirroring.settle(intent, part.folded, outcome, epoch, shared=shared)
            reach("write.put")
            self._telemetry.record_lag("put", (time.time_ns() - started) / 1e9)
        except CrossfadeError as error:
            # The authority has it and the rows stand: a worker recopies. Never an error.
            failure = error.code
            log.warning("a put is left to the recopy worker", error=error.code)
            self._telemetry.count(MIRROR_PUTS, "deferred")
            self.mirroring.woken.set()
        finally:
            collection, stage = collection_id(part.folded[0].path), part.snapshot.stage.value
            call.record("put", "postgresql", "mirror", collection, stage, started, failure)

    async def _open(
        self,
        intent: str,
        parts: Sequence[_Part],
        call: Call,
        request_id: str | None,
    ) -> Request | bool:
        """Pending rows, or the way around them: whether there are rows. Returns the request
        where PostgreSQL knows it as done. An epoch that is over is never a reason for the
        outbox: a barrier must not look like an outage. Of several groups each has rows, or
        all have the way around them."""
        outboxes = {
            part.forward.outbox: part.snapshot
            for part in parts
            if part.mirrored and part.forward.outbox is not None and self._mirror != "required"
        }
        away = any(outbox.mirror_is_out for outbox in outboxes)
        if outboxes and (away or all(each.goes_around(at) for each, at in outboxes.items())):
            return False
        most = min((outbox.patience for outbox in outboxes), default=math.inf)
        horizon = None if self._fenced(request_id, parts) else self._horizon
        opened: list[_Part] = []
        done: Request | None = None
        try:
            for part in parts:
                if not part.mirrored:
                    continue
                began = time.monotonic()
                done = await part.forward.mirroring.open(
                    intent,
                    part.paths,
                    part.snapshot.epoch,
                    lambda: min(most, call.left()),
                    request_id,
                    horizon,
                )
                if outboxes and part.forward.outbox is not None:
                    part.forward.outbox.opened(time.monotonic() - began)
                if done is not None:
                    # Another attempt was settled meanwhile, whose rows these are too.
                    await _refused(opened, intent, Aborted("done before"), shared=True)
                    break
                opened.append(part)
        except EpochChanged as error:
            # Nothing was sent. Rows of another attempt at the same request are a worker's.
            await _refused(opened, intent, error, shared=request_id is not None)
            raise
        except (InfrastructureError, Unauthenticated, PermissionDenied) as error:
            call.left()  # the caller's own deadline says nothing about PostgreSQL
            if not outboxes:
                raise
            log.warning("PostgreSQL takes no pending rows", error=error.code)
            for outbox in outboxes:
                outbox.mirror_is_out = True
            return False
        return True if done is None else done

    def _fenced(self, request_id: str | None, parts: Sequence[_Part]) -> bool:
        """Whether the commit gets an intent document: one that a request_id names needs it, and
        one of several groups, whose rows are not made in one moment."""
        return self._fence == "document" or request_id is not None or len(parts) > 1

    async def _with_proof(
        self,
        writes: Sequence[Write],
        intent: str,
        parts: Sequence[_Part],
        call: Call,
        *,
        rows: bool = True,
        seen: Seen | None = None,
    ) -> CommitOutcome | None:
        """The Firestore commit with its intent document, and what became of it.

        None: the intent had been revoked, nothing was applied. Raises the store's
        own error when nothing was applied, OutcomeUnknown when nobody can say.
        """
        snapshot = parts[0].snapshot
        mirrored = [part for part in parts if part.mirrored]
        proof = Intent(intent, snapshot.epoch, mirrored=bool(mirrored))
        transaction = None if seen is None else seen.transaction
        started, failure = time.time_ns(), None
        try:
            if rows or self.outbox is None:
                return await self._firestore.commit(
                    writes, timeout=call.left(), intent=proof, transaction=transaction
                )
            entries = [
                Entries(part.forward.outbox, part.snapshot, part.paths)
                for part in mirrored
                if part.forward.outbox is not None
            ]
            return await entries[0].outbox.commit(writes, proof, entries, call.left, transaction)
        except NotSent as error:
            failure = error.code
            raise
        except IntentExists as error:
            return await self._found_out(intent, len(writes), error)
        except InfrastructureError as error:
            failure = error.code
            return await self._found_out(intent, len(writes), error)
        except CrossfadeError as error:
            failure = error.code
            raise
        finally:
            self._record(call, writes, snapshot, started, failure)

    async def _found_out(
        self, intent: str, size: int, error: CrossfadeError
    ) -> CommitOutcome | None:
        """What became of a commit that was not answered: revoking it decides."""
        try:
            revoked = await self._firestore.revoke(intent, PROOF_SECONDS)
            if not revoked:
                return await self._firestore.intent_outcome(intent, size, PROOF_SECONDS)
        except CrossfadeError:
            raise OutcomeUnknown(
                "Firestore did not answer the commit and cannot be asked about it; repeat it "
                "with the same request_id to learn the outcome without doing it twice"
            ) from error
        if isinstance(error, IntentExists):
            return None
        raise Unavailable(f"the commit was not applied: {error}") from error

    async def _plain(
        self, writes: Sequence[Write], snapshot: Snapshot, call: Call, seen: Seen | None
    ) -> CommitOutcome:
        """Nothing but the commit: in stage off, or with a horizon that is trusted as a fence."""
        started, failure = time.time_ns(), None
        try:
            # A copy that begins, or a worker that takes over, waits as long as this may take.
            timeout = min(call.left(), self._horizon)
            transaction = None if seen is None else seen.transaction
            return await self._firestore.commit(writes, timeout=timeout, transaction=transaction)
        except InfrastructureError as error:
            failure = error.code
            raise OutcomeUnknown(
                f"{error}; whether the commit was applied is not known, "
                f"and without a request_id it cannot be found out"
            ) from error
        except CrossfadeError as error:
            failure = error.code
            raise
        finally:
            self._record(call, writes, snapshot, started, failure)

    def _record(
        self,
        call: Call,
        writes: Sequence[Write],
        snapshot: Snapshot,
        started: int,
        error: str | None,
    ) -> None:
        if error is None and self.outbox is not None:
            self.outbox.committed((time.time_ns() - started) / 1e9)
        collection, stage = collection_id(writes[0].path), snapshot.stage.value
        call.record("commit", "firestore", "answered", collection, stage, started, error)

    @property
    def mirroring(self) -> Pending:
        if self._pending is None:
            raise Unavailable("this sidecar runs without PostgreSQL")
        return self._pending

    async def _kept(self, commit: Coroutine[Any, Any, T], parts: Sequence[_Part]) -> T:
        """A commit that no row stands for: it counts as in flight until it has ended, though
        its caller goes away, so that no copy begins before it."""

        async def counted() -> T:
            with _writing(parts):
                return await commit

        return await asyncio.shield(self._detach(counted()))

    def _detach(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)
        return task

    async def drain(self, timeout: float) -> None:
        """Waits for the commits that are between the authority and the put."""
        if self._detached:
            await asyncio.wait(self._detached, timeout=timeout)


def _writing(parts: Sequence[_Part]) -> AbstractContextManager[object]:
    """Marks a commit as begun, in each of its groups."""
    if len(parts) == 1:
        return parts[0].forward.control.writing()
    stack = ExitStack()
    for part in parts:
        stack.enter_context(part.forward.control.writing())
    return stack


async def _refused(
    parts: Sequence[_Part], intent: str, error: CrossfadeError, *, shared: bool
) -> None:
    """Nothing was applied by this attempt: its rows can go.

    An intent that a request_id names may have another attempt in flight, whose
    rows these are too; so a worker revokes it first. Without an outcome, too.
    """
    if isinstance(error, OutcomeUnknown):
        return  # the rows stay until their lease is over
    for part in parts:
        if not part.mirrored:
            continue
        pending = part.forward.mirroring
        try:
            await (pending.hand_over(intent) if shared else pending.drop(intent))
        except CrossfadeError as failure:
            # They stay pending until a worker has revoked the intent: slower, never wrong.
            log.info("pending rows of a refused commit are left", error=failure.code)


def _answer(answer: Answer, outcome: CommitOutcome | None) -> None:
    if not answer.done():
        answer.set_result(outcome)


def _fail(answer: Answer, error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)


def _retrieved(answer: Answer) -> None:
    """A caller that went away leaves its error to nobody; that is no defect to report."""
    if not answer.cancelled():
        answer.exception()
