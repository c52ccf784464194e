"""Shadow reads: the other store is read after the answer, compared, and judged.

Offering never blocks, never raises and never waits: a full queue drops the
comparison and counts it [law]. A disagreement counts only when it is stable: the
authority is read, then the mirror, then the authority again, and only if the
authority did not move meanwhile and nothing is pending is the mirror blamed.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import structlog
from opentelemetry.trace import SpanContext

from crossfade.diff import diff
from crossfade.document import Database
from crossfade.errors import CrossfadeError
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.store import DocumentStore, Page, Reading, Stored, Stores
from crossfade.telemetry import REPAIRS, SHADOW_DROPPED, VERDICTS, Telemetry
from crossfade.wire import parse_document
from crossfade_api.v1 import crossfade_pb2, document_pb2

log = structlog.get_logger(__name__)

ROUNDS = 3
"""How often a comparison is read again before a moving document counts as `behind`. What
is pending, or differs within the bound, is `behind` at once."""
PAUSE_SECONDS = 0.05
MAX_COMPARED_BYTES = 4 * 1_048_576
"""A query's result beyond this is not kept for comparison."""


class Verdict(StrEnum):
    """`missing` and `extra` are said of the mirror."""

    MATCH = "match"
    WRONG = "wrong"
    BEHIND = "behind"
    STALE = "stale"
    MISSING = "missing"
    EXTRA = "extra"
    ERROR = "error"


BAD = frozenset({Verdict.WRONG, Verdict.STALE, Verdict.MISSING, Verdict.EXTRA})
"""The verdicts that count against a ramp, alarm, and queue a recopy."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A read that was answered, to be compared: the paths or the query that was `asked`,
    and the `documents` that the store `answered`."""

    collection: str
    operation: str
    authority: StoreName
    answered: StoreName
    epoch: int
    stage: str
    asked: tuple[str, ...] | Query
    documents: tuple[Stored, ...]
    link: SpanContext | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A mismatch without its values: which fields differ and how."""

    path: str
    verdict: Verdict
    fields: tuple[str, ...]
    at: float


class Shadow:
    """A bounded queue and a few workers."""

    def __init__(
        self,
        stores: Stores,
        database: Database,
        telemetry: Telemetry,
        *,
        queue: int = 1000,
        workers: int = 2,
        behind_bound: float = 5.0,
        timeout: float = 5.0,
        repair: Callable[[Sequence[str], int, StoreName], Awaitable[None]] | None = None,
    ) -> None:
        self._stores = stores
        self._database = database
        self._telemetry = telemetry
        self._queue: asyncio.Queue[Offer] = asyncio.Queue(queue)
        self._workers = workers
        self._bound = round(behind_bound * 1e6)
        self._timeout = timeout
        self._repair = repair
        self._running = 0
        self.samples: deque[Sample] = deque(maxlen=200)

    def offer(self, offer: Offer) -> None:
        try:
            self._queue.put_nowait(offer)
        except asyncio.QueueFull:
            self._telemetry.count(SHADOW_DROPPED, offer.collection, "queue")

    @property
    def waiting(self) -> int:
        """Comparisons in the queue."""
        return self._queue.qsize()

    @property
    def idle(self) -> bool:
        return self._queue.empty() and not self._running

    async def run(self) -> None:
        """Runs for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            offer = await self._queue.get()
            self._running += 1
            try:
                await self.compare(offer)
            except CrossfadeError as error:
                self._count(offer, Verdict.ERROR)
                log.info("shadow read failed", collection=offer.collection, error=error.code)
            except Exception:
                # A defect in comparing must not end the comparing of everything else.
                self._count(offer, Verdict.ERROR)
                log.exception("a comparison failed by a defect", collection=offer.collection)
            finally:
                self._running -= 1

    async def compare(self, offer: Offer) -> Verdict:
        """Compares, counts, keeps a sample, and queues a recopy of what is bad."""
        started = time.time_ns()
        verdict, paths, fields = await self._verdict(offer)
        self._count(offer, verdict)
        if offer.link is not None:
            self._telemetry.shadow_span(
                offer.link,
                operation=offer.operation,
                store=offer.answered.other.value,
                collection=offer.collection,
                stage=offer.stage,
                verdict=verdict.value,
                start_ns=started,
                end_ns=time.time_ns(),
            )
        if verdict in BAD:
            for path in paths:
                self.samples.append(Sample(path, verdict, fields, time.time()))
            log.warning(
                "the stores differ",
                verdict=verdict.value,
                collection=offer.collection,
                paths=paths[:5],
                fields=fields[:10],
            )
            if self._repair is not None and paths:
                await self._repair(paths, offer.epoch, offer.authority)
                self._telemetry.count(REPAIRS, offer.collection, verdict.value, by=len(paths))
        return verdict

    async def _verdict(self, offer: Offer) -> tuple[Verdict, tuple[str, ...], tuple[str, ...]]:
        """The verdict, the paths it is about, and the differing fields of the first of them."""
        other = await self._read(offer.answered.other, offer)
        if _same_content(offer.documents, other.documents):
            return Verdict.MATCH, (), ()
        for attempt in range(ROUNDS):
            before = await self._read(offer.authority, offer)
            mirror = await self._read(offer.authority.other, offer)
            after = await self._read(offer.authority, offer)
            state = mirror.state or before.state
            if state is not None and state.pending:
                break
            if _versions(before) == _versions(after):
                found = self._differences(offer, after.documents, mirror.documents)
                worst = next((entry for entry in found if entry[0] in BAD), None)
                if worst is not None:
                    paths = tuple(path for verdict, path, _ in found if verdict in BAD)
                    return worst[0], paths, worst[2]
                if not found:
                    return Verdict.MATCH, (), ()
                break
            await asyncio.sleep(PAUSE_SECONDS * attempt)
        return Verdict.BEHIND, (), ()

    async def _read(self, store: StoreName, offer: Offer) -> Reading:
        """The offer's documents or query result as `store` has them now."""
        started, error = time.perf_counter_ns(), None
        try:
            if isinstance(offer.asked, Query):
                return await read_query(
                    self._stores[store], offer.asked, self._database, self._timeout
                )
            return await self._stores[store].get(offer.asked, timeout=self._timeout)
        except CrossfadeError as failure:
            error = failure.code
            raise
        finally:
            self._telemetry.record_store(
                offer.collection,
                offer.operation,
                store.value,
                "shadow",
                (time.perf_counter_ns() - started) / 1e9,
                error,
            )

    def _differences(
        self, offer: Offer, authority: Sequence[Stored], mirror: Sequence[Stored]
    ) -> list[tuple[Verdict, str, tuple[str, ...]]]:
        """What differs, document by document; then the order, if everything else agrees."""
        ours = {stored.path: stored for stored in authority}
        theirs = {stored.path: stored for stored in mirror}
        found: list[tuple[Verdict, str, tuple[str, ...]]] = []
        for path in ours | theirs:
            a = ours.get(path, Stored(path, None, None))
            b = theirs.get(path, Stored(path, None, None))
            verdict, fields = self._judge(offer, a, b)
            if verdict is not Verdict.MATCH:
                found.append((verdict, path, fields))
        ordered = isinstance(offer.asked, Query) and bool(offer.asked.order_by)
        if ordered and not found and [*ours] != [*theirs]:
            found.append((Verdict.WRONG, next(iter(ours)), ("(order)",)))
        return found

    def _judge(
        self, offer: Offer, authority: Stored, mirror: Stored
    ) -> tuple[Verdict, tuple[str, ...]]:
        """One document of both stores, neither pending nor moving."""
        if authority.data is None or mirror.data is None:
            if authority.data is mirror.data:
                return Verdict.MATCH, ()
            if mirror.data is None:
                return Verdict.MISSING, ()
            return Verdict.EXTRA, ()
        if _canonical(authority.data) == _canonical(mirror.data):
            return Verdict.MATCH, ()
        left = parse_document(authority.data, self._database)
        right = parse_document(mirror.data, self._database)
        differences = diff(left.fields, right.fields)
        if not differences:  # a NaN with other bits
            return Verdict.MATCH, ()
        fields = tuple(map(str, differences))
        expected = (
            left.update_time if offer.authority is StoreName.FIRESTORE else authority.peer_time
        )
        if right.update_time == expected:
            return Verdict.WRONG, fields
        if offer.authority is StoreName.FIRESTORE and right.update_time > left.update_time:
            return Verdict.WRONG, fields
        recent = time.time_ns() // 1_000 - left.update_time < self._bound
        return (Verdict.BEHIND if recent else Verdict.STALE), fields

    def _count(self, offer: Offer, verdict: Verdict) -> None:
        self._telemetry.count(VERDICTS, offer.collection, verdict.value)


def _same_content(left: Sequence[Stored], right: Sequence[Stored]) -> bool:
    return len(left) == len(right) and all(
        a.path == b.path and _canonical(a.data) == _canonical(b.data)
        for a, b in zip(left, right, strict=True)
    )


def _versions(reading: Reading) -> list[tuple[str, object]]:
    return [(stored.path, stored.version) for stored in reading.documents]


def _canonical(data: bytes | None) -> bytes | None:
    """The content in a form that equal documents share; times are judged apart."""
    if data is None:
        return None
    message = document_pb2.Document.FromString(data)
    message.ClearField("create_time")
    message.ClearField("update_time")
    return message.SerializeToString(deterministic=True)


async def read_query(
    store: DocumentStore, query: Query, database: Database, timeout: float
) -> Reading:
    """A query's whole result as one reading; `state` is that of its first page."""
    pages = [page async for page in store.query(query, timeout=timeout)]
    return Reading(stored_documents(pages, database), 0, pages[0].state)


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
