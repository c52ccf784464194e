"""Transactions at the authority: reads, then a commit that is done only if they still hold.

While Firestore is the authority, a transaction is one of its own; its id holds Firestore's,
so that any sidecar can go on with it, and Firestore bounds how long it lives. While PostgreSQL
is, nothing is locked before the commit: what was read is remembered here, and compared
behind the commit's locks. A read-only one reads one snapshot instead and is never refused.
A change of authority ends all of them: ABORTED, and clients begin anew.
"""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from crossfade import wire
from crossfade.aggregate import Aggregation
from crossfade.call import Call
from crossfade.control import Control
from crossfade.document import Database, Document, Value
from crossfade.errors import (
    Aborted,
    CrossfadeError,
    FailedPrecondition,
    InvalidArgument,
    OutcomeUnknown,
    ResourceExhausted,
    Unavailable,
)
from crossfade.migrator import Migrator
from crossfade.pending import ATTEMPTS, intents_of
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.snapshot import Snapshot
from crossfade.store import (
    NOW,
    Aggregated,
    Asked,
    At,
    CommitOutcome,
    MirrorState,
    Page,
    Reading,
    Seen,
    Version,
)
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.snapshots import HeldSnapshot, Snapshots
from crossfade.stores.postgres.store import PostgresStore
from crossfade.write import Write

T = TypeVar("T")

MOST_OPEN = 10_000
MOST_READS = 1_000
MOST_QUERIES = 100
"""Of one transaction on PostgreSQL: each is looked at again by its commit."""
AGAIN_READS = 100
"""Of so many documents that were read before, each later read looks whether they still are as
they were, so that no unit of work decides upon two moments. The commit looks at all."""
LIFETIME = 270.0
IDLE = 60.0
"""Seconds, as in Firestore."""
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0
GIVE_UP_SECONDS = 2.0
_FIRESTORE, _POSTGRESQL = b"f", b"p"
"""What an id begins with; a read-only transaction's with the capital letter."""


class BeginAnew(Aborted):
    """Nothing can come of the transaction any more: what it has read is over."""


@dataclass(slots=True)
class _Open:
    """A transaction on PostgreSQL. Times are of the monotonic clock, in seconds."""

    epoch: int
    begun: float
    used: float
    snapshot: HeldSnapshot | None = None
    read_only: bool = False
    reads: dict[str, Version | None] = field(default_factory=dict)
    queries: list[Asked] = field(default_factory=list)


class Transaction:
    """What a unit of work sees: the documents as of one moment, and what it writes of them.

    `now`: microseconds, for timestamps that the operation decides. `replayed`: its request_id
    was committed before, so nothing that it writes is sent; what it returns is the answer.
    """

    def __init__(
        self, transactions: "Transactions", identity: bytes, call: Call, *, replayed: bool
    ) -> None:
        self._transactions = transactions
        self._identity = identity
        self._call = call
        self.replayed = replayed
        self.now = time.time_ns() // 1_000
        self.writes: list[Write] = []

    async def get(self, path: str) -> Document | None:
        return (await self.get_all([path]))[0]

    async def get_all(self, paths: Sequence[str]) -> list[Document | None]:
        """The documents at the paths, in their order."""
        if not paths:
            return []
        reading = await self._transactions.get(self._identity, paths, self._call)
        return [
            None if stored.data is None else self._parsed(stored.data)
            for stored in reading.documents
        ]

    async def find(self, query: Query) -> list[Document]:
        """The query's documents, in its order. No other transaction can add or take one
        before this one's commit."""
        found: list[Document] = []
        async for page in self._transactions.query(self._identity, query, self._call):
            found += map(self._parsed, _documents(page))
        return found

    def write(self, *writes: Write) -> None:
        """Sent at the commit. What is written here is not seen by later reads."""
        self.writes += writes

    def _parsed(self, data: bytes) -> Document:
        return wire.parse_document(data, self._transactions.database)


class Transactions:
    """Transactions of a sidecar. `firestore` and `postgres` are None where it runs without."""

    def __init__(
        self,
        control: Control,
        migrator: Migrator,
        database: Database,
        firestore: FirestoreStore | None,
        postgres: PostgresStore | None,
        snapshots: Snapshots | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._migrator = migrator
        self.database = database
        self._firestore = firestore
        self._postgres = postgres
        self._snapshots = snapshots
        self._clock = clock
        self._open: dict[bytes, _Open] = {}

    def __len__(self) -> int:
        """How many are open on PostgreSQL."""
        return len(self._open)

    # --- a unit of work -----------------------------------------------------------------------

    async def run(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        call: Call,
        *,
        request_id: str | None = None,
    ) -> T:
        """Runs `work` in a transaction and commits what it wrote; again, with pauses, as long
        as others get in its way and the deadline is not over. What `work` raises ends it."""
        pause, earlier = FIRST_PAUSE, None
        while True:
            # Asked before it begins: what is known as done then is seen by what it reads.
            replayed, attempt = await self._known(request_id, call)
            identity = await self.begin(call, retry=earlier)
            done = False
            wait = 0.0
            try:
                transaction = Transaction(self, identity, call, replayed=replayed)
                result = await work(transaction)
                if replayed:
                    return result
                done = True
                outcome = await self._commit(
                    identity, transaction.writes, call, request_id, attempt
                )
                if not outcome.replayed:
                    return result
                # The same request was done meanwhile: not by what was decided here, so the
                # answer is what it leads to with that known.
                earlier = None
            except Aborted:
                earlier = identity
                wait = pause * random.uniform(0.5, 1)  # noqa: S311 - so that two do not meet again
                if call.deadline - time.monotonic() <= wait:
                    raise
            finally:
                if not done:
                    await self._let_go(identity)
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _known(self, request_id: str | None, call: Call) -> tuple[bool, int]:
        """Whether the request was committed before, and which of its intents to try next."""
        if request_id is None:
            return False, 0
        snapshot = await self._control.admit(call.left)
        intents = intents_of(request_id)
        if snapshot.authority is StoreName.POSTGRESQL:
            return await self.postgres.was_done(intents, timeout=call.left()), 0
        states = await self._needs_firestore().intent_states(intents, timeout=call.left())
        free = [number for number, state in enumerate(states) if state != "revoked"]
        return "applied" in states, free[0] if free else ATTEMPTS - 1

    async def _let_go(self, identity: bytes) -> None:
        """Ends a transaction that is not committed, whatever happens to its caller. One that
        cannot be told of it runs out by itself."""

        async def end() -> None:
            with suppress(CrossfadeError, TimeoutError):
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    await self._end(identity, GIVE_UP_SECONDS)

        await asyncio.shield(asyncio.ensure_future(end()))

    # --- begin and end ------------------------------------------------------------------------

    async def begin(
        self,
        call: Call,
        *,
        read_only: bool = False,
        read_time: int | None = None,
        retry: bytes | None = None,
    ) -> bytes:
        """The id of a new transaction. `read_time` (microseconds): what a read-only one sees;
        `retry`: the one whose place it takes. Raises InvalidArgument, FailedPrecondition (a
        time that is not kept), ResourceExhausted."""
        snapshot = await self._control.admit(call.left)
        epoch = snapshot.epoch.to_bytes(8, "big")
        if snapshot.authority is StoreName.FIRESTORE:
            earlier = None
            if retry is not None and retry[:1].lower() == _FIRESTORE:
                earlier = retry[9:]
            handle = await self._needs_firestore().begin(
                timeout=call.left(), read_only=read_only, read_time=read_time, retry=earlier
            )
            return (_FIRESTORE.upper() if read_only else _FIRESTORE) + epoch + handle
        if retry is not None:
            await self._end(retry, call.left())
        if read_time is not None:
            raise _no_past(read_time)
        await self._make_room()
        now = self._clock()
        opened = _Open(snapshot.epoch, now, now, read_only=read_only)
        if read_only:
            opened.snapshot = await self._needs_snapshots().open(call.left())
            if opened.snapshot.epoch != snapshot.epoch:
                await opened.snapshot.close()
                raise _epoch_over()
        kind = _POSTGRESQL.upper() if read_only else _POSTGRESQL
        identity = kind + epoch + secrets.token_bytes(16)
        self._open[identity] = opened
        return identity

    def adopt(self, snapshot: HeldSnapshot) -> bytes:
        """A read-only transaction of a snapshot that somebody else has opened; ending it closes
        the snapshot."""
        now = self._clock()
        identity = _POSTGRESQL.upper() + snapshot.epoch.to_bytes(8, "big") + secrets.token_bytes(16)
        self._open[identity] = _Open(snapshot.epoch, now, now, snapshot, read_only=True)
        return identity

    async def end(self, transaction: bytes) -> None:
        """`rollback` without a call's deadline."""
        await self._let_go(transaction)

    async def rollback(self, transaction: bytes, call: Call) -> None:
        """Ends a transaction. One that is over already is none the worse."""
        await self._end(transaction, call.left())

    async def _end(self, identity: bytes, timeout: float) -> None:
        if identity[:1].lower() == _FIRESTORE and self._firestore is not None:
            await self._firestore.rollback(identity[9:], timeout=timeout)
            return
        await self._forget(identity)

    async def _forget(self, identity: bytes) -> None:
        opened = self._open.pop(identity, None)
        if opened is not None and opened.snapshot is not None:
            await opened.snapshot.close()

    async def _make_room(self) -> None:
        if len(self._open) >= MOST_OPEN:
            await self.sweep()
        if len(self._open) >= MOST_OPEN:
            raise ResourceExhausted(
                f"transaction: {MOST_OPEN} transactions are open, the limit of this sidecar"
            )

    async def sweep(self) -> None:
        """Ends what was left open for too long."""
        now = self._clock()
        for identity in [name for name, opened in self._open.items() if _over(opened, now)]:
            await self._forget(identity)

    async def run_sweeps(self) -> None:
        """Runs for ever."""
        while True:
            await asyncio.sleep(IDLE / 4)
            await self.sweep()

    async def _current(self, transaction: bytes, call: Call) -> Snapshot:
        """The snapshot that stands, if the transaction is of its epoch. Raises Aborted where the
        authority has changed since, InvalidArgument for what is no transaction."""
        epoch = int.from_bytes(transaction[1:9], "big")
        if len(transaction) <= 9 or transaction[:1].lower() not in {_FIRESTORE, _POSTGRESQL}:
            raise _unknown()
        snapshot = await self._control.admit(call.left)
        if snapshot.epoch < epoch:
            await self._control.catch_up(call.left)
            snapshot = await self._control.admit(call.left)
        if snapshot.epoch != epoch:
            await self._let_go(transaction)
            raise _epoch_over()
        kind = transaction[:1].lower()
        if (snapshot.authority is StoreName.FIRESTORE) != (kind == _FIRESTORE):
            raise _unknown()
        return snapshot

    async def _use(self, transaction: bytes) -> _Open:
        """An open transaction on PostgreSQL."""
        opened = self._open.get(transaction)
        now = self._clock()
        if opened is not None and _over(opened, now):
            await self._forget(transaction)
            opened = None
        if opened is None:
            raise _unknown()
        opened.used = now
        return opened

    # --- reads --------------------------------------------------------------------------------

    async def get(self, transaction: bytes, paths: Sequence[str], call: Call) -> Reading:
        """The documents as the transaction sees them. Raises Aborted where it can only be
        begun anew, InvalidArgument where it is over."""
        snapshot = await self._current(transaction, call)
        if snapshot.authority is StoreName.FIRESTORE:
            at = At(transaction=transaction[9:])
            return await self._needs_firestore().get(paths, timeout=call.left(), at=at)
        opened = await self._use(transaction)
        if opened.snapshot is not None:
            return await opened.snapshot.get(paths, call.left())
        known = opened.reads if len(opened.reads) <= AGAIN_READS else {}
        asked = list(dict.fromkeys([*paths, *known]))
        if len(opened.reads) + len(paths) > MOST_READS:
            raise InvalidArgument(
                f"transaction: it read {MOST_READS} documents, the limit of a transaction here"
            )
        reading = await self.postgres.get(asked, timeout=call.left())
        _check_epoch(opened, reading.state)
        found = {stored.path: stored for stored in reading.documents}
        for path, stored in found.items():
            if opened.reads.setdefault(path, stored.version) != stored.version:
                await self._forget(transaction)
                raise BeginAnew(f"document {path} has changed since the transaction read it")
        return Reading(tuple(found[path] for path in paths), reading.read_time, reading.state)

    async def query(self, transaction: bytes, query: Query, call: Call) -> AsyncIterator[Page]:
        """The query's pages as the transaction sees them."""
        snapshot = await self._current(transaction, call)
        if snapshot.authority is StoreName.FIRESTORE:
            at = At(transaction=transaction[9:])
            firestore = self._needs_firestore()
            async for page in firestore.query(query, timeout=call.left(), at=at):
                yield page
            return
        opened = await self._use(transaction)
        if opened.snapshot is not None:
            async for page in opened.snapshot.query(query, call.left()):
                yield page
            return
        pages: list[Page] = []
        result: list[tuple[str, int]] = []
        async for page in self.postgres.query(query, timeout=call.left()):
            if page.state is not None:
                _check_epoch(opened, page.state)
            pages.append(page)
            result += map(wire.identity_of, _documents(page))
        _remember(opened, Asked(query, tuple(result)))
        for page in pages:
            yield page

    async def aggregate(
        self, transaction: bytes, query: Query, aggregations: Sequence[Aggregation], call: Call
    ) -> tuple[dict[str, Value], int]:
        """The aggregations by alias, and the time of the read."""
        snapshot = await self._current(transaction, call)
        if snapshot.authority is StoreName.FIRESTORE:
            found = await self._needs_firestore().aggregate(
                query, aggregations, timeout=call.left(), at=At(transaction=transaction[9:])
            )
            return found.values, found.read_time
        opened = await self._use(transaction)
        if opened.snapshot is not None:
            found = await opened.snapshot.aggregate(query, aggregations, call.left())
            return found.values, found.read_time
        found = await self.postgres.aggregate(query, aggregations, timeout=call.left())
        _check_epoch(opened, found.state)
        _remember(opened, Asked(query, found.result, tuple(aggregations)))
        return found.values, found.read_time

    # --- reads of a past moment ---------------------------------------------------------------

    async def get_at(self, read_time: int, paths: Sequence[str], call: Call) -> Reading:
        """The documents as they were at a time, in microseconds. PostgreSQL keeps no past: there
        it is FailedPrecondition where one of them has changed since."""
        at = At(read_time=read_time)
        snapshot = await self._control.admit(call.left)
        if snapshot.authority is StoreName.FIRESTORE:
            return await self._needs_firestore().get(paths, timeout=call.left(), at=at)
        reading = await self.postgres.get(paths, timeout=call.left())
        self._check_state(reading.state)
        if read_time > reading.read_time:
            raise InvalidArgument("read_time: it cannot be in the future")
        if any(s.version is not None and s.version[1] > read_time for s in reading.documents):
            raise _no_past(read_time)
        return Reading(reading.documents, read_time, reading.state)

    async def query_authority(self, query: Query, call: Call, at: At = NOW) -> AsyncIterator[Page]:
        """A query's pages by the authority, as nobody routes it: of all collections, or of the
        past."""
        firestore = await self.at_authority(call, at)
        if firestore is not None:
            async for page in firestore.query(query, timeout=call.left(), at=at):
                yield page
            return
        async for page in self.postgres.query(query, timeout=call.left()):
            self._check_state(page.state)
            yield page

    async def aggregate_authority(
        self, query: Query, aggregations: Sequence[Aggregation], call: Call, at: At = NOW
    ) -> Aggregated:
        """The same for aggregations."""
        firestore = await self.at_authority(call, at)
        if firestore is not None:
            return await firestore.aggregate(query, aggregations, timeout=call.left(), at=at)
        found = await self.postgres.aggregate(query, aggregations, timeout=call.left())
        self._check_state(found.state)
        return found

    def _check_state(self, state: MirrorState | None) -> None:
        if state is not None and not self._control.snapshot.current(state):
            raise Unavailable("the authority is changing")

    async def at_authority(self, call: Call, at: At = NOW) -> FirestoreStore | None:
        """The Firestore to ask for something that is asked of the authority alone; None where
        that is PostgreSQL. Raises FailedPrecondition there for a read_time."""
        snapshot = await self._control.admit(call.left)
        if snapshot.authority is StoreName.FIRESTORE:
            return self._needs_firestore()
        if at.read_time is not None:
            raise _no_past(at.read_time)
        return None

    # --- commit -------------------------------------------------------------------------------

    async def commit(
        self,
        transaction: bytes,
        writes: Sequence[Write],
        call: Call,
        request_id: str | None = None,
    ) -> CommitOutcome:
        """All writes or none; the transaction is over then. Raises Aborted when what it read
        has changed."""
        return await self._commit(transaction, writes, call, request_id, 0)

    async def _commit(
        self,
        transaction: bytes,
        writes: Sequence[Write],
        call: Call,
        request_id: str | None,
        attempt: int,
    ) -> CommitOutcome:
        snapshot = await self._current(transaction, call)
        if snapshot.authority is StoreName.FIRESTORE:
            handle = transaction[9:]
            if not writes:
                return await self._needs_firestore().commit(
                    writes, timeout=call.left(), transaction=handle
                )
            seen = Seen(snapshot.epoch, handle, attempt=attempt)
            try:
                return await self._migrator.commit(writes, call, request_id, seen)
            except OutcomeUnknown:
                raise
            except CrossfadeError:
                # Perhaps it was not even sent, and Firestore would hold what it read.
                await self._let_go(transaction)
                raise
        opened = await self._use(transaction)
        if opened.read_only and writes:
            raise InvalidArgument("transaction: a read-only transaction cannot write")
        await self._forget(transaction)
        if opened.read_only:
            return CommitOutcome((), time.time_ns() // 1_000)
        seen = Seen(opened.epoch, None, tuple(opened.reads.items()), tuple(opened.queries))
        if not writes:
            # What was read together has been so together, or this is Aborted.
            return await self.postgres.commit(writes, timeout=call.left(), seen=seen)
        return await self._migrator.commit(writes, call, request_id, seen)

    # --- the stores ---------------------------------------------------------------------------

    def _needs_firestore(self) -> FirestoreStore:
        if self._firestore is None:
            raise Unavailable("this sidecar runs without Firestore")
        return self._firestore

    @property
    def postgres(self) -> PostgresStore:
        if self._postgres is None:
            raise Unavailable("this sidecar runs without PostgreSQL")
        return self._postgres

    def _needs_snapshots(self) -> Snapshots:
        if self._snapshots is None:
            raise Unavailable("this sidecar runs without PostgreSQL")
        return self._snapshots


def _documents(page: Page) -> list[bytes]:
    """The documents in a page's frames."""
    return [
        data for number, data in wire.scan(page.frames) if number == 1 and isinstance(data, bytes)
    ]


def _remember(opened: _Open, asked: Asked) -> None:
    if len(opened.queries) >= MOST_QUERIES:
        raise InvalidArgument(
            f"transaction: it ran {MOST_QUERIES} queries, the limit of a transaction here"
        )
    opened.queries.append(asked)


def _check_epoch(opened: _Open, state: MirrorState | None) -> None:
    if state is not None and state.epoch != opened.epoch:
        raise _epoch_over()


def _over(opened: _Open, now: float) -> bool:
    return now > opened.begun + LIFETIME or now > opened.used + IDLE


def reads_only(transaction: bytes) -> bool:
    """Whether an id is that of a read-only transaction."""
    return transaction[:1].isupper()


def _unknown() -> InvalidArgument:
    return InvalidArgument(
        "transaction: the referenced transaction has expired or is no longer valid"
    )


def _epoch_over() -> BeginAnew:
    return BeginAnew("the authority has changed since the transaction began; begin it anew")


def _no_past(read_time: int) -> CrossfadeError:
    if read_time > time.time_ns() // 1_000:
        return InvalidArgument("read_time: it cannot be in the future")
    return FailedPrecondition(
        "read_time: PostgreSQL is the authority and keeps no earlier versions of documents"
    )
