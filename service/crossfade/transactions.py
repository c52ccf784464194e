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
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from crossfade import wire
from crossfade.aggregate import Aggregation
from crossfade.authority import Authority, no_past
from crossfade.call import Call
from crossfade.controls import Controls
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
from crossfade.groups import DEFAULT, Groups
from crossfade.identities import FIRESTORE, UNBOUND, Identities, kind_of
from crossfade.migrator import Documents, spans
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.store import (
    Asked,
    At,
    CommitOutcome,
    MirrorState,
    Page,
    Reading,
    Seen,
    Version,
)
from crossfade.stores.postgres.snapshots import HeldSnapshot, Snapshots
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


class BeginAnew(Aborted):
    """Nothing can come of the transaction any more: what it has read is over."""


@dataclass(slots=True)
class _Open:
    """A transaction on PostgreSQL. Times are of the monotonic clock, in seconds. `epochs` by
    group; `touched`: the groups that it has read."""

    epochs: Mapping[str, int]
    begun: float
    used: float
    snapshot: HeldSnapshot | None = None
    read_only: bool = False
    reads: dict[str, Version | None] = field(default_factory=dict)
    queries: list[Asked] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Unbound:
    """A transaction that was begun while groups have different authorities, and the one that it
    has become with the first thing that it touched."""

    begun: float
    used: float
    read_only: bool
    read_time: int | None
    retry: bytes | None
    bound: bytes | None = None


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
    """Transactions of a sidecar. `snapshots` None: it runs without PostgreSQL."""

    def __init__(
        self,
        groups: Groups,
        controls: Controls,
        documents: Documents,
        database: Database,
        authority: Authority,
        snapshots: Snapshots | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._groups = groups
        self._controls = controls
        self._several = len(controls) > 1
        self._identities = Identities([group.name for group in groups.all])
        self._documents = documents
        self.database = database
        self.authority = authority
        self._snapshots = snapshots
        self._clock = clock
        self._open: dict[bytes, _Open] = {}
        self._unbound: dict[bytes, _Unbound] = {}
        self._touched: OrderedDict[bytes, set[str]] = OrderedDict()
        """What transactions of Firestore's have read here, by group, where there are several."""

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
            replayed, attempt = await self.authority.known(request_id, call)
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
        call.check_unpinned()
        if not self._several:
            snapshot = await self._controls[DEFAULT].admit(call.left)
            epochs = {DEFAULT: snapshot.epoch}
            return await self._begin_at(
                snapshot.authority, epochs, call, read_only, read_time, retry
            )
        # What it will touch is not known yet, so no group is waited for.
        snapshots = {name: control.snapshot for name, control in self._controls.items()}
        epochs = {name: snapshot.epoch for name, snapshot in snapshots.items()}
        authorities = {snapshot.authority for snapshot in snapshots.values()}
        if len(authorities) == 1:
            return await self._begin_at(
                authorities.pop(), epochs, call, read_only, read_time, retry
            )
        await self._make_room()
        now = self._clock()
        tail = secrets.token_bytes(16)
        identity = self._identities.make(None, epochs, tail, read_only=read_only)
        earlier = self._unbound.pop(retry, None) if retry is not None else None
        if earlier is not None:
            retry = earlier.bound
        self._unbound[identity] = _Unbound(now, now, read_only, read_time, retry)
        return identity

    async def _begin_at(
        self,
        authority: StoreName,
        epochs: Mapping[str, int],
        call: Call,
        read_only: bool,
        read_time: int | None,
        retry: bytes | None,
    ) -> bytes:
        if authority is StoreName.FIRESTORE:
            earlier = None
            if retry is not None and kind_of(retry) == FIRESTORE:
                earlier = self._identities.handle(retry)
            handle = await self.authority.needs_firestore().begin(
                timeout=call.left(), read_only=read_only, read_time=read_time, retry=earlier
            )
            identity = self._identities.make(authority, epochs, handle, read_only=read_only)
            self._note(identity, ())
            return identity
        if retry is not None:
            await self._end(retry, call.left())
        if read_time is not None:
            raise no_past(read_time)
        await self._make_room()
        now = self._clock()
        opened = _Open(epochs, now, now, read_only=read_only)
        if read_only:
            opened.snapshot = await self._needs_snapshots().open(call.left())
            if any(
                opened.snapshot.epochs.get(name) != epochs[name]
                for name in self.authority.led_by(authority)
            ):
                await opened.snapshot.close()
                raise _epoch_over()
        identity = self._identities.make(
            authority, epochs, secrets.token_bytes(16), read_only=read_only
        )
        self._open[identity] = opened
        return identity

    def adopt(self, snapshot: HeldSnapshot) -> bytes:
        """A read-only transaction of a snapshot that somebody else has opened; ending it closes
        the snapshot."""
        now = self._clock()
        epochs = {name: snapshot.epochs.get(name, 0) for name in self._controls}
        identity = self._identities.make(
            StoreName.POSTGRESQL, epochs, secrets.token_bytes(16), read_only=True
        )
        self._open[identity] = _Open(epochs, now, now, snapshot, read_only=True)
        return identity

    async def end(self, transaction: bytes) -> None:
        """`rollback` without a call's deadline."""
        await self._let_go(transaction)

    async def rollback(self, transaction: bytes, call: Call) -> None:
        """Ends a transaction. One that is over already is none the worse."""
        await self._end(transaction, call.left())

    async def _end(self, identity: bytes, timeout: float) -> None:
        unbound = self._unbound.pop(identity, None)
        if unbound is not None:
            if unbound.bound is not None:
                await self._end(unbound.bound, timeout)
            return
        self._touched.pop(identity, None)
        firestore = self.authority.firestore
        if kind_of(identity) == FIRESTORE and firestore is not None:
            handle = self._identities.handle(identity)
            await firestore.rollback(handle, timeout=timeout)
            return
        await self._forget(identity)

    async def _forget(self, identity: bytes) -> None:
        opened = self._open.pop(identity, None)
        if opened is not None and opened.snapshot is not None:
            await opened.snapshot.close()

    async def _make_room(self) -> None:
        if len(self._open) + len(self._unbound) >= MOST_OPEN:
            await self.sweep()
        if len(self._open) + len(self._unbound) >= MOST_OPEN:
            raise ResourceExhausted(
                f"transaction: {MOST_OPEN} transactions are open, the limit of this sidecar"
            )

    async def sweep(self) -> None:
        """Ends what was left open for too long."""
        now = self._clock()
        for identity in [name for name, opened in self._open.items() if _over(opened, now)]:
            await self._forget(identity)
        for identity in [name for name, begun in self._unbound.items() if _over(begun, now)]:
            await self._let_go(identity)

    async def run_sweeps(self) -> None:
        """Runs for ever."""
        while True:
            await asyncio.sleep(IDLE / 4)
            await self.sweep()

    async def _current(
        self, transaction: bytes, touched: Sequence[str], call: Call
    ) -> tuple[bytes, StoreName]:
        """The transaction at its authority, which it stands at: all groups that are touched now
        are of the epochs in which it began. Raises Aborted where an authority has changed since,
        FailedPrecondition where one is another than the transaction's, InvalidArgument for what
        is no transaction."""
        if not self._identities.legal(transaction):
            raise _unknown()
        epochs = self._identities.epochs(transaction)
        snapshots = await self._controls.admit(touched, call.left)
        late = [name for name, snapshot in snapshots.items() if snapshot.epoch < epochs[name]]
        if late:
            for name in late:
                await self._controls[name].catch_up(call.left)
            snapshots = await self._controls.admit(touched, call.left)
        if any(snapshot.epoch != epochs[name] for name, snapshot in snapshots.items()):
            await self._let_go(transaction)
            raise _epoch_over()
        authority, *others = {snapshot.authority for snapshot in snapshots.values()}
        if others:
            raise self._spans(touched)
        if kind_of(transaction) == UNBOUND:
            transaction = await self._bound(transaction, authority, call)
        mine = StoreName.FIRESTORE if kind_of(transaction) == FIRESTORE else StoreName.POSTGRESQL
        if authority is not mine:
            if self._several:
                raise self._spans(self._controls)
            raise _unknown()
        return transaction, mine

    async def _bound(self, identity: bytes, authority: StoreName, call: Call) -> bytes:
        """What a transaction has become that was begun without an authority."""
        unbound = self._unbound.get(identity)
        if unbound is None or _over(unbound, self._clock()):
            raise _unknown()
        unbound.used = self._clock()
        if unbound.bound is None:
            epochs = self._identities.epochs(identity)
            unbound.bound = await self._begin_at(
                authority, epochs, call, unbound.read_only, unbound.read_time, unbound.retry
            )
        return unbound.bound

    def _spans(self, names: Iterable[str]) -> FailedPrecondition:
        return FailedPrecondition(
            spans("the transaction", [self._controls[name] for name in names])
        )

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
        touched = self._groups.spanned(paths)
        transaction, authority = await self._current(transaction, touched, call)
        call.served(authority.value)
        if authority is StoreName.FIRESTORE:
            at = At(transaction=self._note(transaction, touched))
            return await self.authority.needs_firestore().get(paths, timeout=call.left(), at=at)
        opened = await self._use(transaction)
        opened.touched.update(touched)
        if opened.snapshot is not None:
            return await opened.snapshot.get(paths, call.left())
        known = opened.reads if len(opened.reads) <= AGAIN_READS else {}
        asked = list(dict.fromkeys([*paths, *known]))
        if len(opened.reads) + len(paths) > MOST_READS:
            raise InvalidArgument(
                f"transaction: it read {MOST_READS} documents, the limit of a transaction here"
            )
        reading = await self.authority.postgres_of(touched[0]).get(asked, timeout=call.left())
        await self._check_epochs(opened, touched[0], reading.state)
        found = {stored.path: stored for stored in reading.documents}
        for path, stored in found.items():
            if opened.reads.setdefault(path, stored.version) != stored.version:
                await self._forget(transaction)
                raise BeginAnew(f"document {path} has changed since the transaction read it")
        return Reading(tuple(found[path] for path in paths), reading.read_time, reading.state)

    async def query(self, transaction: bytes, query: Query, call: Call) -> AsyncIterator[Page]:
        """The query's pages as the transaction sees them."""
        touched = self.authority.reached(query)
        transaction, authority = await self._current(transaction, touched, call)
        call.served(authority.value)
        if authority is StoreName.FIRESTORE:
            at = At(transaction=self._note(transaction, touched))
            firestore = self.authority.needs_firestore()
            async for page in firestore.query(query, timeout=call.left(), at=at):
                yield page
            return
        opened = await self._use(transaction)
        if opened.snapshot is not None:
            async for page in opened.snapshot.query(query, call.left()):
                yield page
            return
        opened.touched.update(touched)
        pages: list[Page] = []
        result: list[tuple[str, int]] = []
        async for page in self.authority.postgres_of(touched[0]).query(query, timeout=call.left()):
            if page.state is not None:
                await self._check_epochs(opened, touched[0], page.state)
            pages.append(page)
            result += map(wire.identity_of, _documents(page))
        _remember(opened, Asked(query, tuple(result)))
        for page in pages:
            yield page

    async def aggregate(
        self, transaction: bytes, query: Query, aggregations: Sequence[Aggregation], call: Call
    ) -> tuple[dict[str, Value], int]:
        """The aggregations by alias, and the time of the read."""
        touched = self.authority.reached(query)
        transaction, authority = await self._current(transaction, touched, call)
        call.served(authority.value)
        if authority is StoreName.FIRESTORE:
            at = At(transaction=self._note(transaction, touched))
            found = await self.authority.needs_firestore().aggregate(
                query, aggregations, timeout=call.left(), at=at
            )
            return found.values, found.read_time
        opened = await self._use(transaction)
        if opened.snapshot is not None:
            found = await opened.snapshot.aggregate(query, aggregations, call.left())
            return found.values, found.read_time
        opened.touched.update(touched)
        postgres = self.authority.postgres_of(touched[0])
        found = await postgres.aggregate(query, aggregations, timeout=call.left())
        await self._check_epochs(opened, touched[0], found.state)
        _remember(opened, Asked(query, found.result, tuple(aggregations)))
        return found.values, found.read_time

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
        whole, transaction = transaction, self._at_its_authority(transaction)
        written = self._groups.spanned(write.path for write in writes)
        if kind_of(transaction) == UNBOUND and not written:
            await self._end(whole, call.left())  # nothing was done in it
            return CommitOutcome((), time.time_ns() // 1_000)
        transaction, authority = await self._current(
            transaction, written or self._read_by(transaction), call
        )
        self._unbound.pop(whole, None)
        epochs = self._identities.epochs(transaction)
        if authority is StoreName.FIRESTORE:
            read = self._read_by(transaction)
            self._touched.pop(transaction, None)
            handle = self._identities.handle(transaction)
            try:
                await self._hold(
                    handle, [name for name in read if name not in written], epochs, call
                )
                if not writes:
                    return await self.authority.needs_firestore().commit(
                        writes, timeout=call.left(), transaction=handle
                    )
                own = {name: epochs[name] for name in written}
                seen = Seen(
                    epochs[written[0]], handle, attempt=attempt, epochs=self._if_several(own)
                )
                outcome = await self._documents.commit(writes, call, request_id, seen)
            except OutcomeUnknown:
                raise
            except CrossfadeError:
                # Perhaps it was not even sent, and Firestore would hold what it read.
                await self._let_go(transaction)
                raise
            if outcome.replayed:
                # Done before, and so refused now, which ends nothing: Firestore would hold what
                # it read until it runs out.
                await self._let_go(transaction)
            return outcome
        opened = await self._use(transaction)
        if opened.read_only and writes:
            raise InvalidArgument("transaction: a read-only transaction cannot write")
        await self._forget(transaction)
        if opened.read_only:
            return CommitOutcome((), time.time_ns() // 1_000)
        names = dict.fromkeys([*written, *sorted(opened.touched)])
        own = {name: epochs[name] for name in names}
        seen = Seen(
            epochs[next(iter(names), DEFAULT)],
            None,
            tuple(opened.reads.items()),
            tuple(opened.queries),
            epochs=self._if_several(own),
        )
        if not writes:
            # What was read together has been so together, or this is Aborted.
            return await self.authority.postgres.commit(writes, timeout=call.left(), seen=seen)
        return await self._documents.commit(writes, call, request_id, seen)

    # --- groups -------------------------------------------------------------------------------

    def _if_several(self, epochs: dict[str, int]) -> dict[str, int]:
        return epochs if self._several else {}

    def _at_its_authority(self, transaction: bytes) -> bytes:
        unbound = self._unbound.get(transaction)
        return transaction if unbound is None or unbound.bound is None else unbound.bound

    def _note(self, transaction: bytes, touched: Iterable[str]) -> bytes:
        """Firestore's own id of a transaction that reads these groups now."""
        if self._several:
            self._touched.setdefault(transaction, set()).update(touched)
            self._touched.move_to_end(transaction)
            if len(self._touched) > MOST_OPEN:
                self._touched.popitem(last=False)
        return self._identities.handle(transaction)

    def _read_by(self, transaction: bytes) -> list[str]:
        """The groups that a transaction of Firestore's may have read: those that it is known
        to have read here, and if it was not here, any that Firestore decides."""
        if kind_of(transaction) != FIRESTORE:
            opened = self._open.get(transaction)
            return sorted(opened.touched) if opened is not None and opened.touched else [DEFAULT]
        if not self._several:
            return [DEFAULT]
        known = self._touched.get(transaction)
        return self.authority.led_by(StoreName.FIRESTORE) if known is None else sorted(known)

    async def _hold(
        self, handle: bytes, names: Sequence[str], epochs: Mapping[str, int], call: Call
    ) -> None:
        """The groups that a transaction has read and does not write stay at Firestore until it
        is committed: it reads their control documents, so a change of authority is after it,
        or it is refused. For those that it writes its pending rows see to that."""
        for name in names if self._several else ():
            lease = self._controls[name].lease
            if lease is None:
                continue
            document = await lease.fences.read_in(handle, timeout=call.left())
            if not document.open or document.epoch != epochs[name]:
                raise _epoch_over()

    async def _check_epochs(self, opened: _Open, group: str, state: MirrorState | None) -> None:
        """The groups of a read are of the epochs in which the transaction began. `state` is
        that of one of them, by the read's own statement; an epoch that stands after the read
        stood while it was read."""
        if state is not None and state.epoch != opened.epochs[group]:
            raise _epoch_over()
        for name in opened.touched if self._several else ():
            if (
                name != group
                and (await self._controls[name].refresh()).epoch != opened.epochs[name]
            ):
                raise _epoch_over()

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


def _over(opened: "_Open | _Unbound", now: float) -> bool:
    return now > opened.begun + LIFETIME or now > opened.used + IDLE


def _unknown() -> InvalidArgument:
    return InvalidArgument(
        "transaction: the referenced transaction has expired or is no longer valid"
    )


def _epoch_over() -> BeginAnew:
    return BeginAnew("the authority has changed since the transaction began; begin it anew")
