"""Open transactions: what each one read, so that its commit can tell whether that still holds.

A transaction reads the state of the moment at which it began. Its commit is done if all
that it read is still so, which is as if it had happened as a whole at the commit; else
it is ABORTED, and clients try again. Nothing is locked, so nobody waits for a client
that vanished (docs/adr/0008).
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from crossfade import query as queries
from crossfade.document import Document
from crossfade.errors import InvalidArgument, ResourceExhausted
from crossfade.query import Order, Query

MOST_OPEN = 10_000
MOST_QUERIES = 1_000
"""Of one transaction."""
LIFETIME = 270_000_000
IDLE = 60_000_000
"""Microseconds, as in Firestore."""


@dataclass(slots=True)
class Transaction:
    """`read_time`: the moment that all its reads see. Times are microseconds."""

    read_only: bool
    read_time: int
    begun: int
    used: int
    _keys: set[bytes] = field(default_factory=set)
    _prefixes: set[bytes] = field(default_factory=set)
    _queries: list[tuple[Query, tuple[Order, ...]]] = field(default_factory=list)

    def saw(self, key: bytes) -> None:
        """It read a document, or that there is none."""
        if not self.read_only:
            self._keys.add(key)

    def saw_below(self, prefix: bytes) -> None:
        """It read the names that begin with a prefix."""
        if not self.read_only:
            self._prefixes.add(prefix)

    def saw_query(self, query: Query, orders: tuple[Order, ...]) -> None:
        if self.read_only:
            return
        if len(self._queries) >= MOST_QUERIES:
            raise InvalidArgument(
                f"transaction: it ran {MOST_QUERIES} queries, the limit of this server"
            )
        self._queries.append((query, orders))

    def met(self, key: bytes, states: tuple[Document | None, Document | None]) -> bool:
        """Whether a change, from the first state to the second, touches what it read: also
        what it did *not* find (a phantom). Of a query that is cut by a limit, any match."""
        if key in self._keys or any(key.startswith(prefix) for prefix in self._prefixes):
            return True
        return any(
            state is not None and queries.matcher(query, orders)(state)
            for query, orders in self._queries
            for state in states
        )


class Transactions:
    """Transactions by id. `clock` gives microseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._open: dict[bytes, Transaction] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, read_time: int, *, read_only: bool) -> bytes:
        """The id of a new transaction. Raises ResourceExhausted."""
        now = self._clock()
        if len(self._open) >= MOST_OPEN:
            self._sweep(now)
        if len(self._open) >= MOST_OPEN:
            raise ResourceExhausted(
                f"transaction: {MOST_OPEN} transactions are open, the limit of this server"
            )
        identity = secrets.token_bytes(16)
        self._open[identity] = Transaction(read_only, read_time, now, now)
        return identity

    def use(self, identity: bytes) -> Transaction:
        """An open transaction. Raises InvalidArgument."""
        transaction = self._open.get(identity)
        now = self._clock()
        if transaction is not None and _over(transaction, now):
            del self._open[identity]
            transaction = None
        if transaction is None:
            raise InvalidArgument(
                "transaction: the referenced transaction has expired or is no longer valid"
            )
        transaction.used = now
        return transaction

    def end(self, identity: bytes) -> None:
        """Forgets a transaction, if it is known."""
        self._open.pop(identity, None)

    def _sweep(self, now: int) -> None:
        for identity in [i for i, open_ in self._open.items() if _over(open_, now)]:
            del self._open[identity]


def _over(transaction: Transaction, now: int) -> bool:
    return now > transaction.begun + LIFETIME or now > transaction.used + IDLE
