"""The heart: read(), query() and commit(), each on one screen.

Decide, then do: a Route says which store answers and which is compared; the
functions here carry it out by the steps of docs/protocol.md and never ask for the stage.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Protocol, cast

from crossfade.aggregate import Aggregation
from crossfade.call import Call
from crossfade.comparing import MAX_COMPARED_BYTES, stored_documents
from crossfade.control import Control
from crossfade.document import Database, Value, collection_id
from crossfade.errors import (
    Aborted,
    CommitUnanswered,
    CrossfadeError,
    EpochChanged,
    FailedPrecondition,
    InfrastructureError,
    InvalidArgument,
    OutcomeUnknown,
    Unavailable,
)
from crossfade.forward import Forward, MirrorMode
from crossfade.pending import Pending, intents_of, new_intent
from crossfade.plan import Route, StoreName
from crossfade.query import CompositeFilter, Filter, Query
from crossfade.shadow import Shadow
from crossfade.snapshot import Snapshot
from crossfade.store import (
    Aggregated,
    Aggregating,
    CommitOutcome,
    Intent,
    MirrorState,
    Page,
    Reading,
    Seen,
    Stored,
    Stores,
    Under,
)
from crossfade.stores.postgres.store import PostgresStore
from crossfade.telemetry import COMMITS, FALLBACK_READS, READS, RETURNED_READS, Telemetry
from crossfade.timed import TimedPages
from crossfade.verdict import Asked, Offer, Totals, operation_of
from crossfade.write import Write

_NO_STATE = MirrorState(-1, -1, pending=True)
ATTEMPTS = 5
"""How often an operation is decided again because the authority changed under it."""


class Documents(Protocol):
    """What the fronts ask: the heart of the one group, or of all of them (dispatch.py)."""

    async def read(self, paths: tuple[str, ...], call: Call) -> Reading: ...

    def query(self, query: Query, call: Call) -> AsyncIterator[Page]: ...

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], call: Call
    ) -> Aggregated: ...

    async def commit(
        self,
        writes: Sequence[Write],
        call: Call,
        request_id: str | None = None,
        seen: Seen | None = None,
    ) -> CommitOutcome: ...


class Migrator:
    """Reads and commits of a group through both stores. `forward` is None without Firestore."""

    def __init__(
        self,
        control: Control,
        stores: Stores,
        forward: Forward | None,
        pending: Pending | None,
        shadow: Shadow,
        telemetry: Telemetry,
        database: Database,
        mirror: MirrorMode = "async",
    ) -> None:
        self._mirror = mirror
        self.control = control
        self._stores = stores
        self.forward = forward
        self.pending = pending
        self._shadow = shadow
        self._telemetry = telemetry
        self._database = database

    # --- read -------------------------------------------------------------------------------

    async def read(self, paths: tuple[str, ...], call: Call) -> Reading:
        """The documents at the paths; by the mirror only where it is shown to be fresh."""
        for _ in range(ATTEMPTS):
            snapshot = self.control.snapshot
            if call.pin is not None:
                call.served(f"{call.pin}; pinned")
                return await self._get(call.pin, "pinned", paths, snapshot, call)
            snapshot = await self.control.admit(call.left)
            route = snapshot.route(paths)
            answered, reading = route.answer, None
            if route.by_mirror:
                reading = await self._read_mirror(paths, route, snapshot, call)
            if reading is None:
                if not self.control.admitted(snapshot):
                    continue  # the mirror took longer than the lease
                answered = route.authority
                try:
                    reading = await self._get(answered, "answered", paths, snapshot, call)
                except InfrastructureError as error:
                    answered = route.authority.other
                    reading = await self._read_fallback(paths, route, snapshot, call, error)
            if reading.state is not None and not snapshot.current(reading.state):
                await self.control.refresh()
                continue
            collection = collection_id(paths[0])
            self._telemetry.count(READS, collection, answered.value)
            _tell(call, answered, route)
            if route.shadow is not None:
                await self._compare(
                    route, answered, collection, paths, reading.documents, snapshot, call
                )
            return reading
        raise Unavailable("the authority changed again and again while the read was under way")

    async def _read_mirror(
        self, paths: tuple[str, ...], route: Route, snapshot: Snapshot, call: Call
    ) -> Reading | None:
        """The mirror's answer, or None where the authority has to answer."""
        reason = "pending"
        try:
            if route.answer is StoreName.POSTGRESQL and not self.control.mirror_vouches(snapshot):
                reason = "gate"
            elif route.answer is StoreName.POSTGRESQL:
                reading = await self._get(route.answer, "answered", paths, snapshot, call)
                if reading.state is not None and snapshot.settles(reading.state):
                    return reading
            else:
                found = await self._read_firestore_mirror(paths, snapshot, call)
                if found is not None:
                    return found
        except InfrastructureError as error:
            reason = error.code
        self._telemetry.count(RETURNED_READS, collection_id(paths[0]), reason)
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
        held = 0 if found.data is None or found.version is None else found.version[1]
        if held != known.peer_time:
            return None
        # The very version that PostgreSQL holds, whose bytes have the authority's times.
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
        is fresh. Firestore as mirror cannot know what is pending: the error stands."""
        if route.authority is StoreName.POSTGRESQL or not route.mirrored:
            raise error
        if not self.control.mirror_vouches(snapshot):
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
            collection, stage = collection_id(paths[0]), snapshot.stage.value
            call.record("get", store.value, role, collection, stage, started, error)

    async def read_beside(
        self, paths: tuple[str, ...], call: Call, beside: "Sequence[Migrator]"
    ) -> Reading | None:
        """Documents of several groups at one moment, by the authority that all of them have;
        None where they have not."""
        whole = (self, *beside)
        for _ in range(ATTEMPTS):
            under = [await each.control.admit(call.left) for each in whole]
            authority = under[0].authority
            if not all(
                each.control.admitted(snapshot) for each, snapshot in zip(whole, under, strict=True)
            ):
                continue  # the lease of one was over before that of another was renewed
            if any(snapshot.authority is not authority for snapshot in under):
                return None
            reading = await self._get(authority, "answered", paths, under[0], call)
            if authority is StoreName.POSTGRESQL:
                # An epoch that stands after the read stood while it was read.
                after = [await each.control.refresh() for each in whole]
                if any(now.epoch != was.epoch for now, was in zip(after, under, strict=True)):
                    continue
            call.served(authority.value)
            for each, snapshot in zip(whole, under, strict=True):
                await each.answered(authority, reading.documents, snapshot, call)
            return reading
        raise Unavailable("the authority changed again and again while the read was under way")

    async def answered(
        self,
        store: StoreName,
        documents: Sequence[Stored],
        snapshot: Snapshot,
        call: Call,
    ) -> None:
        """Counts and compares those of the documents that are of this group."""
        holds = self.control.group.holds
        own = tuple(each for each in documents if holds(collection_id(each.path)))
        paths = tuple(each.path for each in own)
        collection, route = collection_id(paths[0]), snapshot.route(paths)
        self._telemetry.count(READS, collection, store.value)
        if route.shadow is not None:
            await self._compare(route, store, collection, paths, own, snapshot, call)

    # --- query ------------------------------------------------------------------------------

    async def query(self, query: Query, call: Call) -> AsyncIterator[Page]:
        """A query's pages; one store answers all of them."""
        if query.collection is None:
            raise InvalidArgument("query.from.collection_id: must be set")
        for _ in range(ATTEMPTS):
            snapshot = self.control.snapshot
            if call.pin is not None:
                async for page in self._query_pinned(query, call.pin, snapshot, call):
                    yield page
                return
            snapshot = await self.control.admit(call.left)
            route = snapshot.route_query(query.collection, _shape(query))
            try:
                answered, first, pages = await self._begin_query(query, route, snapshot, call)
            except EpochChanged:
                continue
            if first.state is not None and not snapshot.current(first.state):
                await pages.aclose()
                await self.control.refresh()
                continue
            _tell(call, answered, route)
            kept, size, error = [first], len(first.frames), None
            try:
                yield first
                async for page in pages:
                    yield page
                    size += len(page.frames)
                    if route.shadow is not None and size <= MAX_COMPARED_BYTES:
                        kept.append(page)
            except CrossfadeError as failure:
                error = failure.code
                raise
            finally:
                await pages.aclose()
                self._record_query(answered, query, snapshot, call, pages, error)
            self._telemetry.count(READS, query.collection, answered.value)
            if route.shadow is not None and size <= MAX_COMPARED_BYTES:
                documents = stored_documents(kept, self._database)
                await self._compare(
                    route, answered, query.collection, query, documents, snapshot, call
                )
            return
        raise Unavailable("the authority changed again and again while the query was under way")

    async def _begin_query(
        self, query: Query, route: Route, snapshot: Snapshot, call: Call
    ) -> tuple[StoreName, Page, TimedPages]:
        """The store that answers, its first page, and the rest. The rules are those of read()."""
        collection = query.collection or ""
        if route.by_mirror and not self.control.mirror_vouches(snapshot):
            self._telemetry.count(RETURNED_READS, collection, "gate")
        elif route.by_mirror:
            try:
                first, pages = await self._first_page(route.answer, query, snapshot, call)
            except InfrastructureError as error:
                self._telemetry.count(RETURNED_READS, collection, error.code)
            else:
                if first.state is not None and snapshot.settles(first.state):
                    return route.answer, first, pages
                await pages.aclose()
                self._telemetry.count(RETURNED_READS, collection, "pending")
            if not self.control.admitted(snapshot):
                raise EpochChanged("the mirror took longer than the stage lease")
        try:
            first, pages = await self._first_page(route.authority, query, snapshot, call)
        except InfrastructureError as error:
            if route.authority is StoreName.POSTGRESQL or not route.mirrored:
                raise
            if not self.control.mirror_vouches(snapshot):
                raise
            try:
                first, pages = await self._first_page(StoreName.POSTGRESQL, query, snapshot, call)
            except CrossfadeError:
                raise error from None
            if first.state is None or not snapshot.vouches(first.state):
                await pages.aclose()
                raise
            self._telemetry.count(FALLBACK_READS, collection, "postgresql")
            return StoreName.POSTGRESQL, first, pages
        return route.authority, first, pages

    async def _query_pinned(
        self, query: Query, store: StoreName, snapshot: Snapshot, call: Call
    ) -> AsyncIterator[Page]:
        """A store's own result, as it is: fresh or not, compared with nothing."""
        call.served(f"{store}; pinned")
        error = None
        pages = TimedPages(self._stores[store].query(query, timeout=call.left()))
        try:
            async for page in pages:
                yield page
        except CrossfadeError as failure:
            error = failure.code
            raise
        finally:
            await pages.aclose()
            self._record_query(store, query, snapshot, call, pages, error, "pinned")

    async def _first_page(
        self, store: StoreName, query: Query, snapshot: Snapshot, call: Call
    ) -> tuple[Page, TimedPages]:
        pages = TimedPages(self._stores[store].query(query, timeout=call.left()))
        try:
            return await anext(pages), pages
        except CrossfadeError as failure:
            self._record_query(store, query, snapshot, call, pages, failure.code)
            raise

    def _record_query(
        self,
        store: StoreName,
        query: Query,
        snapshot: Snapshot,
        call: Call,
        pages: TimedPages,
        error: str | None,
        role: str = "answered",
    ) -> None:
        collection, stage = query.collection or "", snapshot.stage.value
        call.record(
            *("query", store.value, role, collection, stage),
            *(pages.started_ns, error, pages.seconds),
        )

    # --- aggregations -----------------------------------------------------------------------

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], call: Call
    ) -> Aggregated:
        """Counts, sums and averages over what a query finds, by the rules of query()."""
        if query.collection is None:
            raise InvalidArgument("query.from.collection_id: must be set")
        for _ in range(ATTEMPTS):
            snapshot = self.control.snapshot
            if call.pin is not None:
                call.served(f"{call.pin}; pinned")
                return await self._aggregate(
                    call.pin, query, aggregations, snapshot, call, "pinned"
                )
            snapshot = await self.control.admit(call.left)
            route = snapshot.route_query(query.collection, _shape(query))
            answered, found = route.answer, None
            if route.by_mirror:
                found = await self._aggregate_mirror(route, query, aggregations, snapshot, call)
            if found is None:
                if not self.control.admitted(snapshot):
                    continue  # the mirror took longer than the lease
                answered = route.authority
                try:
                    found = await self._aggregate(answered, query, aggregations, snapshot, call)
                except InfrastructureError:
                    if route.authority is StoreName.POSTGRESQL or not route.mirrored:
                        raise
                    answered = StoreName.POSTGRESQL
                    found = await self._aggregate_mirror(route, query, aggregations, snapshot, call)
                    if found is None or not snapshot.current(found.state or _NO_STATE):
                        raise
                    self._telemetry.count(FALLBACK_READS, query.collection, "postgresql")
            if found.state is not None and not snapshot.current(found.state):
                await self.control.refresh()
                continue
            self._telemetry.count(READS, query.collection, answered.value)
            _tell(call, answered, route)
            if route.shadow is not None:
                asked = Totals(query, tuple(aggregations))
                await self._compare(
                    route, answered, query.collection, asked, (), snapshot, call, found.values
                )
            return found
        raise Unavailable("the authority changed again and again while the query was under way")

    async def _aggregate_mirror(
        self,
        route: Route,
        query: Query,
        aggregations: Sequence[Aggregation],
        snapshot: Snapshot,
        call: Call,
    ) -> Aggregated | None:
        """PostgreSQL's answer as the mirror, or None where it cannot show that it is fresh."""
        reason = "gate"
        if self.control.mirror_vouches(snapshot):
            reason = "pending"
            try:
                found = await self._aggregate(
                    StoreName.POSTGRESQL, query, aggregations, snapshot, call
                )
                if found.state is not None and snapshot.settles(found.state):
                    return found
            except InfrastructureError as error:
                reason = error.code
        if route.by_mirror:
            self._telemetry.count(RETURNED_READS, query.collection or "", reason)
        return None

    async def _aggregate(
        self,
        store: StoreName,
        query: Query,
        aggregations: Sequence[Aggregation],
        snapshot: Snapshot,
        call: Call,
        role: str = "answered",
    ) -> Aggregated:
        asked = cast(Aggregating, self._stores[store])
        started, error = time.time_ns(), None
        try:
            return await asked.aggregate(query, aggregations, timeout=call.left())
        except CrossfadeError as failure:
            error = failure.code
            raise
        finally:
            collection, stage = query.collection or "", snapshot.stage.value
            call.record("aggregate", store.value, role, collection, stage, started, error)

    # --- commit -----------------------------------------------------------------------------

    async def commit(
        self,
        writes: Sequence[Write],
        call: Call,
        request_id: str | None = None,
        seen: Seen | None = None,
        beside: "Sequence[Migrator]" = (),
    ) -> CommitOutcome:
        """All writes or none, at the authority; the mirror follows, whatever happens to
        this call. Waits while a change of authority is under way.

        `seen`: what a transaction (transactions.py) has read. Raises Aborted when that is not
        so any more, or was read before a change of authority. `beside`: those of the other
        groups that it writes; raises FailedPrecondition where they have another authority.
        """
        for _ in range(ATTEMPTS):
            snapshot = await self.begin(call, seen)
            others = [(each, await each.begin(call, seen)) for each in beside]
            if any(under.authority is not snapshot.authority for _, under in others):
                raise FailedPrecondition(
                    spans("the commit", [each.control for each in (self, *beside)])
                )
            with self.control.writing():
                try:
                    if snapshot.authority is StoreName.POSTGRESQL:
                        outcome = await self._commit_postgresql(
                            writes, snapshot, call, request_id, seen, others
                        )
                    elif self.forward is not None:
                        outcome = await self.forward.commit(
                            writes, snapshot, call, request_id, seen, _forwards(others)
                        )
                    else:
                        raise Unavailable("this sidecar runs without Firestore")
                except EpochChanged:
                    for each in (self, *beside):
                        await each.control.catch_up(call.left)
                    continue
            self._telemetry.count(COMMITS, "replayed" if outcome.replayed else "applied")
            return outcome
        raise Unavailable("the authority changed again and again; the commit was not applied")

    async def begin(self, call: Call, seen: Seen | None) -> Snapshot:
        """The snapshot under which a commit may begin."""
        snapshot = await self.control.writable(call.left)
        if not snapshot.rules.mirrored:
            snapshot = await self.control.admit(call.left)
        if seen is not None and snapshot.epoch != seen.epoch_of(self.control.group.name):
            raise Aborted("the authority has changed since the transaction began")
        return snapshot

    async def _commit_postgresql(
        self,
        writes: Sequence[Write],
        snapshot: Snapshot,
        call: Call,
        request_id: str | None,
        seen: Seen | None,
        beside: "Sequence[tuple[Migrator, Snapshot]]",
    ) -> CommitOutcome:
        """PostgreSQL decides; the pending rows are in the data's own transaction. Once it is
        done, nothing about the mirror is an error any more."""
        name, *others = [new_intent()] if request_id is None else intents_of(request_id)
        mirrored = snapshot.rules.mirrored
        under = _unders(beside)
        intent = Intent(name, snapshot.epoch, mirrored, request_id, tuple(others), beside=under)
        store = cast(PostgresStore, self._stores[StoreName.POSTGRESQL])
        followers = [
            each.pending
            for each, at in ((self, snapshot), *beside)
            if at.rules.mirrored and each.pending is not None
        ]
        if self._mirror == "required":
            for follower in followers:
                await follower.check_reachable(call.left())
        started, error = time.time_ns(), None
        try:
            # Shielded: a caller that goes away leaves no half-known outcome behind.
            outcome = await asyncio.shield(
                store.commit(writes, timeout=call.left(), intent=intent, seen=seen)
            )
        except CommitUnanswered as failure:
            error = failure.code
            raise OutcomeUnknown(
                f"{failure}; whether the commit was applied is not known, repeat it "
                f"with the same request_id to find out without doing it twice"
            ) from failure
        except InfrastructureError as failure:
            error = failure.code
            raise Unavailable(f"{failure}; the commit was not applied") from failure
        except CrossfadeError as failure:
            error = failure.code
            raise
        finally:
            collection, stage = collection_id(writes[0].path), snapshot.stage.value
            call.record("commit", "postgresql", "answered", collection, stage, started, error)
        for follower in followers:
            follower.woken.set()
        for follower in followers if self._mirror != "async" else ():
            left = call.deadline - time.monotonic()
            await follower.until_put(name, left, patient=self._mirror == "required")
        return outcome

    # --- shadow -----------------------------------------------------------------------------

    async def _compare(
        self,
        route: Route,
        answered: StoreName,
        collection: str,
        asked: Asked,
        documents: tuple[Stored, ...],
        snapshot: Snapshot,
        call: Call,
        totals: Mapping[str, Value] | None = None,
    ) -> None:
        """Offers the read, and waits for nothing, unless mismatches are raised to the caller."""
        offer = Offer(
            collection=collection,
            operation=operation_of(asked),
            authority=route.authority,
            answered=answered,
            epoch=snapshot.epoch,
            stage=snapshot.stage.value,
            asked=asked,
            documents=documents,
            link=call.trace,
            totals=totals,
            seconds=call.took,
        )
        if self._shadow.raises:
            await self._shadow.check(offer)
        else:
            self._shadow.offer(offer)


def spans(what: str, controls: Iterable[Control]) -> str:
    """Why something is refused that is of groups with different authorities."""
    groups = " and ".join(
        f"{control.group.name} (stage {control.snapshot.stage}, where "
        f"{control.snapshot.authority} decides)"
        for control in controls
    )
    return (
        f"{what} spans groups of collections with different authorities: {groups}. No commit is "
        f"atomic in both stores: keep to one of the groups, or bring them to stages with the "
        f"same authority (crossfade stage set --group)"
    )


def _forwards(parts: Sequence[tuple[Migrator, Snapshot]]) -> list[tuple[Forward, Snapshot]]:
    return [(each.forward, under) for each, under in parts if each.forward is not None]


def _unders(parts: Sequence[tuple[Migrator, Snapshot]]) -> tuple[Under, ...]:
    return tuple(
        Under(each.control.group, under.epoch, under.rules.mirrored) for each, under in parts
    )


def _tell(call: Call, answered: StoreName, route: Route) -> None:
    """Which store answered. `mirror`: by the percent. `fallback`: because the authority could
    not be asked."""
    if call.asked is None:
        return
    if answered is route.authority:
        call.served(answered.value)
    else:
        call.served(f"{answered}; {'mirror' if route.by_mirror else 'fallback'}")


def _shape(query: Query) -> str:
    """The query without its operands, so that a page and the next are routed alike."""
    orders = ",".join(f"{'.'.join(o.path)}{'-' if o.descending else '+'}" for o in query.order_by)
    scope = f"{query.parent}/{query.collection}{'**' if query.all_descendants else ''}"
    return f"{scope}?{_filter_shape(query.where)}#{orders}"


def _filter_shape(where: Filter | None) -> str:
    if where is None:
        return ""
    if isinstance(where, CompositeFilter):
        return f"({'|' if where.any_of else '&'}{' '.join(map(_filter_shape, where.filters))})"
    return f"{'.'.join(where.path)} {where.op}"
