"""The contract of a document store: what the heart asks of Firestore, PostgreSQL and memory.

One suite runs over all of them (tests/contract). What a store answers travels as
document *bytes* (a serialised Document message): Firestore's are passed through
undecoded, PostgreSQL's are built once, and only what compares or copies decodes.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from crossfade.aggregate import Aggregation
from crossfade.document import Value
from crossfade.errors import Unavailable
from crossfade.groups import Group
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.turns import Turns
from crossfade.write import Write

Version: TypeAlias = tuple[int, int]
"""(epoch, time): the epoch of the authority and its update_time, or a delete's
commit time, in microseconds. Compared in that order."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store holds at a path. `data` None: no document there.

    `version` is the document's, or its tombstone's; None where the store has
    neither. Epoch 0 where the store knows no epochs. `peer_time` is the update_time
    that the other store answered for this very version, None if not known.
    """

    path: str
    data: bytes | None
    version: Version | None
    peer_time: int | None = None


@dataclass(frozen=True, slots=True)
class At:
    """Of which moment a read is: a transaction's, a past one in microseconds, or, with
    neither, the present."""

    transaction: bytes | None = None
    read_time: int | None = None


NOW = At()


@dataclass(frozen=True, slots=True)
class MirrorState:
    """What PostgreSQL knows of its own freshness, seen by the statement that read the data.

    `pending`: something that was read, or might belong to the result, may be behind.
    """

    epoch: int
    generation: int
    pending: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """Documents of one moment, in the order of the paths that were asked for."""

    documents: tuple[Stored, ...]
    read_time: int
    state: MirrorState | None = None


PAGE_DOCUMENTS = 300
PAGE_BYTES = 1_048_576
"""A page ends when it holds so many documents or bytes: below every message limit,
and large enough that the cost of a message (25 µs) is lost in it."""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a query's result.

    `frames`: bytes of QueryReply messages, joined; protobuf reads them as one
    message with all their documents. The first page comes even when there is no
    document, and `state` is set on it (PostgreSQL only).
    """

    frames: bytes
    state: MirrorState | None = None


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """`update_time` None after a delete. One value per transform."""

    update_time: int | None
    results: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class CommitOutcome:
    """Times are microseconds. `replayed`: the request had been committed before."""

    writes: tuple[WriteOutcome, ...]
    commit_time: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Under:
    """A further group that a commit is of: what stands there has to stand on."""

    group: Group
    epoch: int
    mirrored: bool


@dataclass(frozen=True, slots=True)
class Intent:
    """One attempt at a commit, as the authority's own commit has to know it.

    Firestore writes the intent document with it; PostgreSQL checks `epoch`, keeps
    the request row and, when `mirrored`, the pending rows in the same transaction.
    `others`: ids under which the same request may have been done while the other store
    was the authority. `outbox`: there are no pending rows, PostgreSQL being away: intent
    documents stand for them until they are drained, of these paths, by their groups.
    `beside`: the groups that the commit writes, or has read, besides the first (PostgreSQL).
    """

    id: str
    epoch: int
    mirrored: bool
    request_id: str | None = None
    others: tuple[str, ...] = ()
    outbox: Mapping[str, Sequence[str]] = field(default_factory=dict)
    beside: tuple[Under, ...] = ()


Result: TypeAlias = tuple[tuple[str, int], ...]
"""What a query answered: the full name and the update_time of each document, in order."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A query of a transaction, or its aggregations, and what was found."""

    query: Query
    result: Result
    aggregations: tuple[Aggregation, ...] = ()


@dataclass(frozen=True, slots=True)
class Aggregated:
    """Aggregations by alias. PostgreSQL's have the state, and the query's documents, too."""

    values: dict[str, Value]
    read_time: int
    state: MirrorState | None = None
    result: Result = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What an open transaction has read under `epoch`, for its commit to hold on to. `epochs`:
    by group, where there are several; those of the groups that it has read.

    `transaction` is Firestore's own, which remembers all else. For PostgreSQL: paths with the
    version that was read (None: neither document nor tombstone), and queries with their results.
    `attempt`: the first intent of the commit's request_id that nobody has revoked.
    """

    epoch: int
    transaction: bytes | None = None
    reads: tuple[tuple[str, Version | None], ...] = ()
    queries: tuple[Asked, ...] = ()
    attempt: int = 0
    epochs: Mapping[str, int] = field(default_factory=dict)

    def epoch_of(self, group: str) -> int:
        return self.epochs.get(group, self.epoch)


class DocumentStore(Protocol):
    """A store of documents. Paths are relative and legal; timeouts are seconds, always given.

    Every method raises the errors of `crossfade.errors` and no driver's own. A
    store that cannot be asked raises InfrastructureError and never answers "not
    found" or "empty" instead.
    """

    @property
    def name(self) -> StoreName: ...

    async def get(
        self, paths: Sequence[str], *, timeout: float, turns: Turns | None = None
    ) -> Reading:
        """The documents at the paths, all of one moment. Duplicates are answered twice. With
        `turns` they are decoded in those, because nobody waits for them."""
        ...

    def query(self, query: Query, *, timeout: float) -> AsyncIterator[Page]:
        """The query's result in order, at least one page. Raises InvalidArgument
        for a query that Firestore refuses."""
        ...

    async def commit(
        self, writes: Sequence[Write], *, timeout: float, intent: Intent | None = None
    ) -> CommitOutcome:
        """All writes or none, with one time. Never retried here: a repeated
        commit can apply an increment twice. Without an intent: nothing but the writes.

        Raises AlreadyExists, NotFound, FailedPrecondition, InvalidArgument when
        nothing was done; EpochChanged (PostgreSQL) when the intent's epoch is
        over, nothing done either; InfrastructureError when that is not known.
        """
        ...

    async def close(self) -> None: ...


class Aggregating(Protocol):
    """A store that computes aggregations itself."""

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], *, timeout: float
    ) -> Aggregated:
        """Over the documents that the query finds. Raises InvalidArgument."""
        ...


class Stores(dict[StoreName, DocumentStore]):
    """The stores of a sidecar by name; asking for one it runs without is UNAVAILABLE."""

    def __missing__(self, name: StoreName) -> DocumentStore:
        raise Unavailable(f"this sidecar runs without {name.value}")
