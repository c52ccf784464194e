"""Reads both stores again until it is known what their disagreement means (verdict.py)."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from crossfade.document import Database, Value
from crossfade.errors import CrossfadeError, FailedPrecondition
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.store import DocumentStore, MirrorState, Page, Reading, Stored, Stores
from crossfade.telemetry import RULED_OUT, Telemetry
from crossfade.turns import Turns
from crossfade.verdict import Finding, Judge, Offer, Totals, Verdict, judge_totals
from crossfade_api.v1 import crossfade_pb2

T = TypeVar("T")

ROUNDS = 4
"""How often a moving document is looked at before it counts as `behind`."""
PAUSE_SECONDS = 0.05
MAX_COMPARED_BYTES = 4 * 1_048_576
"""A query's result beyond this is not kept for comparison."""
MAX_SUSPECTS = 50
"""Documents of one comparison that are looked at one by one."""


@dataclass(frozen=True, slots=True)
class Sums:
    """The values of an aggregation by alias; `state` as in a Reading."""

    values: Mapping[str, Value]
    state: MirrorState | None = None


ReadTotals = Callable[[StoreName, Totals, float], Awaitable[Sums]]
"""Asks a store for an aggregation; the last argument is the timeout in seconds."""


@dataclass(frozen=True, slots=True)
class _Look:
    """One store at one moment (Firestore), or between two of its statements (PostgreSQL).

    `suspects` are documents by path; `result` those of the query, `totals` those of the
    aggregation, None where neither was asked. `seconds`: of what was asked.
    """

    suspects: Mapping[str, Stored]
    result: tuple[Stored, ...] | None = None
    totals: Mapping[str, Value] | None = None
    states: tuple[MirrorState, ...] = ()
    seconds: float = 0.0

    @property
    def pending(self) -> bool:
        return any(state.pending for state in self.states)

    def of(self, epoch: int) -> bool:
        return all(state.epoch == epoch for state in self.states)

    def standing(self) -> object:
        """Equal for two looks between which nothing that was seen has changed."""
        suspects = {path: each.version for path, each in self.suspects.items()}
        result = [(each.path, each.version) for each in self.result or ()]
        return suspects, result, dict(self.totals or {})


class Comparing(Protocol):
    """What the shadow asks."""

    async def compare(self, offer: Offer) -> list[Finding]: ...

    async def agreeing(self, offers: Sequence[Offer]) -> list[bool]: ...

    async def examine(self, path: str, offer: Offer) -> Finding: ...


class Comparer:
    """Finds out what an offered read shows. `timeout`: seconds for each call of a store.

    `vouched`: with Firestore as the authority, whether PostgreSQL knows of every write that it
    has not got. Not while commits go past it, because it is away for some sidecar.
    `charge` is told of the reads that Firestore bills.
    """

    def __init__(
        self,
        stores: Stores,
        database: Database,
        telemetry: Telemetry,
        judge: Judge,
        *,
        timeout: float = 5.0,
        read_totals: ReadTotals | None = None,
        vouched: Callable[[], Awaitable[bool]] | None = None,
        charge: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._stores = stores
        self._database = database
        self._telemetry = telemetry
        self._judge = judge
        self._timeout = timeout
        self._read_totals = read_totals
        self._vouched = vouched
        self._charge = charge

    async def compare(self, offer: Offer) -> list[Finding]:
        """What differs; empty: the stores agree. Raises CrossfadeError when one cannot be read."""
        try:
            return await self._compare(offer)
        finally:
            self._count_ruled_out()

    def _count_ruled_out(self) -> None:
        for labels, count in self._judge.take_ruled_out().items():
            self._telemetry.count(RULED_OUT, *labels, by=count)

    async def agreeing(self, offers: Sequence[Offer]) -> list[bool]:
        """Of gets that the same store answered, which ones the other agrees with, by one call
        of it for all. The others have to be compared one by one. Raises CrossfadeError when it
        cannot be read."""
        store = offers[0].answered.other
        paths = list(dict.fromkeys(path for each in offers for path in _paths(each)))
        if store is StoreName.FIRESTORE:
            self._charge(len(paths))
        started, error = time.perf_counter_ns(), None
        turns = Turns()
        try:
            reading = await self._stores[store].get(paths, timeout=self._timeout, turns=turns)
        except CrossfadeError as failure:
            error = failure.code
            raise
        finally:
            seconds = (time.perf_counter_ns() - started) / 1e9
            for collection in sorted({each.collection for each in offers}):
                self._telemetry.record_store(
                    collection, "get", store.value, "batch", seconds, error
                )
        held = _by_path(reading)
        found = []
        for offer in offers:
            await turns.over()
            theirs = _Look({path: held[path] for path in _paths(offer)})
            found.append(self._suspects(offer, offer.documents, None, theirs) is None)
        self._count_ruled_out()
        return found

    async def examine(self, path: str, offer: Offer) -> Finding:
        """The verdict on one document now, whether the stores agree on it or not."""
        for attempt in range(ROUNDS):
            await asyncio.sleep(PAUSE_SECONDS * attempt)
            bracket = await self._bracket(offer, [path])
            if bracket is not None:
                return self._findings(offer, *bracket)[0]
        return Finding(Verdict.BEHIND, path)

    async def settle(self, paths: Sequence[str], offer: Offer) -> list[Finding]:
        """The verdicts on documents now, MATCH among them, in no order. BEHIND: at no look they
        stood still with nothing pending."""
        told: list[Finding] = []
        left = list(paths)
        for attempt in range(ROUNDS):
            await asyncio.sleep(PAUSE_SECONDS * attempt)
            moving: list[str] = []
            for few in _few(left):
                bracket = await self._bracket(offer, few)
                if bracket is None or bracket[1].pending:
                    moving += few
                    continue
                for each in self._findings(offer, *bracket):
                    if each.verdict is Verdict.BEHIND:
                        moving.append(each.path)
                    else:
                        told.append(each)
            left = moving
            if not left:
                return told
        # One that moves holds up all that are looked at together with it.
        return told + [await self.examine(path, offer) for path in left]

    # --- rounds -------------------------------------------------------------------------------

    async def _compare(self, offer: Offer) -> list[Finding]:
        other = await self._look(offer.answered.other, offer, [])
        self._pair(offer, other.seconds)
        suspects = self._suspects(offer, offer.documents, offer.totals, other)
        if suspects is None:
            return []
        told: list[Finding] = []
        for attempt in range(ROUNDS):
            await asyncio.sleep(PAUSE_SECONDS * attempt)
            bracket = await self._bracket(offer, suspects)
            if bracket is None:
                continue
            firestore, postgres = bracket
            if postgres.pending:
                break
            findings = self._findings(offer, firestore, postgres)
            if any(each.verdict is not Verdict.MATCH for each in findings):
                return [each for each in findings if each.verdict is not Verdict.MATCH]
            if isinstance(offer.asked, tuple):
                return []
            found, more = self._result(offer, firestore, postgres)
            if found is None:
                return []
            if more - set(suspects):
                # Not looked at one by one yet: it may have been in the result and out again.
                suspects = [*suspects, *more - set(suspects)][-MAX_SUSPECTS:]
            elif isinstance(offer.asked, Query) or [found] == told:
                return [found]
            told = [found]
        return [Finding(Verdict.BEHIND, (suspects or [_place(offer)])[0])]

    def _pair(self, offer: Offer, seconds: float) -> None:
        """Both stores were timed for the same read."""
        if offer.seconds is None:
            return
        pair = offer.seconds, seconds
        if offer.answered is not StoreName.FIRESTORE:
            pair = seconds, offer.seconds
        call = offer.link
        span = (call.trace_id, call.span_id) if call is not None and call.kept else None
        self._telemetry.paired.add(offer.collection, offer.operation, *pair, span)

    def _suspects(
        self,
        offer: Offer,
        documents: Sequence[Stored],
        totals: Mapping[str, Value] | None,
        other: _Look,
    ) -> list[str] | None:
        """The paths on which the answer and the other store disagree; None: they agree."""
        mirrored = offer.answered is offer.authority
        if isinstance(offer.asked, Totals):
            pair = (totals or {}, other.totals or {})
            found = judge_totals(offer.asked.query, *(pair if mirrored else pair[::-1]))
            return None if found is None else []
        seen = other.result if isinstance(offer.asked, Query) else tuple(other.suspects.values())
        theirs = seen or ()
        left, right = (documents, theirs) if mirrored else (theirs, documents)
        apart = self._judge.apart(offer.collection, left, right)
        if apart:
            return apart[:MAX_SUSPECTS]
        if isinstance(offer.asked, Query) and self._judge.judge_result(offer.asked, left, right):
            return []  # their order alone
        return None

    async def _bracket(self, offer: Offer, suspects: Sequence[str]) -> tuple[_Look, _Look] | None:
        """Firestore between two looks at PostgreSQL, and the second of these; None: PostgreSQL
        moved meanwhile. Where something is pending, nothing else needs to be known."""
        before = await self._look(StoreName.POSTGRESQL, offer, suspects)
        if before.pending and before.of(offer.epoch):
            return before, before
        firestore = await self._look(StoreName.FIRESTORE, offer, suspects)
        # After Firestore and before PostgreSQL: when commits go past PostgreSQL no more, those
        # that did are pending there.
        if (
            offer.authority is StoreName.FIRESTORE
            and self._vouched is not None
            and not await self._vouched()
        ):
            return None
        after = await self._look(StoreName.POSTGRESQL, offer, suspects)
        if not (before.of(offer.epoch) and after.of(offer.epoch)):
            return None
        if not after.pending and before.standing() != after.standing():
            return None
        return firestore, after

    def _findings(self, offer: Offer, firestore: _Look, postgres: _Look) -> list[Finding]:
        """The verdict on every suspect, MATCH among them."""
        if postgres.pending:
            return [Finding(Verdict.BEHIND, path) for path in postgres.suspects]
        now = time.time_ns() // 1_000
        return [
            self._judge.judge(
                offer.collection, offer.authority, firestore.suspects[path], stored, now
            )
            for path, stored in postgres.suspects.items()
        ]

    def _result(
        self, offer: Offer, firestore: _Look, postgres: _Look
    ) -> tuple[Finding | None, set[str]]:
        """What is wrong with a result though its suspects agree, and who differs in it."""
        ours, theirs = firestore, postgres
        if offer.authority is not StoreName.FIRESTORE:
            ours, theirs = theirs, ours
        if isinstance(offer.asked, Totals):
            return judge_totals(offer.asked.query, ours.totals or {}, theirs.totals or {}), set()
        assert isinstance(offer.asked, Query)  # noqa: S101 - documents alone have no result
        left, right = ours.result or (), theirs.result or ()
        found = self._judge.judge_result(offer.asked, left, right)
        return found, set(self._judge.apart(offer.collection, left, right))

    # --- reading ------------------------------------------------------------------------------

    async def _look(self, store: StoreName, offer: Offer, suspects: Sequence[str]) -> _Look:
        """The suspects, and what was asked, as `store` has it now."""
        if isinstance(offer.asked, tuple):
            reading, seconds = await self._get(store, offer, suspects or offer.asked)
            return _Look(_by_path(reading), states=_states(reading.state), seconds=seconds)
        held: Mapping[str, Stored] = {}
        states: tuple[MirrorState, ...] = ()
        if suspects:
            reading, _ = await self._get(store, offer, suspects)
            held, states = _by_path(reading), _states(reading.state)
        if isinstance(offer.asked, Query):
            asked = read_pages(self._stores[store], offer.asked, self._timeout)
            pages, seconds = await self._call(store, offer, asked)
            # Not in the seconds, for it is not in those of an answer.
            documents = stored_documents(pages, self._database)
            if store is StoreName.FIRESTORE:
                # A query without a result is billed as one read.
                self._charge(max(1, len(documents)))
            states = (*states, *_states(pages[0].state))
            return _Look(held, documents, states=states, seconds=seconds)
        if self._read_totals is None:
            raise FailedPrecondition("this sidecar cannot compare aggregations")
        if store is StoreName.FIRESTORE:
            self._charge(1)  # for each thousand index entries, of which nobody tells
        totals = self._read_totals(store, offer.asked, self._timeout)
        sums, seconds = await self._call(store, offer, totals)
        states = (*states, *_states(sums.state))
        return _Look(held, totals=sums.values, states=states, seconds=seconds)

    async def _get(
        self, store: StoreName, offer: Offer, paths: Sequence[str]
    ) -> tuple[Reading, float]:
        if store is StoreName.FIRESTORE:
            self._charge(len(paths))  # a document that is missing is billed, too
        reading: Awaitable[Reading] = self._stores[store].get(paths, timeout=self._timeout)
        return await self._call(store, offer, reading)

    async def _call(self, store: StoreName, offer: Offer, reading: Awaitable[T]) -> tuple[T, float]:
        """One call of a store, recorded, and the seconds that it took."""
        started, error = time.perf_counter_ns(), None
        try:
            found = await reading
            return found, (time.perf_counter_ns() - started) / 1e9
        except CrossfadeError as failure:
            error = failure.code
            raise
        finally:
            seconds = (time.perf_counter_ns() - started) / 1e9
            self._telemetry.record_store(
                offer.collection, offer.operation, store.value, "shadow", seconds, error
            )


class Comparers:
    """The comparers of several groups as one: each knows the epochs of its own."""

    def __init__(self, of: Callable[[str], Comparing]) -> None:
        self._of = of
        """By collection id."""

    async def compare(self, offer: Offer) -> list[Finding]:
        return await self._of(offer.collection).compare(offer)

    async def agreeing(self, offers: Sequence[Offer]) -> list[bool]:
        parts: dict[int, tuple[Comparing, list[int]]] = {}
        for place, offer in enumerate(offers):
            comparer = self._of(offer.collection)
            parts.setdefault(id(comparer), (comparer, []))[1].append(place)
        found = [False] * len(offers)
        for comparer, places in parts.values():
            agreeing = await comparer.agreeing([offers[place] for place in places])
            for place, agrees in zip(places, agreeing, strict=True):
                found[place] = agrees
        return found

    async def examine(self, path: str, offer: Offer) -> Finding:
        return await self._of(offer.collection).examine(path, offer)


def _place(offer: Offer) -> str:
    asked = offer.asked
    if isinstance(asked, tuple):
        return asked[0]
    query = asked if isinstance(asked, Query) else asked.query
    return query.collection_path or offer.collection


def _paths(offer: Offer) -> tuple[str, ...]:
    """Those of a get."""
    return offer.asked if isinstance(offer.asked, tuple) else ()


def _few(paths: Sequence[str]) -> list[Sequence[str]]:
    return [paths[at : at + MAX_SUSPECTS] for at in range(0, len(paths), MAX_SUSPECTS)]


def _by_path(reading: Reading) -> dict[str, Stored]:
    return {stored.path: stored for stored in reading.documents}


def _states(state: MirrorState | None) -> tuple[MirrorState, ...]:
    return () if state is None else (state,)


async def read_pages(store: DocumentStore, query: Query, timeout: float) -> list[Page]:
    """A query's whole result; its state is that of its first page."""
    return [page async for page in store.query(query, timeout=timeout)]


def stored_documents(pages: Sequence[Page], database: Database) -> tuple[Stored, ...]:
    """The documents of a query's pages."""
    found = []
    for page in pages:
        for message in crossfade_pb2.QueryReply.FromString(page.frames).documents:
            time_ = message.update_time.seconds * 1_000_000 + message.update_time.nanos // 1_000
            found.append(
                Stored(database.relative(message.name), message.SerializeToString(), (0, time_))
            )
    return tuple(found)
