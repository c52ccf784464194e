"""Verdicts: what it means that the two stores answered differently. No I/O.

Firestore knows the present state and its `update_time`; PostgreSQL knows versions, which
only rise, also those of deleted documents, and whether a path is pending. So one kind
of evidence suffices for both directions: Firestore's state, seen *between* two looks at
PostgreSQL that agree with each other and show nothing pending. A write that Firestore
had applied by then was pending before, and is neither pending nor put at the second
look only if the rule of pending rows has a hole. Races never look like that.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from math import isclose

from crossfade.aggregate import Aggregation
from crossfade.diff import MAX_DIFFERENCES, Difference, Kind, differences, displaced
from crossfade.document import Database, Document, Value, identical
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.rules import Rule, sift
from crossfade.store import Stored
from crossfade.tracing import Trace
from crossfade.wire import parse_document
from crossfade_api.v1 import document_pb2

SUM_TOLERANCE = 1e-9
"""Sums of doubles depend on the order of the documents, which nobody promises."""


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
class Totals:
    """An aggregation that was asked for."""

    query: Query
    aggregations: tuple[Aggregation, ...]


Asked = tuple[str, ...] | Query | Totals
"""The paths of a get, a query, or an aggregation."""


def operation_of(asked: Asked) -> str:
    if isinstance(asked, tuple):
        return "get"
    return "query" if isinstance(asked, Query) else "aggregate"


@dataclass(frozen=True, slots=True)
class Offer:
    """A read that was answered, to be compared: what was `asked`, and the `documents`, or of
    an aggregation the `totals` by alias, that the store `answered`.

    `link` is the trace of the call, where there are traces. `seconds`: how long the call of the
    store took, where that is known.
    """

    collection: str
    operation: str
    authority: StoreName
    answered: StoreName
    epoch: int
    stage: str
    asked: Asked
    documents: tuple[Stored, ...]
    link: Trace | None
    totals: Mapping[str, Value] | None = None
    seconds: float | None = None

    @property
    def size(self) -> int:
        """About how many bytes it holds while it waits."""
        held = sum(len(each.path) + len(each.data or b"") + 200 for each in self.documents)
        return held + 1_000


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict about one document, or (a query's or an aggregation's result, though all its
    documents agree) about a result; `path` is then the collection's, or a member's that is
    missing, extra or displaced.

    `firestore` and `postgres` are what was seen, without a meaning for results.
    """

    verdict: Verdict
    path: str
    differences: tuple[Difference, ...] = ()
    firestore: Stored | None = None
    postgres: Stored | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Places and kinds, never values."""
        return tuple(map(str, self.differences))


class Judge:
    """Compares contents under the rules of their collections.

    `rules` may be replaced at any time, as a whole. `behind_bound`: seconds that a mirror may
    lag unremarked. `ruled_out` counts, by (collection, rule), what the rules took away since
    it was taken last.
    """

    def __init__(
        self,
        database: Database,
        rules: Mapping[str, Sequence[Rule]] | None = None,
        behind_bound: float = 5.0,
    ) -> None:
        self._database = database
        self.rules = rules or {}
        self._bound = round(behind_bound * 1e6)
        self.ruled_out: Counter[tuple[str, str]] = Counter()

    def take_ruled_out(self) -> Counter[tuple[str, str]]:
        taken, self.ruled_out = self.ruled_out, Counter()
        return taken

    # --- contents -----------------------------------------------------------------------------

    def differences(
        self, collection: str, left: Stored, right: Stored
    ) -> tuple[Document, Document, tuple[Difference, ...]] | None:
        """Two live documents and what counts of their differences; None if nothing does."""
        assert left.data is not None  # noqa: S101 - live
        assert right.data is not None  # noqa: S101
        if canonical(left.data) == canonical(right.data):
            return None
        ours = parse_document(left.data, self._database)
        theirs = parse_document(right.data, self._database)
        rules = self.rules.get(collection, ())
        counted = []
        # Bounded where much is taken away, too: a document has 20,000 places.
        for each, rule in sift(differences(ours.fields, theirs.fields), rules):
            if rule is not None:
                self.ruled_out[collection, rule.name] += 1
            else:
                counted.append(each)
                if len(counted) == MAX_DIFFERENCES:
                    break
        return (ours, theirs, tuple(counted)) if counted else None

    def apart(
        self, collection: str, authority: Sequence[Stored], mirror: Sequence[Stored]
    ) -> list[str]:
        """The paths at which two readings differ."""
        ours = {stored.path: stored for stored in authority}
        theirs = {stored.path: stored for stored in mirror}
        return [
            path
            for path in ours | theirs
            if self._differ(collection, ours.get(path), theirs.get(path))
        ]

    def _differ(self, collection: str, left: Stored | None, right: Stored | None) -> bool:
        one = left is not None and left.data is not None
        other = right is not None and right.data is not None
        if left is None or right is None or not (one and other):
            return one is not other
        return self.differences(collection, left, right) is not None

    # --- verdicts -----------------------------------------------------------------------------

    def judge(
        self,
        collection: str,
        authority: StoreName,
        firestore: Stored,
        postgres: Stored,
        now: int,
    ) -> Finding:
        """One document: Firestore's state between two looks at PostgreSQL that agreed, with
        nothing pending. `now`: microseconds since 1970."""

        def finding(verdict: Verdict, found: tuple[Difference, ...] = ()) -> Finding:
            return Finding(verdict, firestore.path, found, firestore, postgres)

        from_firestore = authority is StoreName.FIRESTORE
        if firestore.data is None or postgres.data is None:
            if firestore.data is postgres.data:
                return finding(Verdict.MATCH)
            mirror = postgres if from_firestore else firestore
            return finding(Verdict.MISSING if mirror.data is None else Verdict.EXTRA)
        left, right = (firestore, postgres) if from_firestore else (postgres, firestore)
        found = self.differences(collection, left, right)
        if found is None:
            return finding(Verdict.MATCH)
        ours, theirs, counted = found
        # Which version the mirror holds, and which it should, in Firestore's times. Where
        # PostgreSQL has put nothing, and still nothing is pending, it should hold another.
        held, due = theirs.update_time, ours.update_time
        if not from_firestore:
            due = postgres.peer_time or 0
            held = held if due else -1
        if held >= due:
            return finding(Verdict.WRONG, counted)
        late = now - ours.update_time >= self._bound
        return finding(Verdict.STALE if late else Verdict.BEHIND, counted)

    def judge_result(
        self,
        query: Query,
        authority: Sequence[Stored],
        mirror: Sequence[Stored],
    ) -> Finding | None:
        """Two results of a query, all of whose documents agree; None if the results do, too.

        As sequences where the query asks for an order (Firestore completes it with the names),
        as sets where it does not: nothing may rely on what was not asked for."""
        ours = {stored.path: stored for stored in authority}
        theirs = {stored.path: stored for stored in mirror}
        collection = query.collection or ""
        for path in ours | theirs:
            if path not in theirs:
                return Finding(Verdict.WRONG, path, (_whole(Kind.MISSING),))
            if path not in ours:
                return Finding(Verdict.WRONG, path, (_whole(Kind.EXTRA),))
            found = self.differences(collection, ours[path], theirs[path])
            if found is not None:  # what a projection shows of them
                return Finding(Verdict.WRONG, path, found[2])
        elsewhere = displaced(list(ours), list(theirs)) if query.order_by else None
        if elsewhere is not None:
            return Finding(Verdict.WRONG, elsewhere, (_whole(Kind.ORDER),))
        return None


def _whole(kind: Kind) -> Difference:
    return Difference((), kind, None, None)


def judge_totals(
    query: Query, authority: Mapping[str, Value], mirror: Mapping[str, Value]
) -> Finding | None:
    """Two results of an aggregation, of the same moment."""
    found = [
        each
        for each in islice(differences(dict(authority), dict(mirror)), MAX_DIFFERENCES)
        if not _near(each.authority, each.mirror)
    ]
    if not found:
        return None
    path = query.collection_path or query.collection or ""
    return Finding(Verdict.WRONG, path, tuple(found))


def _near(left: Value, right: Value) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return isclose(left, right, rel_tol=SUM_TOLERANCE)
    return identical(left, right)


def worst(findings: Iterable[Finding]) -> Verdict:
    """The verdict of a comparison: the first bad one, else `behind`, else `match`."""
    verdicts = [finding.verdict for finding in findings]
    bad = next((verdict for verdict in verdicts if verdict in BAD), None)
    if bad is not None:
        return bad
    return Verdict.BEHIND if Verdict.BEHIND in verdicts else Verdict.MATCH


def canonical(data: bytes) -> bytes:
    """The content in a form that equal documents share; times are judged apart."""
    message = document_pb2.Document.FromString(data)
    message.ClearField("create_time")
    message.ClearField("update_time")
    return message.SerializeToString(deterministic=True)
