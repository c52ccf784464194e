"""The heart: read(), query() and commit(), each on one screen.

Decide, then do: a Route says which store answers and which is compared; the
functions here carry it out by the steps of docs/protocol.md and never ask for the stage.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import structlog

from crossfade.control import Control, Snapshot
from crossfade.document import Database, collection_id, is_own
from crossfade.errors import (
    Aborted,
    CrossfadeError,
    DeadlineExceeded,
    EpochChanged,
    InfrastructureError,
    InvalidArgument,
    OutcomeUnknown,
    Unavailable,
)
from crossfade.pending import Pending, intent_of, new_intent
from crossfade.plan import Route, StoreName
from crossfade.query import Query
from crossfade.shadow import MAX_COMPARED_BYTES, Offer, Shadow, stored_documents
from crossfade.store import CommitOutcome, Intent, Page, Reading, Stored, Stores
from crossfade.stores.firestore import FirestoreStore, IntentExists
from crossfade.telemetry import (
    COMMITS,
    FALLBACK_READS,
    MIRROR_PUTS,
    READS,
    RETURNED_READS,
    Telemetry,
    Trace,
)
from crossfade.write import Folded, Write, fold

log = structlog.get_logger(__name__)

T = TypeVar("T")
MirrorMode = Literal["async", "wait", "required"]
ATTEMPTS = 5
"""How often an operation is decided again because the authority changed under it."""


@dataclass(slots=True)
class Call:
    """One request: its deadline (`time.monotonic()` seconds) and its trace."""

    deadline: float
    trace: Trace | None = None

    def left(self) -> float:
        """Seconds left. Raises DeadlineExceeded when there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline is over")
        return left


class Migrator:
    """Reads and commits through both stores."""

    def __init__(
        self,
        control: Control,
        stores: Stores,
        firestore: FirestoreStore | None,
        pending: Pending | None,
        shadow: Shadow,
        telemetry: Telemetry,
        database: Database,
        mirror: MirrorMode = "async",
    ) -> None:
        self._control = control
        self._stores = stores
        self._firestore = firestore
        self._pending = pending
        self._shadow = shadow
        self._telemetry = telemetry
        self._database = database
        self._mirror = mirror
        self._detached: set[asyncio.Task[None]] = set()

    # --- read -------------------------------------------------------------------------------

    async def read(self, paths: tuple[str, ...], call: Call) -> Reading:
        """The documents at the paths. Answered by the mirror only where it is shown to be fresh."""
        for _ in range(ATTEMPTS):
            snapshot = self._control.snapshot
            route = snapshot.route(paths)
            reading = None
            answered = route.answer
            if route.by_mirror:
                reading = await self._read_mirror(paths, route, snapshot, call)
            if reading is None:
                answered = route.authority
                try:
                    reading = await self._get(answered, "answered", paths, snapshot, call)
                except InfrastructureError as error:
                    reading = await self._read_fallback(paths, route, snapshot, call, error)
                    answered = route.authority.other
            if reading.state is not None and not snapshot.current(reading.state):
                await self._control.refresh()
                continue
            self._telemetry.count(READS, collection_id(paths[0]), answered.value)
            if route.shadow is not None:
                self._offer(route, answered, paths, None, reading.documents, snapshot, call)
            return reading
        raise Unavailable("the authority changed again and again while the read was under way")

    async def _read_mirror(
        self, paths: tuple[str, ...], route: Route, snapshot: Snapshot, call: Call
    ) -> Reading | None:
        """The mirror's answer, or None where the authority has to answer."""
        try:
            if route.answer is StoreName.POSTGRESQL:
                reading = await self._get(route.answer, "answered", paths, snapshot, call)
                if reading.state is not None and snapshot.vouches(reading.state):
                    return reading
                self._telemetry.count(RETURNED_READS, collection_id(paths[0]), "pending")
                return None
            return await self._read_firestore_mirror(paths, snapshot, call)
        except InfrastructureError:
            self._telemetry.count(FALLBACK_READS, collection_id(paths[0]), route.authority.value)
            return None

    async def _read_firestore_mirror(
        self, paths: tuple[str, ...], snapshot: Snapshot, call: Call
    ) -> Reading | None:
        """First ask PostgreSQL what Firestore should hold, then read Firestore: never the
        other way round, never at the same time. The answer bears the authority's version."""
        if len(paths) != 1:
            return None
        ours = await self._get(StoreName.POSTGRESQL, "check", paths, snapshot, call)
        known = ours.documents[0]
        if ours.state is None or not snapshot.vouches(ours.state) or known.peer_time is None:
            return None
        theirs = await self._get(StoreName.FIRESTORE, "answered", paths, snapshot, call)
        found = theirs.documents[0]
        if (found.data is None) != (known.data is None):
            return None
        if found.data is not None and (
            found.version is None or found.version[1] != known.peer_time
        ):
            return None
        # Same content, and the authority's bytes have the authority's times.
        return Reading((known,), ours.read_time, ours.state)

    async def _read_fallback(
        self,
        paths: tuple[str, ...],
        route: Route,
        snapshot: Snapshot,
        call: Call,
        error: InfrastructureError,
    ) -> Reading:
        """On infrastructure errors only [law], and only where PostgreSQL can show that it
        is fresh. Firestore as mirror cannot know what is pending: UNAVAILABLE."""
        if route.authority is StoreName.POSTGRESQL or not route.mirrored:
            raise error
        try:
            reading = await self._get(StoreName.POSTGRESQL, "answered", paths, snapshot, call)
        except CrossfadeError:
            raise error from None
        if reading.state is None or not snapshot.vouches(reading.state):
            raise error
        self._telemetry.count(FALLBACK_READS, collection_id(paths[0]), "postgresql")
        return reading

    async def _get(
        self, store: StoreName, role: str, paths: Sequence[str], snapshot: Snapshot, call: Call
    ) -> Reading:
        started, error = time.time_ns(), None
        try:
            return await self._stores[store].get(paths, timeout=call.left())
        except CrossfadeError as failure:
            error = failure.code
            raise
        finally:
            self._observe(
                "get", store, role, collection_id(paths[0]), snapshot, call, started, error
            )

    # --- query ------------------------------------------------------------------------------

    async def query(self, query: Query, call: Call) -> AsyncIterator[Page]:
        """A query's pages. One store answers all of them."""
        collection = query.collection
        if collection is None:
            raise InvalidArgument("query.from.collection_id: must be set")
        for _ in range(ATTEMPTS):
            snapshot = self._control.snapshot
            route = snapshot.route_query(collection, _shape(query))
            answered = route.answer
            started, error = time.time_ns(), None
            kept: list[Page] | None = [] if route.shadow is not None else None
            kept_bytes = 0
            try:
                pages = self._stores[answered].query(query, timeout=call.left())
                first = await anext(pages)
                if (
                    first.state is not None
                    and route.by_mirror
                    and not snapshot.vouches(first.state)
                ):
                    await _close(pages)
                    answered = route.authority
                    self._telemetry.count(RETURNED_READS, collection, "pending")
                    pages = self._stores[answered].query(query, timeout=call.left())
                    first = await anext(pages)
            except InfrastructureError as failure:
                error = failure.code
                answered, first, pages = await self._query_elsewhere(
                    query, route, answered, snapshot, call, failure
                )
            if first.state is not None and not snapshot.current(first.state):
                await _close(pages)
                await self._control.refresh()
                continue
            try:
                yield first
                if kept is not None:
                    kept.append(first)
                async for page in pages:
                    yield page
                    kept_bytes += len(page.frames)
                    if kept is not None and kept_bytes < MAX_COMPARED_BYTES:
                        kept.append(page)
                    else:
                        kept = None
            except CrossfadeError as failure:
                error = failure.code
                raise
            finally:
                await _close(pages)
                self._observe(
                    "query", answered, "answered", collection, snapshot, call, started, error
                )
            self._telemetry.count(READS, collection, answered.value)
            if kept is not None:
                documents = stored_documents(kept, self._database)
                self._offer(route, answered, (), query, documents, snapshot, call)
            return
        raise Unavailable("the authority changed again and again while the query was under way")

    async def _query_elsewhere(
        self,
        query: Query,
        route: Route,
        failed: StoreName,
        snapshot: Snapshot,
        call: Call,
        error: InfrastructureError,
    ) -> tuple[StoreName, Page, AsyncIterator[Page]]:
        """The mirror failed: the authority answers. The authority failed: PostgreSQL
        answers where it shows that it is fresh; else the error stands."""
        other = failed.other
        if not route.mirrored or (failed is route.authority and other is StoreName.FIRESTORE):
            raise error
        try:
            pages = self._stores[other].query(query, timeout=call.left())
            first = await anext(pages)
        except CrossfadeError:
            raise error from None
        if other is not route.authority and not (
            first.state is not None and snapshot.vouches(first.state)
        ):
            raise error
        self._telemetry.count(FALLBACK_READS, query.collection or "", other.value)
        return other, first, pages

    # --- commit -----------------------------------------------------------------------------

    async def commit(
        self, writes: Sequence[Write], call: Call, request_id: str | None = None
    ) -> CommitOutcome:
        """All writes or none, at the authority; the mirror follows, whatever happens to
        this call. Waits while a change of authority is under way."""
        for write in writes:
            if is_own(write.path):
                raise InvalidArgument(f"write.name: {write.path.split('/')[0]} is Crossfade's own")
        for _ in range(ATTEMPTS):
            snapshot = await self._control.writable(call.left)
            with self._control.writing():
                try:
                    if snapshot.authority is StoreName.POSTGRESQL:
                        outcome = await self._commit_postgresql(writes, snapshot, call, request_id)
                    elif snapshot.rules.mirrored:
                        outcome = await self._commit_forward(writes, snapshot, call, request_id)
                    else:
                        outcome = await self._commit_firestore(writes, snapshot, call, request_id)
                except EpochChanged:
                    await self._control.refresh()
                    continue
            self._telemetry.count(COMMITS, "replayed" if outcome.replayed else "applied")
            return outcome
        raise Unavailable("the authority changed again and again; the commit was not applied")

    async def _commit_forward(
        self, writes: Sequence[Write], snapshot: Snapshot, call: Call, request_id: str | None
    ) -> CommitOutcome:
        """Firestore decides, PostgreSQL follows: pending rows, commit, answer, put."""
        pending = self._pending
        assert pending is not None  # noqa: S101 - a mirrored stage has PostgreSQL
        folded = fold(writes)
        paths = [entry.path for entry in folded]
        for attempt in range(ATTEMPTS):
            intent = new_intent() if request_id is None else intent_of(request_id, attempt)
            await pending.open(intent, paths, snapshot.epoch, call.left)
            answer: asyncio.Future[CommitOutcome | None] = asyncio.Future()
            answer.add_done_callback(_retrieved)
            self._detach(self._carry(writes, folded, intent, snapshot, call, answer))
            # Shielded: a caller that goes away changes nothing about the rest.
            outcome = await asyncio.shield(answer)
            if outcome is not None:
                return outcome
        raise Aborted("the commit was revoked again and again; it was not applied")

    async def _carry(
        self,
        writes: Sequence[Write],
        folded: Sequence[Folded],
        intent: str,
        snapshot: Snapshot,
        call: Call,
        answer: asyncio.Future[CommitOutcome | None],
    ) -> None:
        """From the commit to the put, cancelled by nobody. The answer is None when the
        intent had been revoked and the commit is to be tried under another."""
        pending = self._pending
        assert pending is not None  # noqa: S101
        with self._control.writing():
            try:
                outcome = await self._commit_with_proof(writes, intent, snapshot, call)
            except CrossfadeError as error:
                _fail(answer, error)
                if not isinstance(error, OutcomeUnknown):  # else a worker finds out
                    await self._drop(intent)
                return
            except BaseException as error:
                _fail(answer, error)
                raise
            if outcome is None:
                await self._drop(intent)
                _answer(answer, None)
                return
            if self._mirror == "async":
                _answer(answer, outcome)
            try:
                await pending.settle(intent, folded, outcome, snapshot.epoch)
            except CrossfadeError as error:
                # The authority has it and the rows stand: a worker recopies. Never an error.
                log.warning("a put is left to the recopy worker", error=error.code)
                self._telemetry.count(MIRROR_PUTS, "deferred")
                pending.woken.set()
            _answer(answer, outcome)

    async def _commit_with_proof(
        self, writes: Sequence[Write], intent: str, snapshot: Snapshot, call: Call
    ) -> CommitOutcome | None:
        """The Firestore commit with its intent document, and what became of it.

        None: the intent had been revoked, nothing was applied. Raises the store's
        own error when nothing was applied, OutcomeUnknown when nobody can say.
        """
        firestore = self._firestore
        assert firestore is not None  # noqa: S101
        proof = Intent(intent, snapshot.epoch, mirrored=True)
        started, failure = time.time_ns(), None
        try:
            return await firestore.commit(writes, timeout=call.left(), intent=proof)
        except IntentExists as error:
            return await self._applied_outcome(firestore, intent, len(writes), error)
        except InfrastructureError as error:
            failure = error.code
            try:
                revoked = await firestore.revoke(intent, timeout=5.0)
            except CrossfadeError:
                raise OutcomeUnknown(
                    "Firestore did not answer the commit and cannot be asked about it; repeat it "
                    "with the same request_id to learn the outcome without doing it twice"
                ) from error
            if revoked:
                raise Unavailable(f"the commit was not applied: {error}") from error
            return await self._applied_outcome(firestore, intent, len(writes), error)
        except CrossfadeError as error:
            failure = error.code
            raise
        finally:
            collection = collection_id(writes[0].path)
            self._observe(
                "commit",
                StoreName.FIRESTORE,
                "answered",
                collection,
                snapshot,
                call,
                started,
                failure,
            )

    async def _applied_outcome(
        self, firestore: FirestoreStore, intent: str, size: int, error: CrossfadeError
    ) -> CommitOutcome | None:
        try:
            return await firestore.intent_outcome(intent, size, timeout=5.0)
        except InfrastructureError:
            raise OutcomeUnknown("the outcome of the commit cannot be read now") from error

    async def _drop(self, intent: str) -> None:
        try:
            assert self._pending is not None  # noqa: S101
            await self._pending.drop(intent)
        except CrossfadeError as error:
            # They stay pending until a worker has revoked the intent: slower, never wrong.
            log.info("pending rows of a refused commit are left to the worker", error=error.code)

    async def _commit_postgresql(
        self, writes: Sequence[Write], snapshot: Snapshot, call: Call, request_id: str | None
    ) -> CommitOutcome:
        """PostgreSQL decides; the pending rows are in the data's own transaction."""
        intent = Intent(new_intent(), snapshot.epoch, snapshot.rules.mirrored, request_id)
        task = asyncio.ensure_future(
            self._commit_at(StoreName.POSTGRESQL, writes, intent, snapshot, call)
        )
        outcome = await asyncio.shield(task)
        if intent.mirrored and self._pending is not None:
            self._pending.woken.set()
        return outcome

    async def _commit_firestore(
        self, writes: Sequence[Write], snapshot: Snapshot, call: Call, request_id: str | None
    ) -> CommitOutcome:
        """Stage off. The intent document is written only where a request_id asks for it."""
        if request_id is None:
            return await self._commit_at(StoreName.FIRESTORE, writes, None, snapshot, call)
        for attempt in range(ATTEMPTS):
            outcome = await self._commit_with_proof(
                writes, intent_of(request_id, attempt), snapshot, call
            )
            if outcome is not None:
                return outcome
        raise Aborted("the commit was revoked again and again; it was not applied")

    async def _commit_at(
        self,
        store: StoreName,
        writes: Sequence[Write],
        intent: Intent | None,
        snapshot: Snapshot,
        call: Call,
    ) -> CommitOutcome:
        started, error = time.time_ns(), None
        try:
            return await self._stores[store].commit(writes, timeout=call.left(), intent=intent)
        except InfrastructureError as failure:
            error = failure.code
            raise OutcomeUnknown(
                f"{failure}; whether the commit was applied is not known"
            ) from failure
        except CrossfadeError as failure:
            error = failure.code
            raise
        finally:
            collection = collection_id(writes[0].path)
            self._observe("commit", store, "answered", collection, snapshot, call, started, error)

    # --- what all share ---------------------------------------------------------------------

    def _offer(
        self,
        route: Route,
        answered: StoreName,
        paths: tuple[str, ...],
        query: Query | None,
        documents: tuple[Stored, ...],
        snapshot: Snapshot,
        call: Call,
    ) -> None:
        collection = collection_id(paths[0]) if paths else (query.collection or "" if query else "")
        self._shadow.offer(
            Offer(
                collection=collection,
                operation="get" if query is None else "query",
                authority=route.authority,
                answered=answered,
                epoch=snapshot.epoch,
                stage=snapshot.stage.value,
                paths=paths,
                query=query,
                documents=documents,
                link=call.trace.link() if call.trace is not None else None,
            )
        )

    def _observe(
        self,
        operation: str,
        store: StoreName,
        role: str,
        collection: str,
        snapshot: Snapshot,
        call: Call,
        started: int,
        error: str | None,
    ) -> None:
        ended = time.time_ns()
        self._telemetry.record_store(
            collection, operation, store.value, role, (ended - started) / 1e9, error
        )
        if call.trace is not None:
            call.trace.store_call(
                operation,
                store.value,
                role,
                collection,
                snapshot.stage.value,
                started,
                ended,
                error,
            )

    def _detach(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)

    async def drain(self, timeout: float) -> None:
        """Waits for the commits that are between the authority and the put."""
        if self._detached:
            await asyncio.wait(self._detached, timeout=timeout)


async def _close(pages: AsyncIterator[Page]) -> None:
    """An abandoned page generator holds a connection until it is closed."""
    if isinstance(pages, AsyncGenerator):
        await pages.aclose()


def _answer(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _retrieved(future: asyncio.Future[Any]) -> None:
    """A caller that went away leaves its error to nobody; that is no defect to report."""
    if not future.cancelled():
        future.exception()


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _shape(query: Query) -> str:
    """The query without its operands, so that a page and the next are routed alike."""
    orders = ",".join(f"{'.'.join(o.path)}{'-' if o.descending else '+'}" for o in query.order_by)
    scope = f"{query.parent}/{query.collection}{'**' if query.all_descendants else ''}"
    return f"{scope}?{_filter_shape(query.where)}#{orders}"


def _filter_shape(where: Any) -> str:
    if where is None:
        return ""
    if hasattr(where, "filters"):
        return f"({'|' if where.any_of else '&'}{' '.join(map(_filter_shape, where.filters))})"
    return f"{'.'.join(where.path)} {where.op}"
