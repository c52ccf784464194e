"""Hypothesis strategies for whole requests, and for what a database goes through."""

from dataclasses import dataclass, replace
from functools import cache

from hypothesis import strategies as st

from crossfade.document import NAME
from crossfade.query import Cursor, Order, Query
from crossfade.write import Transform, TransformKind, Write
from tests import strategies as some
from tests.contract.protocol import (
    FUTURE,
    REAL,
    STALE,
    Aggregate,
    BatchGet,
    BatchWrite,
    Commit,
    Get,
    ListCollections,
    ListDocuments,
    Request,
    RunQuery,
)


@dataclass(frozen=True)
class Story:
    """Documents, what is asked of them then, and, in the end, everything."""

    requests: list[Request]


EVERYTHING = RunQuery(Query(all_descendants=True))


@st.composite
def stories(draw: st.DrawFn, *, listing: bool = True) -> Story:
    """`listing`: with the methods that list documents and collections, which the contract of
    a store does not have."""
    first = draw(_FIRST)
    when = draw(st.sampled_from([None, None, None, "a", "b"]))
    if when is not None:
        # Only here: two commits may have the same moment on one server and not on the other.
        moment = Transform((when,), TransformKind.REQUEST_TIME)
        first[0] = replace(first[0], transforms=(moment,))
    return Story([Commit(first), *draw(_STEPS if listing else _STEPS_OF_STORES), EVERYTHING])


_FIRST = st.lists(st.builds(Write, some.paths(), some.fields()), min_size=3, max_size=7)


_WRITES = some.writes()


@st.composite
def _conditional(draw: st.DrawFn) -> Write:
    """A write that may have a precondition of any kind."""
    write = draw(_WRITES)
    return write if write.exists is not None else replace(write, update_time=draw(_TIMES))


_TIMES = st.sampled_from([None] * 12 + [REAL, REAL, STALE, FUTURE])


def limit_to_last(query: Query) -> Query:
    """What the client asks for a query's last documents: all orders and cursors turned round.

    Not by names alone: the emulator refuses to scan them downwards.
    """
    if not query.order_by or query.order_by[0].path == NAME:
        return query
    turned = tuple(Order(order.path, not order.descending) for order in query.order_by)
    return replace(
        query,
        order_by=turned,
        limit=query.limit or 2,
        offset=0,
        start=_turned(query.end),
        end=_turned(query.start),
    )


def _turned(cursor: Cursor | None) -> Cursor | None:
    return None if cursor is None else Cursor(cursor.values, not cursor.before)


@cache
def queries() -> st.SearchStrategy[Query]:
    plain = some.queries()
    return st.one_of(plain, plain, plain, plain.map(limit_to_last), _elsewhere())


@st.composite
def _elsewhere(draw: st.DrawFn) -> Query:
    """Queries of all collections, and below documents."""
    return replace(
        draw(some.queries()),
        parent=draw(_PARENTS),
        collection=draw(st.sampled_from([None, None, "sub", "c"])),
        all_descendants=draw(st.booleans()),
    )


_PARENTS = st.sampled_from(["", "", "c/a", "c/b", "c/a/sub/a", "d/nothing"])
_MASKS = st.none() | st.none() | st.lists(some.field_paths(), max_size=3).map(tuple)
_SIZES = st.sampled_from([0, 1, 2, 3, 100])
_MISSING = st.booleans()
_LIST_ORDERS = st.sampled_from(["", "", "", "a", "a desc", "b,a", "__name__", "a desc,__name__"])


@st.composite
def _lists(draw: st.DrawFn) -> ListDocuments:
    """Pages in an order of fields, and a mask beside show_missing, are left out, because the
    emulator cannot do them (test_known_differences.py)."""
    order, mask = draw(_LIST_ORDERS), draw(_MASKS)
    size = draw(_SIZES) if not order else draw(st.sampled_from([0, 100]))
    missing = mask is None and draw(_MISSING)
    collection = draw(st.sampled_from(["c", "c", "sub", "d"]))
    return ListDocuments(draw(_PARENTS), collection, size, mask, order, missing)


_COMMITS = st.lists(_conditional(), min_size=1, max_size=3).map(Commit)
_READS: list[st.SearchStrategy[Request]] = [
    queries().map(RunQuery),
    queries().map(RunQuery),
    some.neighbours().map(RunQuery),
    st.builds(Aggregate, queries(), some.aggregations()),
    st.builds(BatchGet, st.lists(some.paths(), min_size=1, max_size=5), _MASKS),
    st.builds(Get, some.paths(), _MASKS),
]
_LISTINGS: list[st.SearchStrategy[Request]] = [
    _lists(),
    st.builds(ListCollections, _PARENTS, _SIZES),
]


def _steps(*reads: st.SearchStrategy[Request]) -> st.SearchStrategy[list[Request]]:
    read = st.one_of(*reads)
    batches = st.lists(_conditional(), min_size=1, max_size=3).map(BatchWrite)
    return st.lists(st.one_of(_COMMITS, batches, read, read, read, read), min_size=4, max_size=8)


_STEPS = _steps(*_READS, *_LISTINGS)
_STEPS_OF_STORES = _steps(*_READS)
